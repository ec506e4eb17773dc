"""Training speed of the architectures of recipes/architectures.toml, beside RoPE in the same run.

    python -m bench.architectures --threads 1 --out results/architectures/speed.json

A step is the loss, its gradients and AdamW on random tokens, in float32. The architectures alternate in every round,
and the median of their processor time counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tomllib
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from bench.checkpointing import backward
from config import LlamaConfig
from engine.io.files import write_json
from llama import Llama
from optimizer import AdamW

LIST = Path("recipes/architectures.toml")


def configs(vocab_size: int) -> dict[str, LlamaConfig]:
    """The configuration of every method of the list."""
    content = tomllib.loads(LIST.read_text("utf-8"))
    known = {field.name for field in fields(LlamaConfig)}
    common = {name: value for name, value in content["data"]["tinystories"]["flags"].items() if name in known}
    own = {method["name"]: method.get("flags", {}) for method in content["method"]}
    return {name: LlamaConfig(**common | flags, vocab_size=vocab_size) for name, flags in own.items()}


def seconds(model: Llama, optimizer: AdamW, tokens: Tensor) -> float:
    """Processor time of one training step."""
    started = time.process_time()
    optimizer.zero_grad(set_to_none=True)
    backward(model, tokens)
    optimizer.step()
    return time.process_time() - started


def main() -> None:
    """Prints and writes tokens per second of every architecture and its ratio to RoPE's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each architecture")
    parser.add_argument("--rows", type=int, default=8, help="rows of the full context in a step")
    parser.add_argument("--out", type=Path, default=Path("runs/architectures_speed.json"), help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = {name: Llama(config).train() for name, config in configs(4096).items()}
    optimizers = {name: AdamW(model.parameters(), lr=3e-4) for name, model in models.items()}
    length = models["RoPE"].config.max_seq_len
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(args.rounds + 1):  # the first warms up
        tokens = torch.randint(4096, (args.rows, length + 1))
        for name, model in models.items():
            times[name] += [seconds(model, optimizers[name], tokens)][: number > 0]
    speeds = {name: args.rows * length / statistics.median(own) for name, own in times.items()}
    found = {name: {"tokens_per_second": round(speed), "ratio": round(speed / speeds["RoPE"], 3)}
             for name, speed in speeds.items()}  # fmt: skip
    for name, figures in found.items():
        print(f"{name}: {figures['tokens_per_second']} tokens/s, {figures['ratio']:.2f} of RoPE")
    write_json(args.out, {"threads": args.threads, "architectures": found})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
