"""Checks AdamW: a thousand steps of linear regression against golden values, and the course's if present.

    python optimizer_test.py
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys

import numpy as np
import torch
from torch import nn

from engine.io import golden_check
from optimizer import AdamW

COURSE_FILES = ["optimizer_test.npy"]


def regress(model: nn.Linear, inputs: np.ndarray) -> torch.Tensor:
    """Fits y = (x0 + x1, −x2), one input per step, with decay and clipping; returns the weights (2, 3)."""
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, correct_bias=True, max_grad_norm=0.9)
    for x in torch.from_numpy(inputs).float():
        optimizer.zero_grad()
        target = torch.stack([x[0] + x[1], -x[2]])
        (target - model(x)).square().sum().backward()
        optimizer.step()
    return model.weight.detach()


def ours() -> None:
    """The same start and inputs in float64 NumPy."""
    expected = golden_check.load("optimizer")
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(expected["start"]))
    golden_check.agree("the weights", regress(model, expected["inputs"]), expected["weight"])


def course() -> None:
    """The course's start and inputs, drawn from its seeds."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    random = np.random.default_rng(0)
    inputs = np.stack([random.uniform(size=3) for _ in range(1000)])
    golden_check.agree("the course's weights", regress(model, inputs), np.load(golden_check.ROOT / COURSE_FILES[0]))


if __name__ == "__main__":
    sys.exit(golden_check.run_check("Optimizer test passed!", ours, course, COURSE_FILES))
