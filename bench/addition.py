"""Training examples per second: the course's loop, torch's compiled step and the C++ step, in one run, on the CPU.

    python -m bench.addition --threads 1 --seconds 8 --out docs/addition_speed.json

The course's loop is its DataLoader over `CharDataset.__getitem__`, the plain model and per-tensor AdamW. The other two
train in the batched layout. With Muon the C++ step without its optimizer is compared with the whole update in C++.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader

from addition_lib import create_datasets
from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from engine.io.files import write_json
from llama import Llama
from optimizer import AdamW
from tasks.addition import native_step
from tasks.addition.batched_model import SideBySide
from tasks.addition.course_loop import train_one_epoch
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import build_trainer, chunk_of, compile_training
from tasks.addition.problems import problem_text, sample_problems
from tasks.addition.testing import NATIVE_CALL, exhaustive
from tasks.addition.workload import AdditionWorkload, Problems

SHAPES = {"8/3/2/2": (8, 3, 2, 2), "16/6/4/4": (16, 6, 4, 4)}  # dim / layers / heads / KV heads, as the course's
ABLATION_16 = {"dim": 8, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "head_size": 4, "hidden_dim": 8}
ABLATION_26 = {"dim": 6, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_size": 4, "hidden_dim": 4}
BATCH = 1024
CPU = torch.device("cpu")


def config_of(shape: tuple[int, int, int, int]) -> LlamaConfig:
    """The course's configuration of this shape."""
    dim, layers, heads, kv_heads = shape
    return LlamaConfig(vocab_size=13, dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, max_seq_len=20)


def course_rate(config: LlamaConfig, seconds: float) -> float:
    """Examples per second of the course's loop: workers, shuffling, plain model, AdamW tensor by tensor."""
    model = Llama(config)
    optimizer = AdamW(model.parameters(), lr=1e-3, foreach=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_bytes(problem_text(*sample_problems(400_000, 0)))
        loader = iter(DataLoader(create_datasets(path), batch_size=BATCH, shuffle=True, num_workers=4))
        return timed(lambda: train_one_epoch(model, _taken(loader, 4), optimizer, CPU), 4 * BATCH, seconds)


def _taken(loader: Iterator, count: int) -> list:
    return [next(loader) for _ in range(count)]


def fast_rate(config: LlamaConfig, seconds: float, native: bool, seeds: int = 1, batch: int = BATCH) -> float:
    """Examples per second, over all seeds, of the trainer's steps in the batched layout, compiled from C++ or torch."""
    settings = AdderTraining(seeds=seeds, batch_size=batch, epochs=1, save_dir=tempfile.mkdtemp())
    model = SideBySide([Llama(config) for _ in range(seeds)])
    problems = Problems.of(*sample_problems(200_000, 0))
    with nullcontext() if native else patch.object(native_step, "supported", return_value=False):
        workload = AdditionWorkload(model, problems, problems, chunk_of(settings, CPU), 1, len(problems), seed=0)
        workload.compile_step(model)
    trainer = build_trainer(model, workload, settings, CPU, {})
    batches = workload.epoch(0)[: batch // workload.chunk]
    return timed(lambda: trainer.step(batches), batch * seeds, seconds)


def muon_rate(config: LlamaConfig, seconds: float, batch: int, whole: bool = True, seeds: int = 1) -> float:
    """Examples per second, over all seeds, with Muon: the C++ step and torch's Muon, or the whole update in C++."""
    settings = AdderTraining(seeds=seeds, batch_size=batch, epochs=1, optimizer="muon", save_dir=tempfile.mkdtemp())
    model = SideBySide([Llama(config) for _ in range(seeds)])
    problems = Problems.of(*sample_problems(200_000, 0))
    workload = AdditionWorkload(model, problems, problems, chunk_of(settings, CPU), 1, len(problems), seed=0)
    trainer = build_trainer(model, workload, settings, CPU, {})
    compile_training(trainer, workload)
    if not whole:
        workload.compiled_update = None
    batches = workload.epoch(0)[:1]
    return timed(lambda: trainer.step(batches), batch * seeds, seconds)


def threads_rates(seconds: float) -> dict[str, dict[str, int]]:
    """Examples per second of whole updates by one and two threads: a seed search, a step of shrinking, the end."""
    measured: dict[str, dict[str, int]] = {}
    for dim, seeds, batch in ((8, 48, 128), (8, 6, 256), (6, 1, 1024)):
        config = LlamaConfig(vocab_size=13, max_seq_len=20, **ABLATION_26 | {"dim": dim}, rope_theta=30.0)
        parameters = sum(map(math.prod, parameter_shapes(config).values()))
        name = f"{parameters} parameters, {seeds} at a time, batches of {batch}"
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rate = round(muon_rate(config, seconds, batch, seeds=seeds))
            measured.setdefault(name, {})[str(threads)] = rate
    return measured


def exhaustive_rate(problems: int = 4 * NATIVE_CALL) -> float:
    """Problems per second of the exhaustive test of a model with 1,784 parameters, without compilation time."""
    model = Llama(LlamaConfig(vocab_size=13, max_seq_len=20, **ABLATION_16))
    times = []
    for part in (range(NATIVE_CALL), range(NATIVE_CALL), range(problems + NATIVE_CALL)):
        started = time.perf_counter()
        exhaustive(model, part=part, near=-torch.inf)  # an untrained model: count none of its answers as doubtful
        times.append(time.perf_counter() - started)
    return problems / (times[2] - times[1])


def timed(work: Callable[[], object], examples: int, seconds: float) -> float:
    """Examples per second of the fastest third of the calls within this time, after a warm-up call."""
    work()
    rates, ends = [], time.perf_counter() + seconds
    while time.perf_counter() < ends or len(rates) < 3:
        started = time.perf_counter()
        work()
        rates.append(examples / (time.perf_counter() - started))
    best = sorted(rates, reverse=True)[: max(1, len(rates) // 3)]
    return sum(best) / len(best)


def main() -> None:
    """Prints one line per measurement and everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    measured: dict = {"threads": args.threads, "torch": torch.__version__}
    for name, shape in SHAPES.items():
        course = course_rate(config_of(shape), args.seconds)
        torchs, native = (fast_rate(config_of(shape), args.seconds, native) for native in (False, True))
        measured[name] = {"course": round(course), "torch": round(torchs), "native": round(native)}
        print(f"{name}: the course's loop {course:,.0f} examples/s, torch's step {torchs:,.0f}, C++ {native:,.0f}")
    adder = LlamaConfig(vocab_size=13, max_seq_len=20, **ABLATION_16)
    measured["1,784 parameters, 6 seeds"] = round(fast_rate(adder, args.seconds, True, seeds=6, batch=128))
    small = LlamaConfig(vocab_size=13, max_seq_len=20, **ABLATION_26, rope_theta=30.0)
    for batch in (128, 1024):
        rates = [round(muon_rate(small, args.seconds, batch, whole)) for whole in (False, True)]
        measured[f"Muon, 570 parameters, batches of {batch}"] = dict(zip(("torch", "native"), rates, strict=True))
    measured["exhaustive, 1,784 parameters"] = round(exhaustive_rate())
    measured["threads of Muon's updates"] = threads_rates(args.seconds)
    print(json.dumps(measured))
    if args.out is not None:
        write_json(args.out, measured)


if __name__ == "__main__":
    main()
