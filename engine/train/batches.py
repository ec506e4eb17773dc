"""Batches of examples of similar length, in an order that depends only on the seed and the epoch.

    python -c "from engine.train.batches import LengthBatches; print(LengthBatches([3, 9, 4, 8], 2).epoch(0))"
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LENGTH_NOISE = (1.5, 0.05)  # length jitter before sorting, so that batches differ between epochs


class LengthBatches:
    """Example numbers in batches of `batch_size`; `lengths` are the examples' tokens.

    The order of an epoch depends only on (seed, epoch): examples are sorted by their length plus a little noise and
    cut into batches, which are shuffled. Batches differ between epochs, and there is hardly any padding.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as example numbers."""
        random = np.random.default_rng((self.seed, epoch))
        stretched = self.lengths + random.uniform(0.0, LENGTH_NOISE[0] + LENGTH_NOISE[1] * self.lengths)
        batches = self._batched(np.argsort(stretched, kind="stable"))
        return [batches[index] for index in random.permutation(len(batches))]

    def longest_first(self) -> list[np.ndarray]:
        """Batches from the longest example to the shortest, so that a batch too large for memory fails first."""
        return self._batched(np.argsort(-self.lengths, kind="stable"))

    def in_file_order(self) -> list[np.ndarray]:
        """Batches in the order of the file, for models whose result depends on the batch."""
        return self._batched(np.arange(len(self.lengths)))

    def _batched(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
