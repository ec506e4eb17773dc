"""What each fast path of CPU decoding is worth: tokens per second with it, relative to the same step without it.

    python -m bench.fast_paths --rounds 5

Two models: the shipped one and 42 million random weights. Variants alternate within every round, and the median over
the rounds counts, so that a busy machine disturbs all of them alike. Writes docs/fast_paths.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from config import LlamaConfig
from engine.decode import cpu_step
from engine.decode.continuous_batching import refilled
from engine.decode.cpu_step import CpuStep
from engine.decode.fast_step import choose_step
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.files import write_text
from llama import Llama, load_pretrained

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "fast_paths.json"
BASE = "fused float32 step"


def shipped() -> Llama:
    """The story model."""
    return load_pretrained(str(ROOT / "models" / "stories.pt"))


def large() -> Llama:
    """42 million random weights in stories42M's shape, drawn large enough that greedy text varies."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=32000, dim=512, n_layers=8, n_heads=8, n_kv_heads=8, max_seq_len=1024))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.05)
    return model.eval()


def unsplit(model: Llama) -> CpuStep:
    """The fused step as it is for a small model, without a split of its products among the threads."""
    with mock.patch.object(cpu_step, "LARGE", math.inf):
        return CpuStep(model)


VARIANTS: dict[str, Callable[[Llama], Callable]] = {
    "plain model": lambda model: lambda tokens, cache: model(tokens, cache=cache)[0],
    BASE: CpuStep,
    "unsplit products": unsplit,
    "bfloat16 weights": lambda model: CpuStep(model, "bfloat16"),
    "int8 weights": lambda model: CpuStep(model, "int8"),
}


def speed(step: Callable, model: Llama, tokens: int) -> float:
    """Greedy tokens per second after a prompt of 16."""
    cache = model.new_cache(1, 16 + tokens)
    with torch.inference_mode():
        model.hidden_states(torch.arange(4, 20)[None], cache)
        token = torch.tensor([[20]])
        started = time.perf_counter()
        for _ in range(tokens):
            token = step(token, cache)[:, -1].argmax(dim=-1, keepdim=True)
    return tokens / (time.perf_counter() - started)


def measure(make: Callable[[], Llama], rounds: int, tokens: int) -> dict[str, float]:
    """The median speed of every variant, in alternating rounds."""
    prepared = {}
    for name, build in VARIANTS.items():
        model = make()
        prepared[name] = (build(model), model)
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in tqdm(range(rounds + 1), desc=make.__name__):
        for name, (step, model) in prepared.items():
            speeds[name].append(speed(step, model, tokens))
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}


def batching(rounds: int) -> dict[str, float]:
    """Tokens per second of 24 whole stories: slots refilled, or batches that wait for their longest row."""
    model = shipped()
    step, prompts, eos = choose_step(model), [[1, 4 + number] for number in range(24)], 2
    options = {"max_new_tokens": 512, "sampler": Sampler(1.0, top_p=0.95), "eos_id": eos, "slide": 64, "step": step}
    times: dict[str, list[float]] = {"refilled": [], "in waves": []}
    for _ in range(rounds):
        started = time.perf_counter()
        new = sum(len(ids) for _, ids in refilled(model, prompts, seed=0, rows=8, **options))
        times["refilled"].append((time.perf_counter() - started) / new)
        started, new = time.perf_counter(), 0
        for start in range(0, len(prompts), 8):
            generator = torch.Generator().manual_seed(start)
            rows = torch.stack(list(stream(model, prompts[start : start + 8], generator=generator, **options)), dim=1)
            new += int((rows != eos).sum())
        times["in waves"].append((time.perf_counter() - started) / new)
    speeds = {name: 1.0 / statistics.median(values) for name, values in times.items()}
    return {name: round(value, 1) for name, value in speeds.items()} | {
        "relative": round(speeds["refilled"] / speeds["in waves"], 2)
    }


def main() -> None:
    """Prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    results: dict = {"torch": torch.__version__, "command": f"python -m bench.fast_paths --rounds {args.rounds}"}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for make in (shipped, large):
            speeds = measure(make, args.rounds, args.tokens)
            results[f"{make.__name__}, {threads} thread(s)"] = {
                name: {"tokens_per_second": round(value, 1), "relative": round(value / speeds[BASE], 2)}
                for name, value in speeds.items()
            }
        results[f"continuous batching, {threads} thread(s)"] = batching(args.rounds)
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
