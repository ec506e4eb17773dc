"""The course's functions for one epoch and for the loss of a data loader, over the same update as every training here.

    python -c "from addition_run import train_one_epoch; help(train_one_epoch)"
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.train.trainer import update
from tasks.addition.problems import EQUALS, IGNORED


def train_one_epoch(model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, device) -> float:
    """The course's epoch: one update per batch (x, y) of the loader; returns the mean batch loss."""
    totals = [
        update(model, optimizer, [(x.to(device), answers_only(x, y).to(device))], _count, _summed_loss)[0]
        for x, y in loader
    ]
    return sum(totals) / len(totals)


@torch.no_grad()
def evaluate_loss(model: nn.Module, loader: Iterable, device) -> float:
    """Mean loss per target over the loader's batches, in evaluation mode."""
    model.eval()
    batches = ((x.to(device), answers_only(x, y).to(device)) for x, y in loader)
    losses = [(_summed_loss(model, batch) / _count(batch)).item() for batch in batches]
    return sum(losses) / len(losses)


def answers_only(x: Tensor, y: Tensor) -> Tensor:
    """The targets y (batch, seqlen) with −1 before the answer: only the answer and its end count."""
    return torch.where((x == EQUALS).cumsum(dim=1) > 0, y, IGNORED)


def _count(batch: tuple[Tensor, Tensor]) -> int:
    return int((batch[1] != IGNORED).sum())


def _summed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, targets = batch
    logits, _ = model(x, targets)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
