"""Seed, device, precision and threads, chosen once at the start of a task; and padding.

    python -c "import utils; print(utils.set_up(seed=0))"
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def set_up(seed: int, use_gpu: bool = False, threads: int | None = None) -> torch.device:
    """Seeds torch, sets the number of CPU threads if given, and returns the device.

    Under torchrun each process uses the GPU of its local rank. Raises ValueError if `use_gpu` and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ValueError("--use_gpu: no CUDA device is available here; leave the flag out to run on the CPU")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if use_gpu and number >= torch.cuda.device_count():
        raise ValueError(f"--use_gpu: {torch.cuda.device_count()} CUDA device(s) for more processes than that")
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if not use_gpu:
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision with matrix products in `dtype`; a null context for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held so far, in MB (10⁶ bytes): of tensors on a GPU, of all else on a CPU.

    0 where the operating system does not say it.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def check_compiler(device: torch.device) -> None:
    """Compiles a tiny function; raises ValueError with torch's reason if `torch.compile` does not work here."""
    try:
        torch.compile(lambda x: x.sin() + 1.0)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise ValueError(f"--compile: {str(error).strip().splitlines()[0]}") from None


def compile_methods(module: nn.Module, *names: str) -> None:
    """Compiles these methods of the module with `torch.compile`, for inputs of any shape."""
    for name in names:
        setattr(module, name, torch.compile(getattr(module, name), dynamic=True))


def fastest_threads(work: Callable[[], None], most: int, rounds: int = 5) -> int:
    """Sets and returns the number of CPU threads, of 1, 2, 4, … `most`, with which `work` is fastest.

    Counts alternate within every round and are compared by their medians, because threads that spin on a busy machine
    are sometimes fast. More threads must be at least 10 % faster; a count 3× slower than one thread is dropped.
    """
    numbers = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    times: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(rounds if most > 1 else 0):
        for number in numbers:
            if times[number] and min(times[number]) > 3 * min(times[1]):
                continue
            torch.set_num_threads(number)
            work()  # wakes the threads
            started = time.perf_counter()
            work()
            times[number].append(time.perf_counter() - started)
    best = 1
    for number in numbers[1:] if times[1] else []:
        if statistics.median(times[number]) < 0.9 * statistics.median(times[best]):
            best = number
    torch.set_num_threads(best)
    return best


def get_parameter_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first parameter."""
    return next(module.parameters()).dtype


def get_extended_attention_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of ones and zeros, (batch, keys) or (batch, queries, keys), as one to add to attention scores.

    Kept positions add 0 and the others the lowest number of `dtype`. Returns (batch, 1, 1 or queries, keys).
    """
    wide = attention_mask[:, None, None] if attention_mask.ndim == 2 else attention_mask[:, None]
    return (1 - wide.to(dtype)) * torch.finfo(dtype).min


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows of ids as one tensor (rows, longest), padded on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    for index, ids in enumerate(rows):
        padded[index, : len(ids)] = torch.as_tensor(ids)
    return padded
