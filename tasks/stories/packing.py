"""Sequence packing: best-fit documents into rows; attention stays within a document unless `crossing`.

    python run_llama.py --option pretrain --packing separate --corpus TEXT --tokenizer FILE --save_dir runs/packed
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import torch
from torch import Tensor

from tasks.stories.data import StoryBatches, TokenFile


def best_fit(lengths: np.ndarray, room: int, random: np.random.Generator) -> list[list[int]]:
    """Best-fit decreasing bin packing of pieces into rows of `room` tokens; ties are broken at random.

    Returns the indices of each row's pieces. Raises ValueError for a piece that is longer than a row.
    """
    if len(lengths) and lengths.max() > room:
        raise ValueError(f"a piece of {lengths.max()} tokens is longer than a row of {room}")
    order = random.permutation(len(lengths))
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # free tokens -> rows with that many
    rooms: list[int] = []  # the sorted keys of `free`
    for piece in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[piece])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, left = len(rows), room
            rows.append([])
        else:
            left = rooms[place]
            row = free[left].pop()
            if not free[left]:
                del free[left], rooms[place]
        rows[row].append(piece)
        if left := left - length:
            if left not in free:
                insort(rooms, left)
            free.setdefault(left, []).append(row)
    return rows


class PackedBatches(StoryBatches):
    """`StoryBatches` with several documents per row of `max_seq_len` tokens, packed once for all epochs.

    `documents` numbers them, so that attention and positions stay within a document and its loss is the same as in a
    row of its own. With `crossing` a row is one text: a document also attends to those before it.
    """

    def __init__(
        self, data: TokenFile, documents: np.ndarray, max_seq_len: int, tokens_per_batch: int, seed: int,
        crossing: bool = False,
    ):  # fmt: skip
        super().__init__(data, documents, max_seq_len, tokens_per_batch, seed)
        self.crossing = crossing
        lengths = self.rows[:, 1] - self.rows[:, 0] - 1
        self.packed = best_fit(lengths, max_seq_len, np.random.default_rng(seed))

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The packed rows of each batch of an epoch, in random order."""
        return self._divided(np.random.default_rng((self.seed, epoch)).permutation(len(self.packed)))

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.packed) // self._rows_per_batch)

    def in_order(self) -> list[np.ndarray]:
        """All packed rows in order, for evaluation."""
        return self._divided(np.arange(len(self.packed)))

    @property
    def _rows_per_batch(self) -> int:
        return max(1, self.tokens_per_batch // self.max_seq_len)

    def _divided(self, order: np.ndarray) -> list[np.ndarray]:
        size = self._rows_per_batch
        return [order[start : start + size] for start in range(0, len(order), size)]

    def contents(self, batch: np.ndarray) -> list[np.ndarray]:
        """For each row of a batch, its pieces as rows of `rows`."""
        return [self.rows[self.packed[number]] for number in batch]

    def documents(self, batch: np.ndarray) -> Tensor | None:
        """Document ids (rows, width): each token's piece within its row, from 1; 0 is padding. None with `crossing`.
        """
        if self.crossing:
            return None
        contents = self.contents(batch)
        numbers = np.zeros((len(contents), self.width(contents)), dtype=np.int64)
        for row, pieces in enumerate(contents):
            lengths = pieces[:, 1] - pieces[:, 0] - 1
            numbers[row, : lengths.sum()] = np.repeat(np.arange(1, len(pieces) + 1), lengths)
        return torch.from_numpy(numbers)
