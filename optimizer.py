"""AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019) as the course defines it, hand-written.

For a gradient g at step t:  m ← β1·m + (1−β1)·g,  v ← β2·v + (1−β2)·g²,
p ← p − lr·√(1−β2ᵗ)/(1−β1ᵗ) · m / (√v + eps)  (the "efficient" bias correction of Kingma and Ba, end of section 2),
then the decoupled decay  p ← p − lr·weight_decay·p.

    python optimizer_test.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamW(Optimizer):
    """AdamW with global-norm clipping per parameter group.

    `correct_bias=False` leaves out both bias corrections. `max_grad_norm` clips the global norm of a group's
    gradients; with `clip_each` every tensor is clipped by its own norm. `foreach=True` updates all tensors of a
    group in a few multi-tensor calls; `foreach=False` updates one tensor at a time and is the oracle of
    the fast path.

    Raises ValueError for a negative rate, a beta outside [0, 1) or a negative eps.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        max_grad_norm: float | None = None,
        foreach: bool = True,
        clip_each: bool = False,
    ):
        if lr < 0.0:
            raise ValueError(f"the learning rate must not be negative, but is {lr}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        if eps < 0.0:
            raise ValueError(f"eps must not be negative, but is {eps}")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        defaults |= {"correct_bias": correct_bias, "max_grad_norm": max_grad_norm, "foreach": foreach}
        defaults["clip_each"] = clip_each
        super().__init__(params, defaults)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("clip_each", False)  # absent in states of an earlier version

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Updates every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            clip = clip_by_own_norm if group["clip_each"] else clip_by_global_norm
            gradients = clip([parameter.grad for parameter in parameters], group["max_grad_norm"])
            if group["foreach"]:
                self._update_together(group, parameters, gradients)
            else:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    self._update_one(group, parameter, gradient)
        return loss

    def _state_of(self, parameter: Tensor) -> dict:
        """The parameter's state, with its step counter incremented."""
        if parameter.grad.is_sparse:
            raise RuntimeError("AdamW does not take sparse gradients")
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state

    @staticmethod
    def _step_size(group: dict, step: int) -> float:
        if not group["correct_bias"]:
            return group["lr"]
        beta1, beta2 = group["betas"]
        return group["lr"] * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)

    def _update_one(self, group: dict, parameter: Tensor, gradient: Tensor) -> None:
        state = self._state_of(parameter)
        beta1, beta2 = group["betas"]
        mean, mean_square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        mean_square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        step_size = self._step_size(group, state["step"])
        parameter.addcdiv_(mean, mean_square.sqrt().add_(group["eps"]), value=-step_size)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])

    def _update_together(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        beta1, beta2 = group["betas"]
        means = [state["exp_avg"] for state in states]
        mean_squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_mul_(mean_squares, beta2)
        torch._foreach_addcmul_(mean_squares, gradients, gradients, 1.0 - beta2)
        roots = torch._foreach_sqrt(mean_squares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, [-self._step_size(group, state["step"]) for state in states])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])


def clip_by_global_norm(gradients: list[Tensor], max_norm: float | None) -> list[Tensor]:
    """Scales the gradients to a global norm of at most `max_norm` (None: unchanged).

    The factor is max_norm / (norm + 1e-6) if that is below 1, as in `torch.nn.utils.clip_grad_norm_`. Returns new
    tensors; the gradients themselves do not change.
    """
    if max_norm is None:
        return gradients
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return list(torch._foreach_mul(gradients, factor))


def clip_by_own_norm(gradients: list[Tensor], max_norm: float | None) -> list[Tensor]:
    """`clip_by_global_norm` for each tensor separately."""
    if max_norm is None:
        return gradients
    factors = (max_norm / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)).clamp(max=1.0)
    return list(torch._foreach_mul(gradients, list(factors.unbind())))


def layer_groups(model: torch.nn.Module, layers: Sequence[torch.nn.Module], lr: float, decay: float) -> list[dict]:
    """Layer-wise rate decay (Howard and Ruder 2018; Clark et al. 2020): one parameter group per layer.

    `layers` go from the input to the output. The last one's rate is lr·decay, each earlier one's `decay` times the next
    one's, and the rate of what stands before them (the embedding, the model's first parameter) is one step lower still.
    All else, such as the final norm and the head, keeps `lr`. Frozen parameters are left out.
    """
    distances = [(layer, len(layers) - index) for index, layer in enumerate(layers)]
    steps = {id(parameter): distance for layer, distance in distances for parameter in layer.parameters()}
    steps[id(next(model.parameters()))] = len(layers) + 1
    groups: dict[int, list] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(steps.get(id(parameter), 0), []).append(parameter)
    return [{"params": params, "lr": lr * decay**step} for step, params in sorted(groups.items())]


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices decay, gains and biases do not. Frozen parameters are left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
