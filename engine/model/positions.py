"""Positions: the tables of a configuration, sinusoids added to the embeddings, and ALiBi's bias on attention scores.

    python -c "from engine.model.positions import sinusoids, alibi_slopes; print(sinusoids(3, 4), alibi_slopes(8))"
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import LlamaConfig
from rope import rotation_table

WAVELENGTH = 10000.0


def sinusoids(max_seq_len: int, dim: int) -> Tensor:
    """The table (max_seq_len, dim) of Vaswani et al. 2017, section 3.5, in float32 on the CPU.

    Feature 2i of position m is sin(m / 10000^(2i/dim)), feature 2i+1 the cosine of the same angle. Computed in
    float64; with an odd width the last feature is a sine without a cosine.
    """
    frequencies = WAVELENGTH ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64, device="cpu"), frequencies)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim].float()  # (., pairs, 2) -> (., dim)


def alibi_slopes(n_heads: int) -> Tensor:
    """One slope per head (Press et al. 2022, section 3), (n_heads,) in float32 on the CPU.

    For a power of two: the geometric sequence from 2^(−8/n) with that ratio. Otherwise: the sequence of the next lower
    power of two, then every other slope of the next higher one, as in the paper's code.
    """
    lower = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / lower) for head in range(lower)]
    slopes += [2.0 ** (-4.0 * (head + 1) / lower) for head in range(0, 2 * (n_heads - lower), 2)]
    return torch.tensor(slopes, device="cpu")


def alibi_bias(slopes: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """−slope · |distance|: queries (batch or 1, seqlen), keys (batch or 1, keys) -> (batch or 1, heads, seqlen, keys).

    `queries` and `keys` are positions. The distance is unsigned, so that a model without a causal mask treats both
    sides alike.
    """
    distance = (queries[:, None, :, None] - keys[:, None, None, :]).abs()
    return -slopes[:, None, None] * distance


def position_tables(config: LlamaConfig) -> dict[str, Tensor]:
    """The position tables of a configuration, by the name of their buffer."""
    if config.position_embedding_type == "rotary":  # each (max_seq_len, head_dim / 2)
        cos, sin = rotation_table(config.head_dim, config.max_seq_len, config.rope_theta)
        return {"rope_cos": cos, "rope_sin": sin}
    if config.position_embedding_type == "sinusoidal":
        return {"sinusoids": sinusoids(config.max_seq_len, config.dim)}
    return {"alibi_slopes": alibi_slopes(config.n_heads)} if config.position_embedding_type == "alibi" else {}
