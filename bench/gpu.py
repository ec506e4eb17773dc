"""Everything a GPU is for, checked and measured in one command of a few minutes.

    python -m bench.gpu                          (a CUDA GPU; writes docs/gpu_results.json)
    python -m bench.gpu --device cpu --quick     (the same code on a CPU with tiny models; writes nothing)

Parity comes first: logits and a loss on the device against the CPU in float32. Then, with 42 million random weights:
generation with 1 and 64 texts, pretraining in bfloat16 with its model FLOP utilisation (Chowdhery et al. 2022,
appendix B), fine-tuning, activation memory with and without recomputation, and adders trained side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from config import LlamaConfig
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.files import write_text
from engine.train.losses import cross_entropy
from engine.train.trainer import update
from llama import Llama
from optimizer import AdamW
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import sample_problems
from tasks.addition.workload import AdditionWorkload, Problems
from utils import autocast

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "gpu_results.json"
LARGE = LlamaConfig(vocab_size=32000, dim=512, n_layers=8, n_heads=8, n_kv_heads=8, max_seq_len=1024)
SMALL = LlamaConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=128)
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bfloat16, as the maker states them


def model_on(device: torch.device, config: LlamaConfig, dtype: torch.dtype = torch.float32) -> Llama:
    """Random weights, equal on every device."""
    torch.manual_seed(0)
    return Llama(config).to(device, dtype)


def rate_of(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Units per second of `work`, which returns how many it did; the first call warms up."""
    work()
    units, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        units += work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return units / (time.perf_counter() - started)


def parity(device: torch.device, config: LlamaConfig) -> dict[str, float]:
    """Largest difference of logits, relative to their scale, and of the loss, between the device and the CPU."""
    tokens = torch.randint(0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    logits = []
    for place in (torch.device("cpu"), device):
        with torch.no_grad():
            logits.append(model_on(place, config).eval()(tokens.to(place), tokens.to(place))[0].float().cpu())
    losses = [F.cross_entropy(x[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item() for x in logits]
    scale = logits[0].abs().max().item()
    return {"logits": (logits[0] - logits[1]).abs().max().item() / scale, "loss": abs(losses[0] - losses[1])}


def generation(device: torch.device, config: LlamaConfig, texts: int, seconds: float) -> float:
    """New tokens per second of greedy decoding, in bfloat16 on a GPU."""
    model = model_on(device, config, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    prompts = [[1, 2, 3, 4]] * texts
    return rate_of(lambda: texts * len(list(stream(model, prompts, 64, Sampler(0.0)))), seconds, device)


def training_step(device: torch.device, config: LlamaConfig, rows: int, recompute: int = 0) -> Callable[[], int]:
    """One step of the trainer in bfloat16; returns its targets."""
    model = model_on(device, config)
    model.recompute = recompute
    optimizer = AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, config.vocab_size, (rows, config.max_seq_len + 1), device=device)

    def loss(model: Llama, batch: torch.Tensor) -> torch.Tensor:
        hidden = model.hidden_states(batch[:, :-1]).flatten(0, 1)
        return cross_entropy(hidden, model.output.weight, batch[:, 1:].flatten())

    def count(batch: torch.Tensor) -> int:
        return len(batch) * config.max_seq_len

    def step() -> int:
        return update(model, optimizer, [tokens], count, loss, lambda: autocast(device, torch.bfloat16))[1]

    return step


def utilisation(tokens_per_second: float, config: LlamaConfig, name: str) -> float | None:
    """Model FLOP utilisation, None for a GPU whose peak is not known here."""
    peak = next((tflops for gpu, tflops in PEAK_TFLOPS.items() if gpu in name), None)
    weights = sum(p.numel() for p in Llama(config).parameters())
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * config.max_seq_len
    return None if peak is None else tokens_per_second * (6 * weights + attention) / (peak * 1e12)


def activation_memory(device: torch.device, config: LlamaConfig, rows: int) -> dict[str, float]:
    """Peak memory of a step in MB, without and with recomputation of every layer."""
    peaks = {}
    for name, recompute in (("kept", 0), ("recomputed", 1)):
        torch.cuda.reset_peak_memory_stats(device)
        training_step(device, config, rows, recompute)()
        peaks[name] = torch.cuda.max_memory_allocated(device) / 1e6
    return peaks


def adders(device: torch.device, seconds: float) -> float:
    """Training examples per second of sixteen adders side by side, forward and backward."""
    config = LlamaConfig(vocab_size=13, dim=6, n_layers=2, n_heads=2, n_kv_heads=1, head_size=4, hidden_dim=4,
                         max_seq_len=20)  # fmt: skip
    model = SideBySide([Llama(config).to(device) for _ in range(16)])
    problems = Problems.of(*sample_problems(4096, 0))
    workload = AdditionWorkload(model, problems, problems, 1024, 1, 4096, seed=0)
    batch = workload.epoch(0)[0]

    def step() -> int:
        workload.loss(model, batch).backward()
        model.zero_grad(set_to_none=True)
        return 16 * 1024

    return rate_of(step, seconds, device)


def measure(device: torch.device, quick: bool) -> dict:
    """All checks and measurements."""
    config, seconds, rows = (SMALL, 0.2, 2) if quick else (LARGE, 10.0, 16)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    weights = sum(p.numel() for p in Llama(config).parameters())
    results: dict = {"device": name, "torch": torch.__version__, "parameters": weights}
    jobs: dict[str, Callable] = {
        "parity": lambda: parity(device, config),
        "generate, 1 text, tokens/s": lambda: generation(device, config, 1, seconds),
        "generate, 64 texts, tokens/s": lambda: generation(device, config, 64, seconds),
        "pretraining, tokens/s": lambda: rate_of(training_step(device, config, rows), seconds, device),
        "adders, examples/s": lambda: adders(device, seconds),
    }
    if device.type == "cuda":
        jobs["activation memory, MB"] = lambda: activation_memory(device, config, rows)
    for title, job in tqdm(jobs.items(), desc="measuring"):
        results[title] = job()
    results["model FLOP utilisation"] = utilisation(results["pretraining, tokens/s"], config, name)
    return results


def main() -> int:
    """Prints the results as JSON; on a GPU also writes them to docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models: shows that the command runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available here; --device cpu --quick runs the same code on a CPU")
    results = measure(torch.device(args.device), args.quick)
    text = json.dumps(results, indent=2) + "\n"
    print(text)
    if args.device == "cuda" and not args.quick:
        write_text(RESULTS, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
