"""Beam search over any model that maps tokens and a cache to logits.

    python run_llama.py --option evaluate --corpus TEXT --stories 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decode.loop import left_padded, window_start


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens (EOS included), log-probability in nats, and log_prob / length^penalty."""

    tokens: list[int]
    log_prob: float
    score: float


@dataclass
class _Beam:
    """The hypotheses of a search, most likely first, one row each."""

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
    """Beam search (Sutskever et al. 2014, section 3.2): the `n_best` of `width` hypotheses, best first.

    A hypothesis is scored by log_prob / length^length_penalty (0: total log-probability; 1: mean per token). A finished
    hypothesis stays in the beam; the search ends when all have produced `eos_id`, or after `max_new_tokens`. Width 1 is
    greedy. The window slides as in `stream`, and `use_cache=False` is the oracle of the cached search. Raises
    ValueError for an empty prompt or a number out of range.
    """
    if not 1 <= n_best <= width or not length_penalty >= 0.0:
        raise ValueError(f"no beam of width {width} with {n_best} best and length penalty {length_penalty}")
    rows, _, end = left_padded([prompt], max_new_tokens, model.device)
    zeros = torch.zeros(1, dtype=torch.long, device=model.device)
    beams = _Beam(rows, zeros.double(), zeros, zeros.bool())
    limit = model.config.max_seq_len
    cache, cached_from = model.new_cache(1, min(limit, rows.shape[1])) if use_cache else None, -1
    for column in range(end, end + max_new_tokens):
        left = window_start(column, limit, slide)
        fed = slice(column - 1 if cache is not None and left == cached_from else left, column)
        if cache is not None and left != cached_from:
            cache = model.new_cache(len(beams.tokens), min(limit, rows.shape[1]))
        logits, _ = model(beams.tokens[:, fed], **({} if cache is None else {"cache": cache}))
        beams, origins = _extended(beams, logits[:, -1], column, width, eos_id, length_penalty)
        cached_from = left
        if cache is not None:
            cache.reorder(origins)
        if bool(beams.ended.all()):
            break
    scores = _scores(beams.log_probs, beams.lengths, length_penalty).tolist()
    lengths, log_probs = beams.lengths.tolist(), beams.log_probs.tolist()
    new = [tokens[end : end + length] for tokens, length in zip(beams.tokens.tolist(), lengths, strict=True)]
    return [Hypothesis(*parts) for parts in zip(new, log_probs, scores, strict=True)][:n_best]


def _scores(log_probs: Tensor, lengths: Tensor, length_penalty: float) -> Tensor:
    """log_prob / length^penalty (Wu et al. 2016, eq. 14, with the plain length, as in transformers)."""
    return log_probs / lengths.clamp(min=1).double() ** length_penalty


def _extended(
    beams: _Beam, logits: Tensor, column: int, width: int, eos_id: int | None, length_penalty: float
) -> tuple[_Beam, Tensor]:
    """The best `width` of all one-token continuations at `column`, and the rows they come from (new rows,).

    A finished hypothesis has one continuation: itself, with another EOS at no cost.
    """
    steps = logits.double().log_softmax(dim=-1)  # (rows, vocab)
    lengths = beams.lengths + ~beams.ended
    if eos_id is not None:
        steps = steps.masked_fill(beams.ended[:, None], -torch.inf)
        steps[:, eos_id] = steps[:, eos_id].masked_fill(beams.ended, 0.0)
    totals = beams.log_probs[:, None] + steps
    scores = _scores(totals, lengths[:, None], length_penalty).flatten()
    chosen = scores.topk(min(width, int(scores.isfinite().sum()))).indices
    origins, tokens = chosen // logits.shape[1], chosen % logits.shape[1]
    rows = beams.tokens[origins]
    rows[:, column] = tokens
    ended = beams.ended[origins]
    if eos_id is not None:
        ended = ended | (tokens == eos_id)
    return _Beam(rows, totals.flatten()[chosen], lengths[origins], ended), origins
