"""Seed, device and number type, chosen once at the top of a task and passed down.

    python -c "import utils; print(utils.set_up(seed=0))"
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def set_up(seed: int, use_gpu: bool = False, threads: int | None = None) -> torch.device:
    """Seeds torch (fresh weights, dropout), sets the number of CPU threads if given, and returns the device.

    Raises ValueError where a GPU is asked for and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ValueError("--use_gpu: no CUDA device is available here; leave the flag out to run on the CPU")
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cuda" if use_gpu else "cpu")


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision with matrix products in `dtype`; nothing at all for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def fastest_threads(work: Callable[[], None], most: int, rounds: int = 5) -> int:
    """Sets and returns the number of CPU threads, of 1, 2, 4, … `most`, with which `work` takes the least time.

    Every number is tried in turn, round after round, and judged by its median: threads that spin on a busy machine are
    now and then as fast as ever. A larger number must save a tenth, and one three times slower is not tried again.
    """
    numbers = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    times: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(rounds if most > 1 else 0):
        for number in numbers:
            if times[number] and min(times[number]) > 3 * min(times[1]):
                continue
            torch.set_num_threads(number)
            work()  # wakes the threads up
            started = time.perf_counter()
            work()
            times[number].append(time.perf_counter() - started)
    best = 1
    for number in numbers[1:] if times[1] else []:
        if statistics.median(times[number]) < 0.9 * statistics.median(times[best]):
            best = number
    torch.set_num_threads(best)
    return best
