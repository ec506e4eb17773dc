"""Truncations keep just the tokens that their definitions say, ties included, and draws follow the distribution."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.decode.sampling import (
    Sampler,
    keep_epsilon,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise_repetition,
)

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=12)  # few values: many ties


def logits_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([counts], dtype=torch.float64).log()


def kept(logits: torch.Tensor) -> set[int]:
    return set(torch.nonzero(logits[0] > -torch.inf)[:, 0].tolist())


@given(COUNTS, st.integers(1, 1000))
def test_top_p_keeps_the_smallest_set_that_reaches_p(counts, thousandth):
    p = (thousandth - 0.5) / 1000  # never exactly a sum of these probabilities, so that rounding decides nothing
    found = kept(keep_top_p(logits_of(counts), p))
    total = sum(counts)
    mass = Fraction(sum(counts[index] for index in found), total)
    assert mass >= Fraction(p)
    fewest, reached = 0, Fraction(0)
    for count in sorted(counts, reverse=True):
        if reached >= Fraction(p):
            break
        reached, fewest = reached + Fraction(count, total), fewest + 1
    assert len(found) == fewest
    refused = set(range(len(counts))) - found
    for index in refused:  # what is refused is less likely, or ties and comes later
        assert all((counts[index], -index) < (counts[other], -other) for other in found)


def test_top_p_reached_exactly_adds_no_more():
    assert kept(keep_top_p(logits_of([2, 1, 1]), 0.5)) == {0}
    assert kept(keep_top_p(logits_of([1, 1, 1, 1]), 0.5)) == {0, 1}
    assert kept(keep_top_p(logits_of([1, 1, 1, 1]), 0.51)) == {0, 1, 2}


def test_top_p_works_row_by_row_and_leaves_logits_as_they_are():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    truncated = keep_top_p(logits, 0.8)
    for row in range(6):
        assert torch.equal(keep_top_p(logits[row : row + 1], 0.8)[0], truncated[row])
    stays = truncated > -torch.inf
    assert torch.equal(truncated[stays], logits[stays])


@given(COUNTS, st.integers(1, 14))
def test_top_k_keeps_k_of_the_likeliest(counts, k):
    found = kept(keep_top_k(logits_of(counts), k))
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    assert found == set(order[:k])


@given(COUNTS, st.floats(0.01, 0.99))
def test_min_p_and_epsilon_keep_what_is_likely_enough(counts, share):
    probabilities = np.array(counts) / sum(counts)
    if np.abs(probabilities - share * probabilities.max()).min() > 1e-9:
        likely = set(np.flatnonzero(probabilities >= share * probabilities.max()).tolist())
        assert kept(keep_min_p(logits_of(counts), share)) == likely
    if np.abs(probabilities - share).min() > 1e-9:
        likely = set(np.flatnonzero(probabilities >= share).tolist())
        best = set(np.flatnonzero(probabilities == probabilities.max()).tolist())
        assert kept(keep_epsilon(logits_of(counts), share)) == likely | best


def test_greedy_takes_the_likeliest_and_draws_follow_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    assert (Sampler(0.0).choose(logits) == 0).all()
    draws = Sampler(1.0).choose(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=3) / len(draws)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.012, rtol=0.0)
    cold = Sampler(0.5, top_p=0.85).choose(logits, torch.Generator().manual_seed(0))
    expected = torch.tensor([0.25, 0.09, 0.0]) / 0.34  # squared, renormalised, the last refused
    torch.testing.assert_close(torch.bincount(cold, minlength=3) / len(cold), expected, atol=0.012, rtol=0.0)


def test_the_generator_decides_the_draw():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    first, second = (Sampler(1.0).choose(logits, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(Sampler(1.0).choose(logits, torch.Generator().manual_seed(7)), first)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": 0},
        {"min_p": -0.1}, {"epsilon": 2.0}, {"repetition_penalty": 0.9}, {"repetition_penalty": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_values_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampler(**wrong)


@given(st.lists(st.floats(-4.0, 4.0), min_size=2, max_size=12, unique=True), st.floats(0.05, 0.95))
def test_typical_sampling_keeps_what_transformers_keeps(values, mass):
    from transformers import TypicalLogitsWarper  # slow to import

    logits = torch.tensor([values], dtype=torch.float64)
    surprise = -logits.log_softmax(dim=-1)[0]
    distances = sorted((surprise - (surprise * (-surprise).exp()).sum()).abs().tolist())
    if min(b - a for a, b in pairwise(distances)) < 1e-9:
        return  # a tie: the order is free
    assert kept(keep_typical(logits, mass)) == kept(TypicalLogitsWarper(mass)(None, logits))


@given(st.lists(st.floats(-4.0, 4.0), min_size=9, max_size=9), st.lists(st.integers(0, 8), min_size=1), st.floats(1, 3))
def test_the_repetition_penalty_is_transformers(values, ids, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor  # slow to import

    logits, tokens = torch.tensor([values, values[::-1]]), torch.tensor([ids, ids[::-1]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    assert torch.equal(penalise_repetition(logits, tokens, penalty), expected)
    assert torch.equal(Sampler(0.0, repetition_penalty=penalty).penalised(logits, tokens), expected)
    assert Sampler(0.0).penalised(logits, tokens) is logits
