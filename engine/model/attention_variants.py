"""Variants of attention beside the plain one: differential attention and a gate per head. Windows are in `masks`.

    python run_llama.py --option pretrain --attention_type differential --gated_heads --corpus TEXT --tokenizer FILE \\
        --save_dir runs/mine
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from config import LlamaConfig
from engine.model.norms import RMSNorm

LAMBDA_STD = 0.1  # of the first λ vectors


def first_lambda(layer_id: int) -> float:
    """λ_init of a layer, counted from 0 (Ye et al. 2024, section 2.1)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer_id)


class DifferentialAttention(nn.Module):
    """The difference of two softmax maps (Ye et al. 2024, "Differential Transformer", arXiv:2410.05258, eq. 1 to 3).

    Heads 2i and 2i + 1 of the projections are the two maps of differential head i, whose value is both heads' values
    side by side. Key/value heads pair likewise, so that differential head i reads pair i // (n_heads / n_kv_heads), and
    the projections and the cache are those of plain attention. All heads of a layer share λ and the norm's gain.
    """

    def __init__(self, config: LlamaConfig, layer_id: int):
        super().__init__()
        self.first_lambda = first_lambda(layer_id)
        first = [nn.init.normal_(torch.empty(config.head_dim), std=LAMBDA_STD) for _ in range(4)]
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = map(nn.Parameter, first)
        self.norm = RMSNorm(2 * config.head_dim, config.layer_norm_eps)

    def weight(self) -> Tensor:
        """λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init, a scalar in float32 or wider (eq. 2)."""
        q1, k1, q2, k2 = (vector.to(torch.promote_types(vector.dtype, torch.float32))
                          for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))  # fmt: skip
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.first_lambda

    def forward(
        self, attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """(1 − λ_init) · norm((map 1 − λ · map 2) · value): (batch, n_heads / 2, seqlen, 2 · head_dim).

        `attend` is plain attention, and the other arguments are those of `Attention.compute_query_key_value_scores`.
        """
        pairs = value.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)  # (batch, n_kv_heads / 2, keys, 2 * head_dim)
        masks = [mask, mask] if mask is None or mask.shape[1] == 1 else [mask[:, ::2], mask[:, 1::2]]  # ALiBi's by head
        first, second = (attend(query[:, i::2], key[:, i::2], pairs, masks[i]) for i in (0, 1))
        return (1.0 - self.first_lambda) * self.norm(first - self.weight().to(first.dtype) * second)


class HeadGate(nn.Module):
    """A sigmoid gate per head, computed from the attention's input.

    The head-wise gate after the attention of Qiu et al. 2025, "Gated Attention for Large Language Models",
    arXiv:2505.06708, section 2.2.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.heads = config.n_heads // (2 if config.attention_type == "differential" else 1)
        self.compute_gate = nn.Linear(config.dim, self.heads, bias=False)

    def forward(self, attended: Tensor, x: Tensor) -> Tensor:
        """attended (batch, heads, seqlen, size) times σ(x · W), with the attention's input x (batch, seqlen, dim)."""
        return attended * self.compute_gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)  # (batch, heads, seqlen, 1)
