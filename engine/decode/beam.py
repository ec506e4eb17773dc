"""Beam search over any model that maps tokens and a cache to logits.

    python run_llama.py --option generate --beams 5
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decode.loop import left_padded, padding_mask, window_start


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens (EOS included), log-probability in nats, and log_prob / length^penalty."""

    tokens: list[int]
    log_prob: float
    score: float


@dataclass
class _Beams:
    """The hypotheses of every prompt, most likely first; a log-probability of −inf marks a row without one."""

    tokens: Tensor  # (batch, rows, prompt + room)
    log_probs: Tensor  # (batch, rows) float64
    lengths: Tensor  # (batch, rows) new tokens
    ended: Tensor  # (batch, rows) boolean


def beam(model, prompt: Sequence[int], *options, **more) -> list[Hypothesis]:
    """`beams` for one prompt."""
    return beams(model, [prompt], *options, **more)[0]


@torch.inference_mode()
def beams(
    model,
    prompts: Sequence[Sequence[int]],
    width: int,
    max_new_tokens: int,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
    n_best: int = 1,
    use_cache: bool = True,
    slide: int = 1,
) -> list[list[Hypothesis]]:
    """Beam search (Sutskever et al. 2014, section 3.2): for each prompt the `n_best` of `width` hypotheses, best first.

    A hypothesis is scored by log_prob / length^length_penalty (0: total log-probability; 1: mean per token). A finished
    hypothesis stays in the beam; the search ends when all have produced `eos_id`, or after `max_new_tokens`. Width 1 is
    greedy. The window slides as in `stream`, and `use_cache=False` is the oracle of the cached search. Raises
    ValueError for an empty prompt or a number out of range.
    """
    if not 1 <= n_best <= width or not length_penalty >= 0.0:
        raise ValueError(f"no beam of width {width} with {n_best} best and length penalty {length_penalty}")
    rows, first, end = left_padded(prompts, max_new_tokens, model.device)
    zeros = torch.zeros(len(prompts), 1, dtype=torch.long, device=model.device)
    state = _Beams(rows[:, None], zeros.double(), zeros, zeros.bool())
    limit = model.config.max_seq_len
    cache, starts = None, []
    for column in range(end, end + max_new_tokens):
        previous, starts = starts, [start + window_start(column - start, limit, slide) for start in first]
        left, flat = min(starts), state.tokens.flatten(0, 1)  # (batch · rows, prompt + room)
        mask = padding_mask(starts, left, column, model.device)
        if use_cache and starts != previous:
            cache = model.new_cache(len(flat), min(limit, rows.shape[1]))
        fed = slice(column - 1 if use_cache and starts == previous else left, column)
        options = {"cache": cache} if use_cache else {}
        if mask is not None:
            options["padding_mask"] = mask.repeat_interleave(state.tokens.shape[1], dim=0)
        logits, _ = model(flat[:, fed], **options)
        state, origins = _extended(state, logits[:, -1], column, width, eos_id, length_penalty)
        if cache is not None:
            cache.reorder(origins)
        if bool(state.ended.all()):
            break
    return _best(state, end, n_best, length_penalty)


def _best(state: _Beams, end: int, n_best: int, length_penalty: float) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each prompt; their new tokens begin at column `end`."""
    scores = _scores(state.log_probs, state.lengths, length_penalty)
    best: list[list[Hypothesis]] = []
    for prompt, rows in enumerate(state.tokens.tolist()):
        lengths, log_probs = state.lengths[prompt].tolist(), state.log_probs[prompt].tolist()
        columns = zip(rows, lengths, log_probs, scores[prompt].tolist(), strict=True)
        hypotheses = [Hypothesis(row[end : end + length], *figures) for row, length, *figures in columns]
        best.append([hypothesis for hypothesis in hypotheses if hypothesis.score > -math.inf][:n_best])
    return best


def _scores(log_probs: Tensor, lengths: Tensor, length_penalty: float) -> Tensor:
    """log_prob / length^penalty (Wu et al. 2016, eq. 14, with the plain length, as in transformers)."""
    return log_probs / lengths.clamp(min=1).double() ** length_penalty


def _extended(
    state: _Beams, logits: Tensor, column: int, width: int, eos_id: int | None, length_penalty: float
) -> tuple[_Beams, Tensor]:
    """The best `width` of all one-token continuations of each prompt, and the flat rows that they come from.

    A finished hypothesis has one continuation: itself, with another EOS at no cost.
    """
    batch, rows, _ = state.tokens.shape
    steps = logits.double().log_softmax(dim=-1).view(batch, rows, -1)  # (batch, rows, vocab)
    lengths = state.lengths + ~state.ended
    if eos_id is not None:
        steps = steps.masked_fill(state.ended[..., None], -torch.inf)
        steps[..., eos_id] = steps[..., eos_id].masked_fill(state.ended, 0.0)
    totals = state.log_probs[..., None] + steps
    scores = _scores(totals, lengths[..., None], length_penalty).flatten(1)
    chosen = scores.topk(min(width, scores.shape[1])).indices  # (batch, new rows)
    origins, tokens = chosen // steps.shape[2], chosen % steps.shape[2]
    each = torch.arange(batch, device=chosen.device)[:, None]
    extended = state.tokens[each, origins]
    extended[..., column] = tokens
    log_probs = totals.flatten(1).gather(1, chosen)
    ended = state.ended[each, origins] | ~log_probs.isfinite()
    if eos_id is not None:
        ended = ended | (tokens == eos_id)
    new = _Beams(extended, log_probs, lengths[each, origins], ended)
    return new, (each * rows + origins).flatten()
