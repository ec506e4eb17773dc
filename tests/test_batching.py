"""Prompts side by side, each place refilled as it falls free: what they give is what each gives alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.continuous_batching import one_by_one, refilled
from engine.decode.fast_step import choose_step, plain_step
from engine.decode.sampling import Sampler
from tests.oracles import random_llama

SMALL = {"vocab_size": 61, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
PLAIN = random_llama(**SMALL).double()  # in float64 no rounding can turn one token into another
FAST = copy.deepcopy(PLAIN)
STEPS = {FAST: choose_step(FAST)}
ALIBI = random_llama(**SMALL, position_embedding_type="alibi").double()

prompts_of = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=30), min_size=1, max_size=9)


@settings(max_examples=60)
@given(
    model=st.sampled_from([PLAIN, FAST, ALIBI]), prompts=prompts_of, new=st.integers(0, 30), rows=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 1.0]), penalty=st.sampled_from([None, 1.5]), slide=st.sampled_from([1, 8, 64]),
    eos=st.sampled_from([None, 7, 20]),
)  # fmt: skip
def test_the_same_as_one_at_a_time(model, prompts, new, rows, temperature, penalty, slide, eos):
    rule = Sampler(temperature, top_p=0.9, repetition_penalty=penalty)
    slide = min(slide, 20)
    found = dict(refilled(model, prompts, new, rule, 3, eos, slide, rows, STEPS.get(model)))
    assert found == dict(one_by_one(model, prompts, new, rule, 3, eos, slide, use_cache=False))


def test_a_free_slot_is_filled_at_once_and_the_last_rows_run_alone():
    widths, plain = [], plain_step(PLAIN)

    def step(tokens, cache, padding_mask):
        widths.append(len(tokens))
        return plain(tokens, cache, padding_mask)

    prompts = [[number, number + 1] for number in range(7)]
    lengths = [len(new) for _, new in one_by_one(PLAIN, prompts, 12, Sampler(0.0), 0, eos_id=5)]
    assert len(set(lengths)) > 1
    order = [index for index, _ in refilled(PLAIN, prompts, 12, Sampler(0.0), 0, eos_id=5, rows=3, step=step)]
    assert sorted(order) == list(range(7)) and sum(widths) == sum(min(12, length + 1) for length in lengths)
    assert max(widths) == 3 and widths[-1] < 3


def test_samples_of_one_prompt_differ_and_the_prompt_runs_once(monkeypatch):
    runs, hidden = [], PLAIN.hidden_states
    monkeypatch.setattr(
        PLAIN, "hidden_states", lambda tokens, *a, **k: runs.append(tokens.shape) or hidden(tokens, *a, **k)
    )
    found = dict(refilled(PLAIN, [[1, 2, 3, 4]] * 5, 9, Sampler(1.0), 0))
    assert len({tuple(new) for new in found.values()}) > 1
    assert [shape for shape in runs if shape[1] > 1] == [torch.Size([1, 3])]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="a prompt is empty"):
        list(refilled(PLAIN, [[1], []], 3, Sampler(0.0), 0))
