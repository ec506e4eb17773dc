"""Packed products: float32 equals the plain product, bfloat16 equals the product of rounded weights, int8 is close."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import packed_linear
from engine.decode.packed_linear import Dense, SplitDense, bfloat16, int8


def drawn(seed: int, rows: int, inner: int = 64, outer: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, inner) and weight (outer, inner) whose rows differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outer, inner, generator=generator) * torch.rand(outer, 1, generator=generator)
    return torch.randn(rows, inner, generator=generator), weight


@pytest.mark.parametrize(("dense", "threads"), [(Dense, 1), (SplitDense, 1), (SplitDense, 2), (SplitDense, 3)])
@settings(max_examples=30)
@given(rows=st.integers(1, 4), seed=st.integers(0, 99), inner=st.sampled_from([64, 63, 1]))
def test_dense_is_the_product(dense, threads, rows, seed, inner):
    x, weight = drawn(seed, rows, inner)
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, :inner]  # rows that are not adjacent in memory
    exact = (x.double() @ weight.double().T).float()
    product, written, added = dense(weight.T.contiguous()), torch.ones(rows, 48), torch.ones(rows, 48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        product.write(written, x)
        product.add(added, wide)
        results = product(x), written, added - 1
    for result in results:
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 4), st.integers(0, 99))
def test_bfloat16_is_the_product_with_rounded_weights(rows, seed):
    x, weight = drawn(seed, rows)
    exact = x.double() @ weight.bfloat16().double().T
    torch.testing.assert_close(bfloat16(weight)(x).double(), exact, rtol=1e-4, atol=1e-4)
    huge = bfloat16(weight * 1e6)(x).double() / 1e6  # beyond float16
    assert (huge - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("seven_bits", [False, True])
@settings(max_examples=30)
@given(rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_int8_is_close(seven_bits, rows, seed):
    if packed_linear.saturates() and not seven_bits:
        pytest.skip("the int8 kernel saturates on this processor (no VNNI): activations must use 7 bits")
    x, weight = drawn(seed, rows)
    exact = x @ weight.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_linear, "saturates", lambda: seven_bits)
        product = int8(weight)
    place = torch.ones(rows, 48)
    product.add(place, x)
    for found in (product(x), place - 1):
        assert (found - exact).norm() / exact.norm() < (0.03 if seven_bits else 0.02)


def test_the_probe_for_overflow_is_right_about_this_processor():
    worst, x = torch.ones(32, 512), torch.ones(1, 512)
    assert (int8(worst)(x) - 512.0).abs().max() < 5.0


def test_what_bfloat16_rounds_beyond_float16_is_not_kept_in_float16():
    for largest in (65_280.0, 65_500.0):  # the second rounds to 65,536
        weight = torch.full((3, 16), largest)
        torch.testing.assert_close(bfloat16(weight)(torch.eye(16)), weight.bfloat16().float().T)
