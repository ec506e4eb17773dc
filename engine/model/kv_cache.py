"""A preallocated key/value cache.

The oracle is the same model without a cache: `stream(..., use_cache=False)` in `engine.decode.loop`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from config import LlamaConfig


class KVCache:
    """Keys and values of all layers, each (n_layers, batch, n_kv_heads, capacity, head_dim), filled from the left."""

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Number of tokens that fit."""
        return self.keys.shape[3]

    def _check(self, end: int) -> None:
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were asked for")

    def update(self, layer_id: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends key and value (batch, n_kv_heads, new, head_dim) to a layer; returns all of the layer's so far.

        `advance` moves `length` on, once for all layers. Raises ValueError when the cache is full.
        """
        end = self.length + key.shape[2]
        self._check(end)
        self.keys[layer_id, :, :, self.length : end] = key
        self.values[layer_id, :, :, self.length : end] = value
        return self.keys[layer_id, :, :, :end], self.values[layer_id, :, :, :end]

    def slots(self, window: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each layer, the slots (batch, n_kv_heads, head_dim) of the next key and value, and all up to them.

        With a `window`, only the last that many are returned.
        Raises ValueError when the cache is full.
        """
        self._check(self.length + 1)
        new = (cached.select(3, self.length).unbind() for cached in (self.keys, self.values))
        start = max(0, self.length + 1 - window) if window is not None else 0
        seen = (cached[:, :, :, start : self.length + 1].unbind() for cached in (self.keys, self.values))
        return zip(*new, *seen, strict=True)

    def advance(self, new: int) -> None:
        """Counts `new` tokens as cached, after every layer has stored them."""
        self.length += new

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes the former row rows[i], rows (new batch,): beam search keeps some rows and copies others."""
        if len(rows) == self.keys.shape[1] and rows.tolist() == list(range(len(rows))):
            return
        filled = (slice(None), slice(None), slice(None), slice(self.length))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], len(rows), *old.shape[2:])
            new[filled] = old[filled][:, rows]
            setattr(self, name, new)

    def copy_last(self, rows: Tensor) -> None:
        """Row i takes the last token of row rows[i], rows (batch,): contrastive search keeps one candidate."""
        for cached in (self.keys, self.values):
            cached[:, :, :, self.length - 1] = cached[:, rows, :, self.length - 1]

    def shift(self, by: int) -> None:
        """Moves all rows `by` columns to the right, or to the left if negative, dropping what falls out.

        After a move to the right the first columns hold nothing and must be masked. Raises ValueError beyond capacity.
        """
        self._check(self.length + by)
        for cached in (self.keys, self.values):
            moved = cached[:, :, :, max(0, -by) : self.length].clone()
            cached[:, :, :, max(0, by) : self.length + by] = moved
        self.length += by

    def put(self, row: int, other: KVCache) -> None:
        """Copies a one-row cache into `row`, right-aligned."""
        columns = slice(self.length - other.length, self.length)
        self.keys[:, row, :, columns] = other.keys[:, 0, :, : other.length]
        self.values[:, row, :, columns] = other.values[:, 0, :, : other.length]

    def clear(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.length = 0
