"""Learning rates at the steps where anyone can work them out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.train.schedule import SCHEDULES, rate_factor


def test_values_by_hand():
    assert [rate_factor(step, 10, 3, "constant") for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [rate_factor(step, 8, 4, "linear", 0.2) for step in (4, 6, 8, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert rate_factor(0, 12, 0, "cosine") == 1.0
    assert rate_factor(4, 12, 0, "cosine") == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 3))
    assert rate_factor(6, 12, 0, "cosine", 0.1) == pytest.approx(0.55)
    assert rate_factor(12, 12, 0, "cosine", 0.1) == pytest.approx(0.1)


@given(
    total=st.integers(1, 300), warmup=st.integers(0, 50), schedule=st.sampled_from(SCHEDULES), floor=st.floats(0.0, 1.0)
)
def test_rates_rise_then_never_rise_again(total, warmup, schedule, floor):
    rates = [rate_factor(step, total, warmup, schedule, floor) for step in range(total + 1)]
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert rising == sorted(rising)
    assert all(late <= early + 1e-12 for early, late in itertools.pairwise(falling))
