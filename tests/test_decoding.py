"""Cached generation equals the plain loop, token for token: greedy and sampled, alone and batched, past the window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import loop as decoding
from engine.decode.sampling import Sampler
from engine.model.kv_cache import KVCache
from tests.oracles import random_llama, transformers_model

SMALL = {"vocab_size": 61, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
MODEL = random_llama(**SMALL).double()  # in float64 no rounding can turn one token into another
RULES = {"greedy": Sampler(0.0), "sampled": Sampler(1.0, top_p=0.9), "cold": Sampler(0.7, top_k=5, min_p=0.05)}
RULES["penalised"] = Sampler(0.0, repetition_penalty=1.5)

prompts_of = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=4)


def run(prompts, new, rule, use_cache=True, slide=1, eos_id=None, model=MODEL) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    steps = list(decoding.stream(model, prompts, new, rule, generator, eos_id, use_cache, slide))
    return torch.stack(steps).T.tolist() if steps else [[] for _ in prompts]


@settings(max_examples=30)
@given(prompts_of, st.sampled_from(sorted(RULES)), st.integers(1, 30), st.sampled_from([1, 5, 64]))
def test_cached_equals_uncached(prompts, rule, new, slide):
    cached = run(prompts, new, RULES[rule], slide=slide)
    assert cached == run(prompts, new, RULES[rule], use_cache=False, slide=slide)


@settings(max_examples=20)
@given(prompts_of, st.integers(1, 30))
def test_a_row_of_a_batch_is_what_it_is_alone(prompts, new):
    together = run(prompts, new, RULES["greedy"])
    assert together == [run([prompt], new, RULES["greedy"])[0] for prompt in prompts]


def spelled_out(prompt: list[int], new: int) -> list[int]:
    """The course's loop: the last `max_seq_len` tokens, the model, the likeliest token."""
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            logits, _ = MODEL(torch.tensor([ids[-MODEL.config.max_seq_len :]]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 7, 24, 30])
def test_greedy_equals_the_courses_loop_across_the_window(length):
    prompt = torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    assert run([prompt], 40, RULES["greedy"])[0] == spelled_out(prompt, 40)
    idx = torch.tensor([prompt])
    assert MODEL.generate(idx, 40, temperature=0.0)[0].tolist() == prompt + spelled_out(prompt, 40)


def test_greedy_equals_transformers_in_a_batch_padded_on_the_left():
    reference = transformers_model(MODEL)
    prompts = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9]]
    rows = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (6 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = reference.generate(
        rows, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert run(prompts, 12, RULES["greedy"]) == expected[:, 6:].tolist()


def test_the_repetition_penalty_is_transformers_in_a_batch_and_counts_the_prompt_but_no_padding():
    reference = transformers_model(MODEL)
    prompts = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9]]
    for prompt, found in zip(prompts, run(prompts, 12, RULES["penalised"]), strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
            pad_token_id=0, eos_token_id=None, repetition_penalty=1.5,
        )  # fmt: skip
        assert found == expected[0, len(prompt) :].tolist()
    assert run(prompts, 12, RULES["penalised"]) != run(prompts, 12, RULES["greedy"])


def test_the_course_generate_samples_by_top_p_and_by_epsilon():
    idx = torch.tensor([[1, 2, 3]])
    for options in ({}, {"top_p": 0.5}, {"epsilon": 0.02}, {"temperature": 0.3}):
        first, second = (
            MODEL.generate(idx, 20, generator=torch.Generator().manual_seed(3), **options) for _ in range(2)
        )
        assert first.shape == (1, 23) and torch.equal(first, second) and torch.equal(first[:, :3], idx)
    assert torch.equal(MODEL.generate(idx, 0), idx)


def test_generate_does_as_the_config_says_about_the_cache(monkeypatch):
    used = []
    monkeypatch.setattr(MODEL, "new_cache", lambda *arguments: used.append(1) or KVCache.__new__(KVCache))
    monkeypatch.setattr(MODEL.config, "use_cache", False)
    MODEL.generate(torch.tensor([[1]]), 3)
    assert not used


def test_eos_ends_a_row_and_the_last_one_ends_the_loop():
    prompts, eos = [[1, 2], [3]], None
    free = run(prompts, 20, RULES["greedy"])
    eos = free[0][4]
    stopped = run(prompts, 20, RULES["greedy"], eos_id=eos)
    for row, whole in zip(stopped, free, strict=True):
        end = whole.index(eos) + 1 if eos in whole else 20
        assert row[:end] == whole[: min(end, len(row))] and set(row[end:]) <= {eos}
    alone = run([[1, 2]], 20, RULES["greedy"], eos_id=eos)[0]
    assert alone == free[0][: free[0].index(eos) + 1]


def test_the_prompt_runs_once_and_then_one_token_at_a_time(monkeypatch):
    widths, forward = [], MODEL.forward

    def spy(tokens, **options):
        widths.append(tokens.shape[1])
        return forward(tokens, **options)

    monkeypatch.setattr(MODEL, "forward", spy)
    run([[1, 2, 3, 4, 5]], 6, RULES["greedy"])
    assert widths == [5, 1, 1, 1, 1, 1]
    widths.clear()
    run([list(range(24))], 9, RULES["greedy"], slide=8)
    assert widths == [24, 17, 1, 1, 1, 1, 1, 1, 1]


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 70))
def test_the_window_holds_what_it_can(length, limit, slide):
    forgotten = decoding.window_start(length, limit, slide)
    slide = slide if slide <= limit else max(1, limit // 2)  # a larger one would leave nothing
    assert forgotten % slide == 0 and 0 < length - forgotten <= limit
    assert forgotten == 0 or length - (forgotten - slide) > limit


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 50))
def test_chunks_through_a_cache_equal_the_whole(chunks, seed):
    tokens = torch.randint(0, 61, (2, sum(chunks)), generator=torch.Generator().manual_seed(seed))
    if tokens.shape[1] > 24:
        return
    cache, start, pieces = MODEL.new_cache(2), 0, []
    with torch.no_grad():
        whole = MODEL.hidden_states(tokens)
        for size in chunks:
            pieces.append(MODEL.hidden_states(tokens[:, start : start + size], cache))
            start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-6, atol=1e-6)


def test_a_full_cache_and_an_empty_prompt_are_refused():
    cache = MODEL.new_cache(1, capacity=4)
    with pytest.raises(ValueError, match="holds 4 tokens; 5 were asked for"):
        MODEL.hidden_states(torch.zeros(1, 5, dtype=torch.long), cache)
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="prompt is empty"):
            run(prompts, 3, RULES["greedy"])
