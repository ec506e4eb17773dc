"""Muon for models whose parameters are one flat vector each, as `SideBySide` has them.

    python addition_run.py train --optimizer muon --seeds 6
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from engine.train.muon import orthogonalise
from engine.train.state import MOMENTS
from optimizer import AdamW
from tasks.addition.native_step import NativeStep

MOMENTUM = 0.95
SCALE = 0.2  # of the step, so that AdamW's learning rates apply


class FlatMuon(AdamW):
    """Muon's update for the matrices of the layers, AdamW's for the embedding, gains and biases.

    `shapes` names the tensors of one flat parameter in their order. The update is that of `engine.train.muon.Muon`
    in the parameters' own precision; all matrices of one shape, of all seeds, are orthogonalised together.
    """

    moments = (*MOMENTS, "momentum")  # of each parameter in a saved state

    def __init__(self, params: Iterable, shapes: dict[str, tuple[int, ...]], **options):
        super().__init__(params, **options)
        self.matrices: dict[tuple[int, ...], list[slice]] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            if name.startswith("layers.") and len(shape) == 2:
                self.matrices.setdefault(tuple(shape), []).append(slice(start, stop))
            start = stop

    def _update_together(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        before = torch.stack(parameters) * (1.0 - group["lr"] * group["weight_decay"])
        super()._update_together(group, parameters, gradients)  # its result stays for all but the matrices
        states = [self.state[parameter] for parameter in parameters]
        momenta = [state.setdefault("momentum", torch.zeros_like(state["exp_avg"])) for state in states]
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))
        for shape, slices in self.matrices.items():
            stacked = torch.cat([ahead[:, part] for part in slices]).view(-1, *shape)  # (matrices · seeds, out, in)
            moves = orthogonalise(stacked, dtype=stacked.dtype).reshape(len(slices), len(parameters), -1)
            rate = SCALE * group["lr"] * max(shape) ** 0.5
            for part, move in zip(slices, moves, strict=True):
                for parameter, values in zip(parameters, before[:, part] - rate * move, strict=True):
                    parameter[part] = values

    @torch.no_grad()
    def compiled_step(self, native: NativeStep, a: Tensor, b: Tensor, targets: int) -> float:
        """Gradient, clipping and update of every seed by `native`; returns the mean loss of the seeds.

        Operands (n,) int64. The same as a backward pass and `step`, without their overhead.
        """
        group = self.param_groups[0]
        batch = a, b, torch.full((len(a),), 1.0 / targets)
        jobs = []
        for parameter in group["params"]:
            state = self.state[parameter]
            if not state:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq", "momentum")}
                state.update({"step": 0} | zeros)
            state["step"] += 1
            jobs.append((parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["momentum"]))
        lr, beta1, beta2 = group["lr"], *group["betas"]
        size, decay = self._step_size(group, self.state[group["params"][0]]["step"]), lr * group["weight_decay"]
        rates = [size, group["eps"], beta1, beta2, group["max_grad_norm"] or 0.0, decay, MOMENTUM, SCALE * lr]
        losses = native.updates(jobs, batch, torch.tensor(rates))
        return sum(losses) / len(losses)
