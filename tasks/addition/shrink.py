"""Shrinking an adder: one part after another fades out of a trained model (structured pruning).

A step removes one feed-forward unit of every layer or one feature of the residual stream. All choices train side by
side without their part, or while it fades to nothing, and the best of them goes on: small shapes that hardly any seed
learns from random weights are reached from a larger one that many seeds learn.

    python addition_run.py train --shrink 6:4:20000000 6:3:4000000 --dim 6 --hidden_dim 3
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from config import LlamaConfig

WRITES = ("tok_embeddings.weight", "attention.compute_output.weight", "feed_forward.w2.weight")  # to the stream
MOST = 256  # choices of one step
Places = dict[str, Tensor]  # where each value of each tensor stands in the flat parameters


@dataclass(frozen=True)
class Units:
    """One feed-forward unit of every layer. It goes at once: the others take its place soon.

    A part fades over the share `fading` of a step, and is gone in the rest.
    """

    of_layers: tuple[int, ...]
    fading: ClassVar[float] = 0.0

    def __str__(self) -> str:
        return "feed-forward units " + ", ".join(str(unit + 1) for unit in self.of_layers)

    def faded(self, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Places that fade to zero (n,), places that fade to a mean (m,), and those of that mean (m, others).

        The columns of w2 that add the units' outputs to the residual stream fade to zero.
        """
        tables = [places[f"layers.{layer}.feed_forward.w2.weight"] for layer in range(len(self.of_layers))]
        columns = [table[:, unit] for table, unit in zip(tables, self.of_layers, strict=True)]
        return torch.cat(columns), torch.empty(0, dtype=torch.long), torch.empty(0, 1, dtype=torch.long)

    def removed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the units' rows of w1 and w3 and columns of w2."""
        kept = dict(state)
        for layer, unit in enumerate(self.of_layers):
            for name, axis in (("w1", 0), ("w3", 0), ("w2", 1)):
                name = f"layers.{layer}.feed_forward.{name}.weight"
                kept[name] = _without(state[name], unit, axis)
        return kept


@dataclass(frozen=True)
class Feature:
    """One feature of the residual stream.

    What is written to it fades to the mean of the other features, so that LayerNorm makes it zero; its gains and biases
    fade to zero. Without it the variance is a mean over one feature less: the gains grow by √(dim / (dim − 1)).
    It fades while the learning rate is high, so that the model recovers after it is gone.
    """

    place: int
    fading: ClassVar[float] = 0.35

    def __str__(self) -> str:
        return f"feature {self.place + 1}"

    def faded(self, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Gains and biases fade to zero, what is written to the feature to the mean of the others."""
        read = torch.stack([table[self.place] for table in places.values() if table.dim() == 1])
        written = []  # (n, dim) of every tensor that writes to the stream
        for name, table in places.items():
            if name.endswith(WRITES):
                written.append(table if name == WRITES[0] else table.T)
        rows = torch.cat(written)
        return read, rows[:, self.place], _without(rows, self.place, 1)

    def removed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the feature in every tensor."""
        kept = {}
        for name, tensor in state.items():
            axis = 0 if name.endswith(WRITES[1:]) or tensor.dim() == 1 else 1
            kept[name] = _without(tensor, self.place, axis)
            if "norm" in name and name.endswith("weight"):
                kept[name] = kept[name] * math.sqrt(len(tensor) / (len(tensor) - 1))
        return kept


def _without(tensor: Tensor, place: int, axis: int) -> Tensor:
    kept = [index for index in range(tensor.shape[axis]) if index != place]
    return tensor.index_select(axis, torch.tensor(kept))


Part = Units | Feature


def choices(large: LlamaConfig, small: LlamaConfig) -> Sequence[Part]:
    """All parts whose removal leads from one shape to the next. Raises ValueError unless exactly one part goes."""
    width, units = large.dim - small.dim, large.ffn_dim - small.ffn_dim
    if (width, units) == (0, 1):
        if (count := large.ffn_dim**large.n_layers) > MOST:
            raise ValueError(f"--shrink would try {count:,} choices of units: at most {MOST} are trained side by side")
        return [Units(places) for places in itertools.product(range(large.ffn_dim), repeat=large.n_layers)]
    if (width, units) == (1, 0) and large.norm_type == "layernorm":
        return [Feature(place) for place in range(large.dim)]
    raise ValueError(
        f"--shrink goes from {large.dim}:{large.ffn_dim} to {small.dim}:{small.ffn_dim}: a step removes one "
        "feed-forward unit of every layer, or one feature of the width of a model with LayerNorm"
    )


class Fading:
    """Fades one part of each of several flat models, `seeds`; `shapes` names the tensors of a flat model in order."""

    def __init__(self, seeds: list[Tensor], parts: Sequence[Part], shapes: dict[str, tuple[int, ...]]):
        sizes = [math.prod(shape) for shape in shapes.values()]
        numbers = torch.arange(sum(sizes)).split(sizes)
        places = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), numbers, strict=True)}
        self.jobs = [(seed, part.fading, *part.faded(places)) for seed, part in zip(seeds, parts, strict=True)]

    @torch.no_grad()
    def __call__(self, step: int, total_steps: int) -> None:
        """After update `step` (from 1): scales each part so that it falls linearly to zero."""
        for seed, fading, to_zero, to_mean, others in self.jobs:
            before, now = (max(0.0, fading * total_steps - done) for done in (step - 1, step))
            factor = now / before if before else 0.0
            seed[to_zero] *= factor
            seed[to_mean] = torch.lerp(seed[others].mean(dim=1), seed[to_mean], factor)
