"""Data-parallel training under torchrun: rank, world size, gradient all-reduce.

    torchrun --nproc_per_node 2 run_llama.py --option pretrain --corpus TEXT --tokenizer FILE --save_dir runs/mine

Each process computes its share of every effective batch and divides its losses by the number of targets of the whole
batch; the gradients are summed. So the result is the mean over all targets, as in one process, and not
DistributedDataParallel's mean of the processes' means. All processes read the same files, and only the first writes. A
process started without torchrun is rank 0 of 1, and nothing here has an effect.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)  # time limit of a collective: another process may be tokenising a large corpus
_HOST = socket.gethostname()
_processes: list[tuple[str, int]] = []  # host and process id of every rank
SEED_STEP = 1_000_003  # distance between the processes' seeds, larger than any range of seeds in use


def size() -> int:
    """World size."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """True for rank 0, which writes, logs and prints."""
    return rank() == 0


def prepare_together(prepare: Callable[[], Callable[[], None]], use_gpu: bool) -> Callable[[], None]:
    """Joins the process group, calls `prepare` in every process, and returns the work if all are ready.

    Rank 0 prepares first, so that the others find its files; their output is silenced. An error in one process
    (ValueError, OSError) is raised in all.
    """
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=PATIENCE)
    _processes[:] = gather((_HOST, os.getpid()))
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays open)
    work = None
    for turn in (is_first(), not is_first()):
        message = None
        try:
            work = prepare() if turn else work
        except (ValueError, OSError) as error:
            message = str(error)
        if messages := [text for text in gather(message) if text is not None]:
            raise ValueError(messages[0])
    return lambda: _work_and_leave(work)


def _work_and_leave(work: Callable[[], None]) -> None:
    work()
    gather(None)  # barrier: wait for every process before tearing down the group
    dist.destroy_process_group()


def own_random_state() -> None:
    """Reseeds every process except the first, so that dropout differs; called after equal weights were drawn."""
    if not is_first():
        torch.manual_seed(torch.initial_seed() + SEED_STEP * rank())


def share(items: Sequence[Any]) -> Sequence[Any]:
    """This process's items: every size()-th, starting at rank()."""
    return items if size() == 1 else items[rank() :: size()]


def same_weights(model: nn.Module) -> None:
    """Broadcasts the weights of rank 0."""
    for parameter in model.parameters() if size() > 1 else ():
        _collective(dist.broadcast, parameter.data, 0)


def sum_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """All-reduces the gradients in place and returns the summed loss (a scalar).

    One message holds all gradients, then for each parameter the number of processes that have a gradient (a parameter
    without any keeps none), then the loss.
    """
    if size() == 1:
        return loss
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=loss.device)
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), present, loss.detach().float().reshape(1)])
    _collective(dist.all_reduce, flat)
    *gradients, present, loss = flat.split([*(p.numel() for p in trained), len(trained), 1])
    for parameter, gradient, count in zip(trained, gradients, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if count else None
    return loss[0]


def sum_array(values: np.ndarray) -> np.ndarray:
    """The elementwise sum of the processes' arrays, which have the same shape."""
    if size() == 1:
        return values
    total = torch.from_numpy(values.copy())
    _collective(dist.all_reduce, total)
    return total.numpy()


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank. Also serves as a barrier."""
    if size() == 1:
        return [value]
    values = [None] * size()
    _collective(dist.all_gather_object, values, value)
    return values


def _collective(operation: Callable, *arguments: Any) -> None:
    """A collective call. If another process has ended, the first survivor raises ConnectionError, which names it.

    The other survivors exit silently.
    """
    try:
        operation(*arguments)
    except RuntimeError as error:
        ended = _ended()
        survivors = [number for number in range(dist.get_world_size()) if number not in ended]
        if dist.get_rank() != survivors[0]:
            raise SystemExit(1) from None
        who = f"process {', '.join(map(str, ended))} of {len(_processes)}" if ended else "another process"
        raise ConnectionError(
            f"{who} of this run has ended ({str(error).splitlines()[0]}); start all of them again with --resume"
        ) from None


def _ended() -> list[int]:
    """The ranks of this machine whose process has ended; it closes its connections a moment before it is gone."""
    ended: list[int] = []
    for _ in range(25):
        ended = [number for number, (host, process) in enumerate(_processes) if host == _HOST and not _runs(process)]
        if ended:
            break
        time.sleep(0.02)
    return ended


def _runs(process: int) -> bool:
    """Whether a process of this machine still runs; one that has ended, but was not waited for, does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # there is no /proc here
        return True
