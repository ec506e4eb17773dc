"""The decoding loops, over any model that maps (tokens, cache, padding_mask) to (logits, hidden states).

`stream` chooses a token at a time for each row, `beam` searches for the likeliest continuation of one prompt.

    python run_llama.py --option generate
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (batch,), up to `max_new_tokens` times.

    Prompts may differ in length; none sees another or the padding beside it. A row that has produced `eos_id` goes
    on producing it, and the loop ends when all rows have. Beyond `max_seq_len` tokens the oldest are forgotten,
    `slide` at a time: 1 is the course's loop, which must then run the whole window for every token; a larger one
    does so once in `slide` tokens. `use_cache=False` runs the whole window for every token, always, and is the
    oracle of the cached loop. Raises ValueError for an empty prompt.
    """
    rows, first, end = _left_padded(prompts, max_new_tokens, model.device)
    limit, capacity = model.config.max_seq_len, rows.shape[1]
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    cache = model.new_cache(len(prompts), min(limit, capacity)) if use_cache else None
    starts: list[int] = []
    for column in range(end, end + max_new_tokens):
        previous, starts = starts, [start + window_start(column - start, limit, slide) for start in first]
        left = min(starts)
        mask = _padding_mask(starts, left, column, model.device)
        if cache is None:
            logits, _ = model(rows[:, left:column], padding_mask=mask)
        elif starts == previous:
            logits = model.step(rows[:, column - 1 : column], cache, mask, greedy=sampler.temperature == 0.0)
        else:
            cache.clear()
            logits, _ = model(rows[:, left:column], cache=cache, padding_mask=mask)
        chosen = sampler.choose(logits[:, -1], generator)
        if eos_id is not None:
            chosen = torch.where(finished, eos_id, chosen)
            finished |= chosen == eos_id
        rows[:, column] = chosen
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


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens (with EOS, if it ended), log-probability in nats, and log_prob / length^penalty."""

    tokens: list[int]
    log_prob: float
    score: float


@dataclass
class _Beam:
    """The hypotheses of a search, likeliest first, in tensors of one row each."""

    tokens: Tensor  # (rows, prompt + room)
    log_probs: Tensor  # (rows,) float64
    lengths: Tensor  # (rows,) new tokens
    ended: Tensor  # (rows,) boolean


@torch.inference_mode()
def beam(
    model,
    prompt: Sequence[int],
    width: int,
    max_new_tokens: int,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
    n_best: int = 1,
    use_cache: bool = True,
    slide: int = 1,
) -> list[Hypothesis]:
    """Beam search (Sutskever et al. 2014, section 3.2): the `n_best` of the `width` hypotheses kept, best first.

    A hypothesis is judged by log_prob / length^length_penalty (0: its probability; 1: that of its mean token). One
    that has produced `eos_id` stays in the beam as it is; the search ends when all have, or after `max_new_tokens`.
    Width 1 is greedy. The window slides as in `stream`, and `use_cache=False` is the oracle of the cached search.
    Raises ValueError for an empty prompt or a number out of range.
    """
    if not 1 <= n_best <= width or not length_penalty >= 0.0:
        raise ValueError(f"no beam of width {width} with {n_best} best and length penalty {length_penalty}")
    rows, _, end = _left_padded([prompt], max_new_tokens, model.device)
    zeros = torch.zeros(1, dtype=torch.long, device=model.device)
    found = _Beam(rows, zeros.double(), zeros, zeros.bool())
    limit = model.config.max_seq_len
    cache, seen = model.new_cache(1, min(limit, rows.shape[1])) if use_cache else None, -1
    for column in range(end, end + max_new_tokens):
        left = window_start(column, limit, slide)
        fed = slice(column - 1 if cache is not None and left == seen else left, column)
        if cache is not None and left != seen:
            cache = model.new_cache(len(found.tokens), min(limit, rows.shape[1]))
        logits, _ = model(found.tokens[:, fed], **({} if cache is None else {"cache": cache}))
        found, origins = _extended(found, logits[:, -1], column, width, eos_id, length_penalty)
        seen = left
        if cache is not None:
            cache.reorder(origins)
        if bool(found.ended.all()):
            break
    scores = _scores(found.log_probs, found.lengths, length_penalty).tolist()
    lengths, log_probs = found.lengths.tolist(), found.log_probs.tolist()
    new = [tokens[end : end + length] for tokens, length in zip(found.tokens.tolist(), lengths, strict=True)]
    return [Hypothesis(*parts) for parts in zip(new, log_probs, scores, strict=True)][:n_best]


def _scores(log_probs: Tensor, lengths: Tensor, length_penalty: float) -> Tensor:
    """log_prob / length^penalty (Wu et al. 2016, eq. 14, with the plain length, as in transformers)."""
    return log_probs / lengths.clamp(min=1).double() ** length_penalty


def _extended(
    found: _Beam, logits: Tensor, column: int, width: int, eos_id: int | None, length_penalty: float
) -> tuple[_Beam, Tensor]:
    """The best `width` of all continuations by one token at `column`, and the rows they come from (new rows,).

    An ended hypothesis has one continuation: itself, with another EOS that counts nothing.
    """
    steps = logits.double().log_softmax(dim=-1)  # (rows, vocab)
    lengths = found.lengths + ~found.ended
    if eos_id is not None:
        steps = steps.masked_fill(found.ended[:, None], -torch.inf)
        steps[:, eos_id] = steps[:, eos_id].masked_fill(found.ended, 0.0)
    totals = found.log_probs[:, None] + steps
    scores = _scores(totals, lengths[:, None], length_penalty).flatten()
    chosen = scores.topk(min(width, int(scores.isfinite().sum()))).indices
    origins, tokens = chosen // logits.shape[1], chosen % logits.shape[1]
    rows = found.tokens[origins]
    rows[:, column] = tokens
    ended = found.ended[origins]
    if eos_id is not None:
        ended = ended | (tokens == eos_id)
    return _Beam(rows, totals.flatten()[chosen], lengths[origins], ended), origins


def window_start(length: int, limit: int, slide: int) -> int:
    """How many of the oldest of `length` tokens are forgotten: the least multiple of `slide` that leaves `limit`."""
    return max(0, -(-(length - limit) // slide) * slide)


def _left_padded(
    prompts: Sequence[Sequence[int]], room: int, device: torch.device
) -> tuple[Tensor, list[int], int]:
    """Prompts aligned at their ends (batch, longest + room), the column each starts in, and the longest's length."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; generation from nothing starts with the BOS token")
    longest = max(len(prompt) for prompt in prompts)
    rows = torch.zeros(len(prompts), longest + room, dtype=torch.long, device=device)
    first = [longest - len(prompt) for prompt in prompts]
    for row, (start, prompt) in enumerate(zip(first, prompts, strict=True)):
        rows[row, start:longest] = torch.as_tensor(prompt, device=device)
    return rows, first, longest


def _padding_mask(starts: list[int], left: int, end: int, device: torch.device) -> Tensor | None:
    """True where a row's window has a token, (batch, end − left); None where it has one everywhere."""
    if all(start == left for start in starts):
        return None
    return torch.arange(left, end, device=device)[None] >= torch.tensor(starts, device=device)[:, None]
