"""Many prompts, so many at a time: the place of a continuation that has ended is taken by the next prompt.

The oracle is `one_by_one`: each prompt continues as it would alone.

    python run_llama.py --option generate --prompt_file prompts.txt --batch_size 32 --num_samples 3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.decode.loop import stream, window_start
from engine.decode.sampling import Sampler
from engine.model.kv_cache import KVCache

Finished = tuple[int, list[int]]  # which prompt, and its new tokens, EOS left out


@dataclass
class _Row:
    """A continuation under way: its tokens, of which the oldest `left` are forgotten, and its own random draws."""

    index: int
    prompt: int  # tokens
    ids: list[int]
    generator: torch.Generator
    left: int = 0

    @property
    def seen(self) -> int:
        """Tokens that stand in the cache: those remembered but the last, which the next step adds."""
        return len(self.ids) - self.left - 1


def one_by_one(
    model, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler: Sampler, seed: int,
    eos_id: int | None = None, slide: int = 1, use_cache: bool = True,
) -> Iterator[Finished]:  # fmt: skip
    """Each prompt in turn, alone; prompt i draws from a generator seeded with seed + i."""
    for index, prompt in enumerate(prompts):
        generator = torch.Generator(model.device).manual_seed(seed + index)
        steps = stream(model, [prompt], max_new_tokens, sampler, generator, eos_id, use_cache, slide)
        new = [int(step) for step in steps]
        yield index, new[:-1] if new and new[-1] == eos_id else new


def refilled(
    model, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler: Sampler, seed: int,
    eos_id: int | None = None, slide: int = 1, rows: int = 32,
) -> Iterator[Finished]:  # fmt: skip
    """What `one_by_one` yields, each as it ends, with up to `rows` prompts at once.

    Raises ValueError for an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; generation from nothing starts with the BOS token")
    waiting = iter(enumerate(prompts))
    if max_new_tokens == 0:
        yield from ((index, []) for index, _ in waiting)
    batch = _Batch(model, min(rows, len(prompts)), max(map(len, prompts), default=0) + max_new_tokens, slide)
    while True:
        for place in batch.free():
            if (item := next(waiting, None)) is not None:
                index, prompt = item
                generator = torch.Generator(model.device).manual_seed(seed + index)
                batch.admit(place, _Row(index, len(prompt), list(prompt), generator))
        if not batch.close_ranks():
            return
        batch.step(sampler)
        for place, row in enumerate(batch.rows):
            new = row.ids[row.prompt :]
            if new[-1] == eos_id or len(new) == max_new_tokens:
                batch.rows[place] = None
                yield row.index, new[:-1] if new[-1] == eos_id else new


class _Batch:
    """Rows under way and their cache, in which all end in the same column and start where they may."""

    def __init__(self, model, rows: int, longest: int, slide: int):
        self.model, self.limit, self.slide = model, model.config.max_seq_len, slide
        self.cache: KVCache = model.new_cache(rows, min(longest, self.limit))
        self.rows: list[_Row | None] = [None] * rows  # as in the cache; None: free
        self.last: tuple[list[int], KVCache | None] = ([], None)

    def free(self) -> list[int]:
        """The places without a row."""
        return [place for place, row in enumerate(self.rows) if row is None]

    @torch.inference_mode()
    def admit(self, place: int, row: _Row) -> None:
        """Gives a row a place, and computes what the cache holds of it: all that its window has but the last token."""
        self.rows[place] = row
        row.left = window_start(len(row.ids), self.limit, self.slide)
        known = row.ids[row.left : -1]
        if known and known != self.last[0]:  # the samples of one prompt run it once
            cache = self.model.new_cache(1, len(known))
            self.model.hidden_states(torch.tensor([known], device=self.model.device), cache)
            self.last = (known, cache)
        if len(known) > self.cache.length:
            self.cache.shift(len(known) - self.cache.length)
        if known:
            self.cache.put(place, self.last[1])

    @torch.inference_mode()
    def close_ranks(self) -> bool:
        """Lets go of places that stayed free, and of columns that no row uses; False if no row is left."""
        kept = [place for place, row in enumerate(self.rows) if row is not None]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return False
        self.cache.reorder(torch.tensor(kept, device=self.model.device))
        unused = min(self._starts())
        if 2 * unused > self.cache.length or self.cache.length == self.cache.capacity:
            self.cache.shift(-unused)
        return True

    def _starts(self) -> list[int]:
        return [self.cache.length - row.seen for row in self.rows]

    @torch.inference_mode()
    def step(self, sampler: Sampler) -> None:
        """Adds a token to every row, drawn with the row's own generator, so that none depends on the others."""
        starts, device = self._starts(), self.model.device
        tokens = torch.tensor([row.ids[-1:] for row in self.rows], device=device)
        columns = torch.arange(self.cache.length + 1, device=device)
        mask = columns >= torch.tensor(starts, device=device)[:, None] if any(starts) else None
        greedy = sampler.temperature == 0.0
        logits = self.model.step(tokens, self.cache, mask, greedy=greedy)[:, -1]
        if greedy:
            chosen = sampler.choose(logits).tolist()
        else:
            chosen = [int(sampler.choose(one[None], row.generator)) for one, row in zip(logits, self.rows, strict=True)]
        for place, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            row.ids.append(token)
            if window_start(len(row.ids), self.limit, self.slide) != row.left:
                self.admit(place, row)
