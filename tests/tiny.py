"""Small stand-ins for tests: a random model over the shipped tokenizer, and a few stories to train on."""

from __future__ import annotations

from pathlib import Path

import torch

from config import LlamaConfig
from engine.decode.fast_step import DecodeStep, plain_step
from engine.io.checkpoint import save_checkpoint
from llama import Llama

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models" / "stories.model"
CLOCKS = {"seconds": 0, "processor_seconds": 0}  # what no two runs' logs have in common
CONFIG = LlamaConfig(vocab_size=4096, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=128)


def write_tiny_checkpoint(path: Path, config: LlamaConfig = CONFIG, tokenizer: Path | None = TOKENIZER) -> Llama:
    """Writes a random model to `path` and returns it."""
    torch.manual_seed(0)
    model = Llama(config)
    save_checkpoint(path, config, model.state_dict(), tokenizer)
    return model.eval()


def step_logits(model: Llama, padded: bool, step: DecodeStep | None = None) -> torch.Tensor:
    """Logits after the tenth token of three random rows, by a decode step; `padded`: the first begins with padding."""
    tokens = torch.randint(0, model.config.vocab_size, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[0, :4] = False
    cache = model.new_cache(3)
    with torch.no_grad():
        model.hidden_states(tokens[:, :-1], cache, mask[:, :-1] if padded else None)
        logits = (step or plain_step(model))(tokens[:, -1:], cache, mask if padded else None)
    assert cache.length == 10
    return logits.clone()


def stories(count: int = 60) -> list[str]:
    """Short made-up stories of different lengths."""
    names, things = ("Ann", "Ben", "Cleo", "Dan"), ("ball", "kite", "red hat", "small boat", "drum")
    found = []
    for index in range(count):
        name, thing = names[index % 4], things[index % 5]
        lines = [f"{name} had a {thing}.", f"One day the {thing} was gone.", f"{name} looked for it {index} times."]
        found.append(" ".join(lines[: 1 + index % 3]))
    return found


def write_corpus(path: Path, count: int = 60) -> Path:
    """Writes `stories` in the corpus format."""
    path.write_text("\n<|endoftext|>\n".join(stories(count)), encoding="utf-8")
    return path
