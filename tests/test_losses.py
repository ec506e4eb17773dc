"""Chunked cross-entropy has the value and the gradients of the plain one; so has the loss of single tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.train.losses import CHUNK, IGNORED, cross_entropy, plain_cross_entropy, token_nll


def problem(count: int, seed: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 12, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(31, 12, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 31, (count,), generator=generator)
    targets[torch.rand(count, generator=generator) < 0.2] = IGNORED
    return hidden, weight, targets


@settings(max_examples=20)
@given(st.sampled_from([1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]), st.integers(0, 99), st.floats(0.1, 3.0))
def test_value_and_gradients_equal_the_plain_loss(count, seed, factor):
    hidden, weight, targets = problem(count, seed)
    found = []
    for loss_of in (cross_entropy, plain_cross_entropy):
        hidden.grad = weight.grad = None
        loss = loss_of(hidden, weight, targets)
        (factor * loss).backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    for chunked, plain in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-4)


def test_the_plain_loss_is_the_definition():
    hidden, weight, targets = problem(40, 0)
    probabilities = (hidden.double() @ weight.double().T).softmax(dim=-1)
    expected = -sum(probabilities[i, t].log() for i, t in enumerate(targets.tolist()) if t != IGNORED)
    assert plain_cross_entropy(hidden, weight, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert token_nll(hidden, weight, targets).sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert (token_nll(hidden, weight, targets)[targets == IGNORED] == 0).all()


def test_bfloat16_autocast_stays_close():
    hidden, weight, targets = problem(700, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(hidden, weight, targets)
    loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(plain_cross_entropy(hidden, weight, targets).item(), rel=0.01)
