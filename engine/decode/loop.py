"""The decoding loop: one token at a time for a batch of prompts.

    python run_llama.py --option generate
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.decode.fast_step import DecodeStep, plain_step
from engine.decode.sampling import Sampler


@torch.inference_mode()
def stream(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler,
    generator: torch.Generator | None = None,
    eos_id: int | None = None,
    use_cache: bool = True,
    slide: int = 1,
    step: DecodeStep | None = None,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (batch,), up to `max_new_tokens` times.

    Prompts may differ in length; none attends to another or to padding. A row that has produced `eos_id` keeps
    producing it, and the loop ends when all rows have. When the context is full, the oldest `slide` tokens are dropped:
    1 is the course's loop, which must run the whole window for every token; a larger one does so once in `slide`
    tokens. `use_cache=False` always runs the whole window, and is the oracle of the cached loop. `step` decodes single
    tokens (default: the model itself). Raises ValueError for an empty prompt.
    """
    rows, first, end = left_padded(prompts, max_new_tokens, model.device)
    limit, capacity = model.config.max_seq_len, rows.shape[1]
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    cache = model.new_cache(len(prompts), min(limit, capacity)) if use_cache else None
    step = step or plain_step(model)
    starts: list[int] = []
    for column in range(end, end + max_new_tokens):
        previous, starts = starts, [start + window_start(column - start, limit, slide) for start in first]
        left = min(starts)
        mask = padding_mask(starts, left, column, model.device)
        if cache is None:
            logits, _ = model(rows[:, left:column], padding_mask=mask)
        elif starts == previous:
            logits = step(rows[:, column - 1 : column], cache, mask)
        else:
            cache.clear()
            logits, _ = model(rows[:, left:column], cache=cache, padding_mask=mask)
        chosen = sampler.choose(sampler.penalised(logits[:, -1], rows[:, :column]), generator)
        rows[:, column] = chosen = after_end(chosen, finished, eos_id)
        yield chosen
        if eos_id is not None and bool(finished.all()):
            return


def generate(
    model,
    idx: Tensor,
    max_new_tokens: int,
    sampler: Sampler,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continues idx (batch, seqlen) by `max_new_tokens`, as the course's loop does: (batch, seqlen + new)."""
    new = list(stream(model, idx.tolist(), max_new_tokens, sampler, generator, use_cache=use_cache))
    return torch.cat([idx, torch.stack(new, dim=1)], dim=1) if new else idx


def window_start(length: int, limit: int, slide: int) -> int:
    """Tokens dropped from the front of `length` tokens: the least multiple of `slide` that leaves at most `limit`.

    A `slide` of more than `limit` would drop every token; half the window is dropped then.
    """
    slide = slide if slide <= limit else max(1, limit // 2)
    return max(0, -(-(length - limit) // slide) * slide)


def after_end(chosen: Tensor, finished: Tensor, eos_id: int | None) -> Tensor:
    """The chosen tokens (batch,), EOS where a row is `finished` (batch,), which is updated in place."""
    if eos_id is None:
        return chosen
    chosen = torch.where(finished, eos_id, chosen)
    finished |= chosen == eos_id
    return chosen


def left_padded(prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> tuple[Tensor, list[int], int]:
    """Right-aligned prompts (batch, longest + room), the first column of each, and the longest's length.

    The padding repeats a prompt's first token, so that a row holds no token that its prompt does not.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; generation without a prompt starts with the BOS token")
    longest = max(len(prompt) for prompt in prompts)
    rows = torch.zeros(len(prompts), longest + room, dtype=torch.long, device=device)
    first = [longest - len(prompt) for prompt in prompts]
    for row, (start, prompt) in enumerate(zip(first, prompts, strict=True)):
        rows[row, :start] = prompt[0]
        rows[row, start:longest] = torch.as_tensor(prompt, device=device)
    return rows, first, longest


def padding_mask(starts: list[int], left: int, end: int, device: torch.device) -> Tensor | None:
    """True where a row's window has a token, (batch, end − left); None if there is no padding."""
    if all(start == left for start in starts):
        return None
    return torch.arange(left, end, device=device)[None] >= torch.tensor(starts, device=device)[:, None]
