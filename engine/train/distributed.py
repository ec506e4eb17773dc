"""Several processes training one model, as `torchrun` starts them: who this one is, and what all of them sum.

    torchrun --nproc_per_node 2 run_llama.py --option pretrain --corpus TEXT --tokenizer FILE --save_dir runs/mine

Each process takes its share of every effective batch, divides its losses by the targets of the whole of it, and all
add up their gradients: the mean over all targets, as one process has it, and not the mean of the processes' means
that DistributedDataParallel takes. All processes see the same files, and the first alone writes. A process that
was started without torchrun is alone: it is the first of one, and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)  # how long a process waits for another, which may be tokenising a large corpus
SEED_STEP = 1_000_003  # between the processes' seeds: further than anyone counts seeds up


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of the processes this one is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes, logs and speaks."""
    return rank() == 0


def prepare_together(prepare: Callable[[], Callable[[], None]], use_gpu: bool) -> Callable[[], None]:
    """Joins the processes torchrun has started, calls `prepare` in each, and returns the work if all are ready for it.

    The first prepares alone: the others find the files it makes. They say nothing from here on. A fault in one
    process (ValueError, OSError) is raised in all.
    """
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=PATIENCE)
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it stays open to the end)
    work = None
    for turn in (is_first(), not is_first()):
        fault = None
        try:
            work = prepare() if turn else work
        except (ValueError, OSError) as error:
            fault = str(error)
        if faults := [found for found in gather(fault) if found is not None]:
            raise ValueError(faults[0])
    return lambda: _work_and_leave(work)


def _work_and_leave(work: Callable[[], None]) -> None:
    work()
    gather(None)  # nobody leaves while another may still need him
    dist.destroy_process_group()


def own_random_state() -> None:
    """Seeds every process but the first anew: after equal weights were drawn, each draws dropout of its own."""
    if not is_first():
        torch.manual_seed(torch.initial_seed() + SEED_STEP * rank())


def share(items: Sequence[Any]) -> Sequence[Any]:
    """Every size()-th of the items from the rank()-th on: no two processes share one, and together they have all."""
    return items if size() == 1 else items[rank() :: size()]


def same_weights(model: nn.Module) -> None:
    """Gives every process the first one's weights."""
    for parameter in model.parameters() if size() > 1 else ():
        _together(dist.broadcast, parameter.data, 0)


def sum_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Adds up the gradients of all processes, in place, and returns the sum of their losses (a scalar).

    One message has all gradients end to end, then for each parameter how many processes have a gradient of it (one
    that none has one of stays without), then the loss.
    """
    if size() == 1:
        return loss
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=loss.device)
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), present, loss.detach().float().reshape(1)])
    _together(dist.all_reduce, flat)
    *gradients, present, loss = flat.split([*(p.numel() for p in trained), len(trained), 1])
    for parameter, gradient, known in zip(trained, gradients, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if known else None
    return loss[0]


def sum_array(values: np.ndarray) -> np.ndarray:
    """The elementwise sum of the processes' arrays, which have one shape."""
    if size() == 1:
        return values
    total = torch.from_numpy(values.copy())
    _together(dist.all_reduce, total)
    return total.numpy()


def gather(value: Any) -> list[Any]:
    """The values of all processes in order; also where they wait for each other."""
    if size() == 1:
        return [value]
    values = [None] * size()
    _together(dist.all_gather_object, values, value)
    return values


def _together(operation: Callable, *arguments: Any) -> None:
    """A call that all processes make. Where another one is gone, the first says so (ConnectionError), no other does."""
    try:
        operation(*arguments)
    except RuntimeError as error:
        if not is_first():
            raise SystemExit(1) from None
        raise ConnectionError(f"another process of this run has ended ({str(error).splitlines()[0]})") from None
