"""Checks the Llama: logits and hidden states of a small model, and of the course's stories42M if it is present.

    python sanity_check.py
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys

import torch

from config import LlamaConfig
from engine.io import golden_check
from engine.io.checkpoint import load_plain
from llama import Llama, load_pretrained

COURSE_FILES = ["stories42M.pt", "sanity_check.data"]
SENTENCES = [  # "hello world" and "hello neural network for NLP", in the ids that the course uses
    [101, 7592, 2088, 102, 0, 0, 0, 0],
    [101, 7592, 15756, 2897, 2005, 17953, 2361, 102],
]


def compare(model: Llama, tokens: torch.Tensor, expected: dict) -> None:
    """Raises ValueError unless the logits of the last position and all hidden states match."""
    with torch.no_grad():
        logits, hidden_states = model(tokens)
    golden_check.agree("the logits", logits, expected["logits"])
    golden_check.agree("the hidden states", hidden_states, expected["hidden_states"])


def ours() -> None:
    """A small model whose outputs were computed in float64 NumPy."""
    expected = golden_check.load("sanity")
    model = Llama(LlamaConfig.from_json(str(expected["config"])))
    prefix = "weights/"
    weights = {name[len(prefix) :]: torch.from_numpy(x) for name, x in expected.items() if name.startswith(prefix)}
    model.load_state_dict(weights | {"output.weight": weights["tok_embeddings.weight"]})
    compare(model.eval(), torch.from_numpy(expected["tokens"]), expected)


def course() -> None:
    """stories42M on the course's two sentences."""
    model = load_pretrained(str(golden_check.ROOT / "stories42M.pt"))
    compare(model, torch.tensor(SENTENCES), load_plain(golden_check.ROOT / "sanity_check.data"))


if __name__ == "__main__":
    sys.exit(golden_check.run_check("Your Llama implementation is correct!", ours, course, COURSE_FILES))
