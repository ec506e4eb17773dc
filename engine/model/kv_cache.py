"""A preallocated key/value cache: the keys and values of every token seen so far, so that none is computed twice.

The oracle of everything here is the same model run without a cache (`decoding.generate(..., use_cache=False)`).
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
        self.ahead: list[tuple[int, int, Tensor]] = []  # beyond length: place, token, logits after it; see `drafting`

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return self.keys.shape[3]

    def update(self, layer_id: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes key and value (batch, n_kv_heads, new, head_dim) behind what is there; returns all of the layer's.

        `length` moves on in `advance`, once for all layers. Raises ValueError when the cache is full.
        """
        self.ahead.clear()
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were asked for")
        self.keys[layer_id, :, :, self.length : end] = key
        self.values[layer_id, :, :, self.length : end] = value
        return self.keys[layer_id, :, :, :end], self.values[layer_id, :, :, :end]

    def slots(self, place: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each layer the places (batch, n_kv_heads, head_dim) of a key and a value, and all of them so far.

        Raises ValueError when the cache is full.
        """
        self.ahead.clear()
        if place >= self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {place + 1} were asked for")
        new = (kept.select(3, place).unbind() for kept in (self.keys, self.values))
        seen = (kept.narrow(3, 0, place + 1).unbind() for kept in (self.keys, self.values))
        return zip(*new, *seen, strict=True)

    def stretches(self, place: int, new: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """`slots` for `new` tokens of the one row of a cache: the places are (new, n_kv_heads, head_dim)."""
        self.ahead.clear()
        if place + new > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {place + new} were asked for")
        fresh = (kept[:, 0].narrow(2, place, new).transpose(1, 2).unbind() for kept in (self.keys, self.values))
        seen = (kept.narrow(3, 0, place + new).unbind() for kept in (self.keys, self.values))
        return zip(*fresh, *seen, strict=True)

    def advance(self, new: int) -> None:
        """Counts `new` tokens as seen, after every layer has written them."""
        self.length += new

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, rows (new batch,): a beam search keeps some rows and splits others."""
        if len(rows) == self.keys.shape[1] and rows.tolist() == list(range(len(rows))):
            return
        self.ahead.clear()
        filled = (slice(None), slice(None), slice(None), slice(self.length))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], len(rows), *old.shape[2:])
            new[filled] = old[filled][:, rows]
            setattr(self, name, new)

    def shift(self, by: int) -> None:
        """Moves all rows by so many columns to the right, or to the left if negative; what falls out is forgotten.

        The first columns then hold nothing that may be seen. Raises ValueError where the cache is too small.
        """
        self.ahead.clear()
        if self.length + by > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {self.length + by} were asked for")
        for kept in (self.keys, self.values):
            moved = kept[:, :, :, max(0, -by) : self.length].clone()
            kept[:, :, :, max(0, by) : self.length + by] = moved
        self.length += by

    def put(self, row: int, other: KVCache) -> None:
        """Writes the one row of another cache, of no more tokens, into `row`, so that it ends where all end."""
        self.ahead.clear()
        columns = slice(self.length - other.length, self.length)
        self.keys[:, row, :, columns] = other.keys[:, 0, :, : other.length]
        self.values[:, row, :, columns] = other.values[:, 0, :, : other.length]

    def clear(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.length = 0
        self.ahead.clear()
