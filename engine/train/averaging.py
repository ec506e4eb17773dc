"""Weighted means of models, WiSE-FT and model soups, and running averages of the weights of one training.

    python run_llama.py --option wise_ft --help
    python run_llama.py --option finetune --help        (--ema, --average, --proximal)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
Rate = Callable[[int], float]  # the weight of the newest model in a running average, by the number of steps so far


@torch.no_grad()
def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of parameters with equal names, each model with its weight: θ = Σᵢ wᵢ·θᵢ / Σᵢ wᵢ.

    Two models with weights 1 − α and α are WiSE-FT (Wortsman et al. 2022a, eq. 1), equal weights a uniform soup
    (Wortsman et al. 2022b, section 2). Sums are taken in float64; models of weight 0 are left out, so that a single
    weight returns its model exactly. Raises ValueError if names or shapes differ or the weights sum to nothing.
    """
    used = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight != 0.0]
    total = sum(weight for _, weight in used)
    if not used or total <= 0.0:
        raise ValueError(f"the weights {list(weights)} do not have a positive sum")
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states]
    for other in shapes[1:]:
        if other != shapes[0]:
            names = sorted(name for name in shapes[0] | other if shapes[0].get(name) != other.get(name))
            raise ValueError(f"the models differ in shape: {', '.join(names[:3])}")
    if len(used) == 1:
        return {name: tensor.clone() for name, tensor in used[0][0].items()}
    return {name: _mean([(state[name], weight / total) for state, weight in used]) for name in shapes[0]}


def _mean(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    summed = torch.stack([tensor.double() * weight for tensor, weight in parts]).sum(dim=0)
    return summed.to(parts[0][0].dtype)


def constant_rate(rate: float) -> Rate:
    """θ̄ₜ = rate·θₜ + (1 − rate)·θ̄ₜ₋₁, which begins with the weights before the first step."""
    return lambda step: rate


def decay_rate(decay: float) -> Rate:
    """θ̄ₜ = Σᵢ decayᵗ⁻ⁱ·θᵢ / Σᵢ decayᵗ⁻ⁱ over the steps i = 1 … t: bias-corrected, as Adam's moments (Kingma and Ba)."""
    return lambda step: (1.0 - decay) / (1.0 - decay**step)


def tail_rate(first: int) -> Rate:
    """The uniform mean of the weights after each step later than `first`; until then the newest weights."""
    return lambda step: 1.0 / max(1, step - first)


class RunningAverage:
    """θ̄ₜ = θ̄ₜ₋₁ + r(t)·(θₜ − θ̄ₜ₋₁) over a model's trained parameters, from θ̄₀ = θ₀; `rate` gives r(t).

    `weights` holds θ̄ by the parameters' names, and `state` what a run must save and restore in place.
    """

    def __init__(self, model: nn.Module, rate: Rate):
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.rate, self.steps = rate, torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        """The averaged weights and the number of steps."""
        return self.weights | {"steps": self.steps}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's weights after a step."""
        self.steps += 1
        rate = self.rate(int(self.steps))
        for name, parameter in self.parameters.items():
            self.weights[name].lerp_(parameter, rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the model while the block runs."""
        current = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._write(self.weights)
        try:
            yield
        finally:
            self._write(current)

    @torch.no_grad()
    def _write(self, state: State) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
