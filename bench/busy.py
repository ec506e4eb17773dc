"""Generation and training on a busy machine: speeds alone and beside two other programs, by how long threads spin.

    python -m bench.busy --out docs/busy.json

The two programs are started here: endless loops, one at normal and one at lowest priority. Each setting of
GOMP_SPINCOUNT runs in a process of its own; settings, idle and busy alternate within every round, in bursts of half a
second, and medians are compared. `default` is OpenMP's own setting, under which a thread spins for long. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from engine import start
from engine.io.files import write_json

BURST = 0.5  # seconds
WORK = tuple(f"{what}, {threads}" for what in ("float32", "int8", "training") for threads in ("1 thread", "2 threads"))
OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def main() -> None:
    """Measures every setting; prints a table and everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spins", nargs="+", default=["default", start.SPINS], help="settings of GOMP_SPINCOUNT")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurements")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve()
        return
    speeds = measure(args.spins, args.rounds)
    table = {spins: {work: _medians(sides) for work, sides in rows.items()} for spins, rows in speeds.items()}
    for spins, rows in table.items():
        for work, row in rows.items():
            print(f"spins {spins:>8}  {work:<20} idle {row['idle']:7.1f}  busy {row['busy']:7.1f} a second")
    result = {"rounds": args.rounds, "burst_seconds": BURST, "cores": os.cpu_count(), "speeds": table}
    if "default" in table:
        result["idle_against_default"] = {
            spins: {work: round(row["idle"] / table["default"][work]["idle"], 3) for work, row in rows.items()}
            for spins, rows in table.items()
        }
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))


def _medians(sides: dict[str, list[float]]) -> dict[str, float]:
    return {side: round(statistics.median(rates), 2) for side, rates in sides.items()}


def measure(settings: list[str], rounds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Steps per second by setting, work and side ("idle" or "busy"), one for each round."""
    workers = {spins: _worker(spins) for spins in settings}
    speeds = {spins: {work: {"idle": [], "busy": []} for work in WORK} for spins in settings}
    for worker in workers.values():
        worker.stdout.readline()  # it is ready
    for _ in tqdm(range(rounds), desc="rounds"):
        for work in WORK:
            for side in ("idle", "busy"):
                others = [_busy_program(priority) for priority in (0, 19)] if side == "busy" else []
                for spins, worker in workers.items():
                    worker.stdin.write(f"{work}\n")
                    worker.stdin.flush()
                    speeds[spins][work][side].append(float(worker.stdout.readline()))
                for other in others:
                    other.kill()
                    other.wait()
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return speeds


def _worker(spins: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP}
    if spins != "default":
        environment["GOMP_SPINCOUNT"] = spins
    words = [sys.executable, "-m", "bench.busy", "--worker"]
    return subprocess.Popen(words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _busy_program(priority: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import os; os.nice({priority})\nwhile True: pass"])


def serve() -> None:
    """A worker: for each line of standard input, one of `WORK`, prints its steps per second."""
    import torch

    steps = {**generation_steps(), "training": training_step()}
    print("ready", flush=True)
    for line in sys.stdin:
        what, threads = line.strip().split(", ")
        torch.set_num_threads(int(threads.split()[0]))
        step = steps[what]
        step()  # wakes the threads
        count, started = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - started < BURST:
            step()
            count += 1
        print(count / (time.perf_counter() - started), flush=True)


def generation_steps() -> dict[str, Callable[[], None]]:
    """One greedy token of a model with 42 million random weights after a hundred others, in float32 and int8."""
    import torch

    from bench.generate import random_model
    from engine.decode.cpu_step import CpuStep

    model, token = random_model(), torch.zeros(1, 1, dtype=torch.long)

    def one(dtype: str) -> Callable[[], None]:
        decode, cache = CpuStep(model, dtype), model.new_cache(1, 128)

        @torch.inference_mode()
        def step() -> None:
            cache.length = 100
            decode(token, cache)

        return step

    return {dtype: one(dtype) for dtype in ("float32", "int8")}


def training_step() -> Callable[[], None]:
    """One step of AdamW on 512 tokens with a model of 4 layers and 256 dimensions."""
    import torch

    from config import LlamaConfig
    from engine.train.losses import cross_entropy
    from llama import Llama
    from optimizer import AdamW

    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=4096, dim=256, n_layers=4, n_heads=8, n_kv_heads=8, max_seq_len=128))
    optimizer, tokens = AdamW(model.parameters(), lr=1e-4), torch.randint(0, 4096, (4, 128))

    def step() -> None:
        cross_entropy(model.hidden_states(tokens).flatten(0, 1), model.output.weight, tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
