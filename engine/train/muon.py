"""Muon for hidden matrices, AdamW for everything else (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

A hidden matrix moves along its orthogonalised momentum: U·Vᵀ of the singular value decomposition U·S·Vᵀ, approximated
by Newton-Schulz iterations, so that every direction learns at the same pace. The step is scaled by
0.2·√max(rows, columns), so that AdamW's learning rates and decay apply (Liu et al. 2025, "Muon is scalable", eq. 4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optimizer import AdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate U·Vᵀ of each matrix (count, rows, columns): singular values end between 0.7 and 1.2.

    Quintic Newton-Schulz iteration X ← a·X + (b·X·Xᵀ + c·(X·Xᵀ)²)·X in `dtype`, on the wide orientation.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(AdamW):
    """AdamW; groups with `orthogonal=True` use Muon's update with Nesterov momentum `betas[0]`."""

    def _update_together(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if not group.get("orthogonal"):
            super()._update_together(group, parameters, gradients)
            return
        momenta = [self._state_of(parameter)["exp_avg"] for parameter in parameters]
        beta = group["betas"][0]
        torch._foreach_lerp_(momenta, gradients, 1.0 - beta)
        ahead = torch._foreach_lerp(gradients, momenta, beta)
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        for same_shape in _by_shape(parameters):
            moves = orthogonalise(torch.stack([ahead[index] for index in same_shape]))
            rate = -0.2 * group["lr"] * max(moves.shape[1:]) ** 0.5
            for index, move in zip(same_shape, moves, strict=True):
                parameters[index].add_(move, alpha=rate)


def muon_groups(model: nn.Module, weight_decay: float, momentum: float = 0.95) -> list[dict]:
    """Parameter groups for `Muon`: hidden matrices; embeddings; gains and biases (which do not decay).

    Frozen parameters are left out.
    """
    hidden, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            vectors.append(parameter)
        else:
            (hidden if name.startswith("layers.") else embeddings).append(parameter)
    orthogonal = {"params": hidden, "weight_decay": weight_decay, "orthogonal": True, "betas": (momentum, 0.0)}
    return [
        orthogonal,
        {"params": embeddings, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _by_shape(tensors: list[Tensor]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape, []).append(index)
    return list(groups.values())
