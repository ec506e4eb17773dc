"""Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2.2).

The pair (x[2i], x[2i+1]) of a head's features at position m is rotated by the angle m · theta^(−2i / head_dim),
so that the product of a query and a key depends only on the distance between their positions.

    python rope_test.py
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def rotation_table(head_dim: int, max_seq_len: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every angle, each (max_seq_len, head_dim / 2) in float32 on the CPU.

    Computed in float64, so that distant positions are exact, and cached per shape.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head size: {head_dim} is odd")
    with torch.inference_mode(False):  # cached: an inference-mode tensor could not serve training
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64, device="cpu"), frequencies)
        return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the adjacent pairs of x (..., seqlen, head_dim) by angles (..., seqlen, head_dim / 2).

    A pair is treated as a complex number, so that the rotation is one product. Computed in float32 or wider; returns
    x's dtype.
    """
    if torch.compiler.is_compiling():  # torch.compile fuses the real form, but not complex products
        return rotate_spelled_out(x, cos, sin)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turn = torch.complex(cos.to(wide.dtype), sin.to(wide.dtype))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())  # (..., head_dim) -> (..., head_dim / 2)
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


def rotate_spelled_out(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` in real arithmetic; the oracle of `rotate`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x)  # (..., head_dim / 2, 2) -> (..., head_dim)


def reshape_for_broadcast(table: Tensor, x: Tensor) -> Tensor:
    """The course's helper: views a table (seqlen, features) so that it broadcasts over x.

    x is (batch, seqlen, ..., features). Raises ValueError for a table of another shape.
    """
    if table.shape != (x.shape[1], x.shape[-1]):
        raise ValueError(f"a table of {(x.shape[1], x.shape[-1])} was expected, not {tuple(table.shape)}")
    return table.view(1, x.shape[1], *[1] * (x.ndim - 3), x.shape[-1])


def apply_rotary_emb(
    query: Tensor, key: Tensor, head_dim: int, max_seq_len: int, theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """The course's interface: rotates query and key, each (batch, seqlen, heads, head_dim), from position 0.

    Raises ValueError when the sequence is longer than `max_seq_len`.
    """
    seqlen = query.shape[1]
    if seqlen > max_seq_len:
        raise ValueError(f"a sequence of {seqlen} tokens is longer than the {max_seq_len} positions")
    cos, sin = (table[:seqlen, None].to(query.device) for table in rotation_table(head_dim, max_seq_len, theta))
    return rotate(query, cos, sin), rotate(key, cos, sin)  # tables broadcast over heads: (seqlen, 1, head_dim / 2)
