"""The prepared products: each is the plain product, bfloat16 of the rounded weights, and the screened one's largest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import packed_linear as products
from engine.decode.packed_linear import Dense, Narrow, Screened, Upright, bfloat16, int8


def drawn(seed: int, rows: int, inner: int = 64, outer: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, inner) and weight (outer, inner) whose rows differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outer, inner, generator=generator) * torch.rand(outer, 1, generator=generator)
    return torch.randn(rows, inner, generator=generator), weight


@given(st.integers(1, 4), st.integers(0, 99))
def test_dense_and_narrow_are_the_product(rows, seed):
    x, weight = drawn(seed, rows)
    exact = (x.double() @ weight.double().T).float()
    for kind in (Dense, Narrow):
        product, written, added = kind(weight.T.contiguous()), torch.full((rows, 48), torch.nan), torch.ones(rows, 48)
        product.into(written, x)
        product.onto(added, x)
        for found in (product(x), written, added - 1):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


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
    if products.saturates() and not seven_bits:
        pytest.skip("the int8 kernel saturates on this processor (no VNNI): activations must use 7 bits")
    x, weight = drawn(seed, rows)
    exact = x @ weight.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "saturates", lambda: seven_bits)
        product = int8(weight)
    place = torch.ones(rows, 48)
    product.onto(place, x)
    for found in (product(x), place - 1):
        assert (found - exact).norm() / exact.norm() < (0.03 if seven_bits else 0.02)


def test_the_probe_for_overflow_is_right_about_this_processor():
    worst, x = torch.ones(32, 512), torch.ones(1, 512)
    assert (int8(worst)(x) - 512.0).abs().max() < 5.0


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4), seed=st.integers(0, 999), outer=st.sampled_from([300, 5000]),
    kind=st.sampled_from(["plain", "copies", "outlier", "equal"]),
)  # fmt: skip
def test_the_screened_largest_is_that_of_the_whole_product(rows, seed, outer, kind):
    x, weight = drawn(seed, rows, outer=outer)
    if kind == "copies":  # many outputs that int8 cannot tell apart
        weight[1:50] = weight[0] * (1 + 1e-3 * torch.rand(49, 1, generator=torch.Generator().manual_seed(seed)))
        x[0] = weight[0]
    elif kind == "outlier":  # x's scale is spoilt by one number
        x[0, 0] = 100.0
    elif kind == "equal":
        weight[:] = weight[0]
    whole = Upright(weight)
    exact, found = whole(x), Screened(weight)(x, whole)
    best = found.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(exact.gather(1, best), exact.amax(dim=1, keepdim=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gather(1, best), exact.amax(dim=1, keepdim=True), rtol=1e-5, atol=1e-5)


def test_the_screen_computes_few_outputs_and_its_bound_holds(monkeypatch):
    x, weight = drawn(0, 3, inner=128, outer=20000)
    whole = Upright(weight)
    screened, exact = Screened(weight), whole(x)
    monkeypatch.setattr(Upright, "__call__", lambda *arguments: pytest.fail("the whole product was computed"))
    found = screened(x, whole)
    sizes = torch.stack([x.norm(dim=1), torch.full((3,), float(x.max() - x.min()) / 255 * 128**0.5)], dim=1)
    assert ((found - exact).abs() <= sizes @ screened.norms).all()
    assert ((found - exact).abs() > 1e-4).float().mean() > 0.9  # most are int8's alone


def test_what_bfloat16_rounds_beyond_float16_is_not_kept_in_float16():
    for largest in (65_280.0, 65_500.0):  # the second rounds to 65,536
        weight = torch.full((3, 16), largest)
        torch.testing.assert_close(bfloat16(weight)(torch.eye(16)), weight.bfloat16().float().T)
