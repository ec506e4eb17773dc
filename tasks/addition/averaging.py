"""Averaged weights: at every evaluation a model's weights become their mean since the evaluation before.

    python addition_run.py train --average_from 0.33
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Averaging:
    """Takes the mean of a model's weights over the steps between two evaluations, after a share `start` of the run.

    Steps of constant size scatter around a minimum, and their mean lies nearer to it (Polyak and Juditsky 1992). The
    run goes on from the mean, as from the slow weights of Lookahead (Zhang et al. 2019). `tensors` are saved with it.
    """

    def __init__(self, model: nn.Module, start: float):
        self.model, self.start = model, start
        total = torch.zeros_like(parameters_to_vector(model.parameters()).detach())
        self.tensors: dict[str, Tensor] = {"summed_weights": total, "summed_steps": torch.zeros(1, dtype=torch.int64)}

    @torch.no_grad()
    def after_update(self, step: int, total_steps: int) -> None:
        """Adds the weights after a step, counted from 1."""
        if step >= self.start * total_steps:
            self.tensors["summed_weights"] += parameters_to_vector(self.model.parameters())
            self.tensors["summed_steps"] += 1

    @torch.no_grad()
    def take_mean(self) -> None:
        """Gives the model the mean, if any weights were added, and begins a new one."""
        total, steps = self.tensors.values()
        if steps:
            vector_to_parameters(total / steps, self.model.parameters())
            total.zero_()
            steps.zero_()
