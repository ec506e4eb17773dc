"""Attention masks: causal order, padding, packed documents, cached tokens, windows, and ALiBi's bias.

    python -m pytest tests/test_packing.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.model.positions import alibi_bias


def padded_positions(padding_mask: Tensor) -> Tensor:
    """Positions (batch, tokens) that count real tokens only; `padding_mask` is True on them."""
    return (padding_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def document_positions(document_ids: Tensor) -> Tensor:
    """Positions (batch, tokens) counted from the start of each document of a packed row."""
    columns = torch.arange(document_ids.shape[1], device=document_ids.device)
    starts = document_ids != document_ids.roll(1, dims=1)
    starts[:, 0] = True
    return columns - (columns * starts).cummax(dim=1).values


def attention_mask(
    tokens: Tensor,
    past: int,
    causal: bool,
    slopes: Tensor | None = None,
    padding_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    window: int | None = None,
) -> Tensor | None:
    """Mask of tokens (batch, seqlen) after `past` cached ones: (batch or 1, 1, seqlen, past + seqlen).

    True where a query may attend. None stands for plain attention, causal or full. `padding_mask`
    (batch, past + seqlen) is True on real tokens. `document_ids`, of the same shape, number the documents of a packed
    row from 1 (0: padding), and attention stays within a document. With ALiBi's `slopes` (n_heads,) the result is the
    bias to add to the scores: (batch or 1, n_heads, seqlen, past + seqlen). With a `window` W, only positions at a
    distance of less than W are visible.
    """
    seqlen, device = tokens.shape[1], tokens.device
    window = None if window is not None and past + seqlen <= window else window
    plain = all(given is None for given in (padding_mask, document_ids, slopes, window))
    if plain and (past == 0 or seqlen == 1):
        return None
    queries = torch.arange(past, past + seqlen, device=device)[:, None]
    keys = torch.arange(past + seqlen, device=device)[None]
    visible = (keys <= queries if causal else keys >= 0).expand(seqlen, -1)[None, None]
    positions = keys
    if document_ids is not None:
        positions = document_positions(document_ids)
    elif padding_mask is not None:
        positions = padded_positions(padding_mask)
    if window is not None:
        distance = positions[:, None, past:, None] - positions[:, None, None, :]  # (batch or 1, 1, seqlen, keys)
        visible = visible & (distance.abs() < window)
    if document_ids is not None:
        visible = visible & (document_ids[:, None, past:, None] == document_ids[:, None, None])
    elif padding_mask is not None:  # padding attends to itself, so that no softmax is empty
        visible = (visible & padding_mask[:, None, None, :]) | (keys == queries)
    if slopes is None:
        return visible
    return alibi_bias(slopes, positions[:, past:], positions).masked_fill(~visible, -torch.inf)


def mask_rows(mask: Tensor | None, columns: Tensor, keys: int, causal: bool) -> Tensor:
    """Mask rows (batch, heads or 1, 1, keys) of the queries in `columns` (batch,); `None` stands for the plain mask."""
    if mask is None:
        seen = torch.arange(keys, device=columns.device)[None] <= (columns[:, None] if causal else keys)
        return seen.expand(len(columns), keys)[:, None, None]
    rows = mask.expand(len(columns), *mask.shape[1:])
    return rows[torch.arange(len(columns), device=columns.device), :, columns][:, :, None]
