"""Tokens per second of greedy generation: ours (lean, int8, plain, uncached) and transformers' on the same weights.

    python -m bench.generation
    python -m bench.generation --checkpoint stories42M.pt --tokens 256 --threads 1

All are timed in one run, alternating, after a warm-up; the median of the rounds counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from config import LlamaConfig
from decoding import stream
from lean_step import make_lean
from llama import Llama, load_pretrained
from sampling import Sampler
from tests.oracles import transformers_model

SHIPPED = "models/stories.pt"
PROMPT = [1, 400, 300, 500, 600]


def main() -> None:
    """Times every way of generating and prints tokens per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default=SHIPPED, help="model, or random: 42 M random weights")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows generated at once")
    parser.add_argument("--rounds", type=int, default=5, help="times each way is run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ways = ways_of(args.checkpoint, args.tokens, args.batch)
    texts = {name: way() for name, way in ways.items()}  # the warm-up
    exact = {str(text) for name, text in texts.items() if name != "int8"}
    assert len(exact) == 1, "the ways of generating do not agree"
    seconds = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    report(seconds, args)


def random_model() -> Llama:
    """The course's configuration with freshly drawn weights."""
    torch.manual_seed(0)
    return Llama(LlamaConfig()).eval()


def ways_of(checkpoint: str, new: int, batch: int) -> dict[str, Callable[[], list]]:
    """The ways of generating, by name; each returns the rows of new tokens."""
    model = random_model() if checkpoint == "random" else load_pretrained(checkpoint)
    lean, int8 = (copy.deepcopy(model) for _ in range(2))
    other = transformers_model(model)
    make_lean(lean)
    make_lean(int8, "int8")
    rows = torch.tensor([PROMPT] * batch)

    def ours(model: Llama, use_cache: bool = True) -> list:
        steps = list(stream(model, [PROMPT] * batch, new, Sampler(0.0), use_cache=use_cache))
        return torch.stack(steps, dim=1).tolist()

    def transformers() -> list:
        options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        return other.generate(rows, attention_mask=torch.ones_like(rows), **options)[:, len(PROMPT) :].tolist()

    return {
        "lean": lambda: ours(lean),
        "int8": lambda: ours(int8),
        "plain": lambda: ours(model),
        "uncached": lambda: ours(model, use_cache=False),
        "transformers": transformers,
    }


def report(seconds: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Prints a line for each way, then all as JSON."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rate = {name: round(args.tokens * args.batch / time_taken, 1) for name, time_taken in median.items()}
    for name, value in rate.items():
        print(f"{name:<13} {value:>9,.1f} tokens/s   {median['transformers'] / median[name]:.2f} x transformers")
    print(json.dumps(vars(args) | {"tokens_per_second": rate, "torch": torch.__version__, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
