"""Weighted means of models: WiSE-FT and model soups.

    python run_llama.py --option wise_ft --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


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
