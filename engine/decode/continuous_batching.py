"""Continuous batching: when a row finishes, the next prompt takes its slot.

The oracle is `one_by_one`: every prompt continues as it would alone.

    python run_llama.py --option generate --prompt_file prompts.txt --batch_size 32 --num_samples 3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decode.fast_step import DecodeStep, plain_step
from engine.decode.loop import stream, window_start
from engine.decode.sampling import Sampler
from engine.model.kv_cache import KVCache

Finished = tuple[int, list[int]]  # index of the prompt, and its new tokens without EOS


@dataclass
class _Row:
    """A continuation in progress: its tokens, how many of the oldest were dropped, and its own random generator."""

    index: int
    prompt: int  # its length in tokens
    ids: list[int]
    generator: torch.Generator
    dropped: int = 0

    @property
    def cached(self) -> int:
        """Tokens in the cache: all that were not dropped, except the last, which the next step adds."""
        return len(self.ids) - self.dropped - 1


def one_by_one(
    model, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler: Sampler, seed: int,
    eos_id: int | None = None, slide: int = 1, use_cache: bool = True,
) -> Iterator[Finished]:  # fmt: skip
    """One prompt after the other; prompt i draws from a generator seeded with seed + i."""
    for index, prompt in enumerate(prompts):
        generator = torch.Generator(model.device).manual_seed(seed + index)
        steps = stream(model, [prompt], max_new_tokens, sampler, generator, eos_id, use_cache, slide)
        new = [int(step) for step in steps]
        yield index, new[:-1] if new and new[-1] == eos_id else new


def refilled(
    model, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler: Sampler, seed: int,
    eos_id: int | None = None, slide: int = 1, rows: int = 32, step: DecodeStep | None = None,
) -> Iterator[Finished]:  # fmt: skip
    """The results of `one_by_one`, each as it finishes, with up to `rows` prompts in parallel.

    Raises ValueError for an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; generation without a prompt starts with the BOS token")
    waiting = iter(enumerate(prompts))
    if max_new_tokens == 0:
        yield from ((index, []) for index, _ in waiting)
    longest = max(map(len, prompts), default=0) + max_new_tokens
    batch = _Batch(model, step or plain_step(model), min(rows, len(prompts)), longest, slide)
    while True:
        for slot in batch.free_slots():
            if (item := next(waiting, None)) is not None:
                index, prompt = item
                generator = torch.Generator(model.device).manual_seed(seed + index)
                batch.admit(slot, _Row(index, len(prompt), list(prompt), generator))
        if not batch.compact():
            return
        batch.step(sampler)
        for slot, row in enumerate(batch.rows):
            new = row.ids[row.prompt :]
            if new[-1] == eos_id or len(new) == max_new_tokens:
                batch.rows[slot] = None
                yield row.index, new[:-1] if new[-1] == eos_id else new


class _Batch:
    """Rows in progress and their right-aligned cache."""

    def __init__(self, model, decode: DecodeStep, rows: int, longest: int, slide: int):
        self.model, self.decode, self.limit, self.slide = model, decode, model.config.max_seq_len, slide
        self.cache: KVCache = model.new_cache(rows, min(longest, self.limit))
        self.rows: list[_Row | None] = [None] * rows  # in the cache's order; None: a free slot
        self.last: tuple[list[int], KVCache | None] = ([], None)

    def free_slots(self) -> list[int]:
        """Indices of the slots without a row."""
        return [slot for slot, row in enumerate(self.rows) if row is None]

    @torch.inference_mode()
    def admit(self, slot: int, row: _Row) -> None:
        """Puts a row into a slot and fills its cache with all tokens of its window except the last."""
        self.rows[slot] = row
        row.dropped = window_start(len(row.ids), self.limit, self.slide)
        known = row.ids[row.dropped : -1]
        if known and known != self.last[0]:  # several samples of one prompt run it once
            cache = self.model.new_cache(1, len(known))
            self.model.hidden_states(torch.tensor([known], device=self.model.device), cache)
            self.last = (known, cache)
        if len(known) > self.cache.length:
            self.cache.shift(len(known) - self.cache.length)
        if known:
            self.cache.put(slot, self.last[1])

    @torch.inference_mode()
    def compact(self) -> bool:
        """Removes free slots, and leading columns that no row uses; returns False if no row is left."""
        kept = [slot for slot, row in enumerate(self.rows) if row is not None]
        self.rows = [self.rows[slot] for slot in kept]
        if not kept:
            return False
        self.cache.reorder(torch.tensor(kept, device=self.model.device))
        unused = min(self._starts())
        if 2 * unused > self.cache.length or self.cache.length == self.cache.capacity:
            self.cache.shift(-unused)
        return True

    def _starts(self) -> list[int]:
        return [self.cache.length - row.cached for row in self.rows]

    def _ids(self) -> Tensor:
        """All tokens of each row (rows, longest), padded with the row's first."""
        longest = max(len(row.ids) for row in self.rows)
        padded = [row.ids + row.ids[:1] * (longest - len(row.ids)) for row in self.rows]
        return torch.tensor(padded, device=self.model.device)

    @torch.inference_mode()
    def step(self, sampler: Sampler) -> None:
        """Adds a token to every row, drawn with the row's own generator, so that no row depends on another."""
        starts, device = self._starts(), self.model.device
        tokens = torch.tensor([row.ids[-1:] for row in self.rows], device=device)
        columns = torch.arange(self.cache.length + 1, device=device)
        mask = columns >= torch.tensor(starts, device=device)[:, None] if any(starts) else None
        logits = self.decode(tokens, self.cache, mask)[:, -1]
        if sampler.repetition_penalty is not None:
            logits = sampler.penalised(logits, self._ids())
        chosen = sampler.choose(logits, [row.generator for row in self.rows]).tolist()
        for slot, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            row.ids.append(token)
            if window_start(len(row.ids), self.limit, self.slide) != row.dropped:
                self.admit(slot, row)
