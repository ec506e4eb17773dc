"""What each query of an attention may see: causal order, padding, a cache's past, and ALiBi's bias.

    python -c "import torch; from engine.model.masks import counted as p; print(p(torch.ones(1, 3) > 0))"
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.model.positions import alibi_bias


def counted(padding_mask: Tensor) -> Tensor:
    """Positions (batch, tokens) that count real tokens alone; `padding_mask` is True on them.

    Where it holds numbers of documents that stand side by side (0: padding), each is counted from its own start.
    """
    if padding_mask.dtype == torch.bool:
        return (padding_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    places = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    begins = padding_mask != padding_mask.roll(1, dims=1)
    begins[:, 0] = True
    return places - (places * begins).cummax(dim=1).values


def attention_mask(
    past: int, seqlen: int, padding_mask: Tensor | None, causal: bool, slopes: Tensor | None, device: torch.device
) -> Tensor | None:
    """What `seqlen` queries behind `past` cached tokens may see, (batch or 1, 1, seqlen, past + seqlen), boolean.

    None where plain attention, causal or not, says it all. `padding_mask` (batch, past + seqlen) is True on real
    tokens, or numbers the documents of a row from 1, none of which sees another. With ALiBi's `slopes` (n_heads,)
    the result is what is added to the scores: (batch or 1, n_heads, seqlen, past + seqlen).
    """
    if padding_mask is None and slopes is None and (past == 0 or seqlen == 1):
        return None
    queries = torch.arange(past, past + seqlen, device=device)[:, None]
    keys = torch.arange(past + seqlen, device=device)[None]
    visible = (keys <= queries if causal else keys >= 0).expand(seqlen, -1)[None, None]
    if padding_mask is not None and padding_mask.dtype != torch.bool:
        visible = visible & (padding_mask[:, None, past:, None] == padding_mask[:, None, None])
    elif padding_mask is not None:  # padding sees itself: no empty softmax
        visible = (visible & padding_mask[:, None, None, :]) | (keys == queries)
    if slopes is None:
        return visible
    places = keys if padding_mask is None else counted(padding_mask)
    return alibi_bias(slopes, places[:, past:], places).masked_fill(~visible, -torch.inf)


def mask_at(mask: Tensor | None, places: Tensor, keys: int, causal: bool) -> Tensor:
    """The row of each text's mask that `places` (batch,) names, (batch, heads or 1, 1, keys); of none its meaning."""
    if mask is None:
        seen = torch.arange(keys, device=places.device)[None] <= (places[:, None] if causal else keys)
        return seen.expand(len(places), keys)[:, None, None]
    rows = mask.expand(len(places), *mask.shape[1:])
    return rows[torch.arange(len(places), device=places.device), :, places][:, :, None]
