"""Attention weights of every head, recorded during a forward pass.

    python run_llama.py --option evaluate --corpus stories.txt --stories 50 --save_dir measured
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama import Attention, Llama


@torch.no_grad()
def attention_weights(model: Llama, tokens: Tensor) -> Tensor:
    """The attention of one row of tokens (seqlen,) in every layer and head: (n_layers, n_heads, seqlen, seqlen).

    Row i of a map holds the weights of position i; it sums to 1. The model's own attention is run on one-hot values, so
    that its output is the weights. With differential attention a layer's first n_heads / 2 maps are those of the heads'
    first softmax, the others those of the second, which are subtracted.
    """
    found: list[Tensor] = []
    attentions = [layer.attention for layer in model.layers]
    for attention in attentions:
        attention.compute_query_key_value_scores = _recording(attention, found)
    try:
        model.hidden_states(tokens[None])
    finally:
        for attention in attentions:
            del attention.compute_query_key_value_scores  # restores the method of the class
    return torch.cat(found).view(len(attentions), model.config.n_heads, *found[0].shape[2:])


def _recording(attention: Attention, found: list[Tensor]):
    """The attention's own computation, which also stores its weights."""
    compute = attention.compute_query_key_value_scores

    def recording(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        one_hot = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*key.shape[:3], -1)
        found.append(compute(query, key, one_hot, mask))  # (1, n_heads, seqlen, keys)
        return compute(query, key, value, mask)

    return recording
