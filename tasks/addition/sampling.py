"""Problems as tensors, and the special ones that training draws more often: long carry chains, easy and hard problems.

    python addition_run.py train --nines 0.3 --zeros 0.5 --hard 0.3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.addition.problems import HIGH, pair_number


@dataclass(frozen=True)
class Problems:
    """Operands a and b, each (n,) int16 on the CPU."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Problems:
        """From operands as `sample_problems` returns them."""
        return cls(torch.from_numpy(a.astype(np.int16)), torch.from_numpy(b.astype(np.int16)))

    @classmethod
    def of_pairs(cls, pairs: list[tuple[int, int]]) -> Problems:
        """From pairs (a, b)."""
        return cls.of(*np.array(pairs).T)

    def __len__(self) -> int:
        return len(self.a)

    def at(self, index: Tensor | slice) -> Problems:
        """The problems at these indices."""
        return Problems(self.a[index], self.b[index])

    def numbers(self) -> np.ndarray:
        """The pair numbers, (n,) int64."""
        return pair_number(self.a.numpy().astype(np.int64), self.b.numpy().astype(np.int64))

    def rows(self, index: Tensor, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Operands at these indices as (size,) int64, padded with 1000+1000, and weights: 1, or 0 for padding.

        All batches have one size, so that the step is compiled once.
        """
        operands = []
        for numbers in (self.a, self.b):
            row = torch.full((size,), 1000)
            row[: len(index)] = numbers[index]
            operands.append(row.to(device))
        weights = (torch.arange(size) < len(index)).float()
        return operands[0], operands[1], weights.to(device)


class Batches(Sequence):
    """An epoch's problem indices in chunks: item i is (size,) int64; the last chunk may be shorter.

    In `order`, −1 − i stands for what is at place i of `hard` when the chunk is read.
    """

    def __init__(self, order: Tensor, size: int, hard: Tensor | None = None):
        self.order, self.size, self.hard = order, size, hard

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        chunk = self.order[place * self.size : (place + 1) * self.size].long()
        return chunk if self.hard is None else torch.where(chunk < 0, self.hard[-1 - chunk.clamp(max=-1)], chunk)


@dataclass(frozen=True)
class Shares:
    """Shares of training examples that are drawn from special problems: long carries, easy ones at first, hard ones.

    The share `nines` changes linearly to `nines_end` over the run (None: it stays), and `nines_by` names the groups of
    `travelling`. The share `zeros` falls linearly to none over `zeros_until` of the run. Hard are the training problems
    that the model answers wrong or nearly wrong.
    """

    nines: float = 0.0
    nines_end: float | None = None
    zeros: float = 0.0
    zeros_until: float = 0.5
    hard: float = 0.0
    nines_by: str = "count"


def travelling(problems: Problems, by: str = "count") -> list[Tensor]:
    """Groups of problems with long carry chains, as indices (n,) int32. Empty groups are left out.

    By "count": one, two and three lower columns that sum to nine. By "carry": a chain of one, two and three such
    columns above a column that sends a carry into it, or sends none; these six groups overlap.
    """
    kinds = torch.arange(3**4)
    columns = [kinds // 3**column % 3 for column in range(4)]  # from the right: below nine, nine, above nine
    if by == "count":
        nines = sum((column == 1).int() for column in columns[:3])
        found = [nines == count for count in (1, 2, 3)]
    else:
        found = []
        for length in (1, 2, 3):
            chains = [(columns[at], torch.stack(columns[at + 1 : at + 1 + length])) for at in range(4 - length)]
            for sends in (2, 0):
                found.append(torch.stack([(first == sends) & (chain == 1).all(0) for first, chain in chains]).any(0))
    of_problems = _kinds(problems)
    groups = [torch.nonzero(group.index_select(0, of_problems))[:, 0].int() for group in found]
    return [group for group in groups if len(group)]


def _kinds(problems: Problems) -> Tensor:
    """Whether each column sums to less than nine (0), nine (1) or more (2), as a number in base three, (n,) int32."""
    kinds = torch.zeros(len(problems), dtype=torch.int32)
    a, b = problems.a.int(), problems.b.int()
    for column in range(4):
        digits = (torch.arange(HIGH + 1) // 10**column % 10).to(torch.uint8)
        sums = digits.index_select(0, a) + digits.index_select(0, b)
        kinds += 3**column * ((sums >= 9).int() + (sums > 9).int())
    return kinds


def easy_problems(problems: Problems) -> Tensor:
    """Indices (n,) int32 of the problems with a zero in each lower column: their lower digits are copied, not added."""
    numbers = torch.arange(HIGH + 1)
    zeros = sum(2**column * (numbers // 10**column % 10 == 0) for column in range(3)).to(torch.uint8)
    in_either = zeros.index_select(0, problems.a.int()) | zeros.index_select(0, problems.b.int())
    return torch.nonzero(in_either == 7)[:, 0].int()


def generator_of(seed: int) -> torch.Generator:
    """A random generator of its own, from any whole number."""
    return torch.Generator().manual_seed(seed % 2**63)
