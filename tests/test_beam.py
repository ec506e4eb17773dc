"""Beam search: the best by brute force on hand-written tables, width 1 is greedy, cached equals uncached."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import loop as decoding
from engine.decode.beam import beam, beams
from engine.decode.sampling import Sampler
from tests.oracles import random_llama, transformers_model

SMALL = {"vocab_size": 31, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 20}
MODEL = random_llama(**SMALL, scale=3.0).double()
EOS = 2
TABLES = {  # row: probabilities of what follows that token; 2 is EOS
    "greedy is misled": [[0.55, 0.45, 0.0], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0]],
    "ends early or late": [[0.3, 0.3, 0.4], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0]],
    "never ends": [[0.5, 0.5, 0.0], [0.7, 0.3, 0.0], [1.0, 0.0, 0.0]],
}


class Table:
    """A model whose next token depends on the last one alone."""

    def __init__(self, probabilities):
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log()
        self.config, self.device = SimpleNamespace(max_seq_len=50), torch.device("cpu")

    def __call__(self, tokens):
        return self.logits[tokens[:, -1:]], None


def brute_force(table, start: int, longest: int, penalty: float) -> list[tuple[float, list[int]]]:
    """(score, tokens) of every continuation that ends in EOS or has the full length, best first."""
    found = []
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(3), repeat=length):
            complete = tokens[-1] == EOS or length == longest
            steps = [table[a][b] for a, b in zip((start, *tokens), tokens, strict=False)]
            if complete and EOS not in tokens[:-1] and math.prod(steps) > 0:
                found.append((sum(map(math.log, steps)) / length**penalty, list(tokens)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", TABLES)
def test_a_wide_beam_finds_all_by_brute_force(name, penalty):
    found = beam(Table(TABLES[name]), [0], 40, 4, EOS, penalty, n_best=40, use_cache=False)
    expected = brute_force(TABLES[name], 0, 4, penalty)
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected])
    assert sorted(hypothesis.tokens for hypothesis in found) == sorted(tokens for _, tokens in expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / len(hypothesis.tokens) ** penalty)


def test_two_beams_see_past_what_misleads_greedy():
    table = Table(TABLES["greedy is misled"])
    assert beam(table, [0], 1, 2, EOS, 0.0, use_cache=False)[0].tokens == [0, 0]  # 0.55²
    best = beam(table, [0], 2, 2, EOS, 0.0, use_cache=False)[0]
    assert best.tokens == [1, EOS] and best.log_prob == pytest.approx(math.log(0.45 * 0.9))


prompts = st.lists(st.integers(0, 30), min_size=1, max_size=25)


@settings(max_examples=20)
@given(prompts, st.integers(1, 25), st.sampled_from([0.0, 1.0]), st.integers(0, 30))
def test_one_beam_is_greedy(prompt, new, penalty, eos):
    greedy = [int(step) for step in decoding.stream(MODEL, [prompt], new, Sampler(0.0), eos_id=eos)]
    assert beam(MODEL, prompt, 1, new, eos, penalty)[0].tokens == greedy


@settings(max_examples=20)
@given(prompts, st.integers(2, 5), st.integers(1, 25), st.sampled_from([1, 6]), st.integers(0, 30))
def test_cached_equals_uncached(prompt, width, new, slide, eos):
    found = [
        beam(MODEL, prompt, width, new, eos, 1.0, width, use_cache, slide) for use_cache in (True, False)
    ]
    assert [hypothesis.tokens for hypothesis in found[0]] == [hypothesis.tokens for hypothesis in found[1]]
    assert [h.score for h in found[0]] == pytest.approx([h.score for h in found[1]], abs=1e-6)


@settings(max_examples=20)
@given(
    st.lists(prompts, min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 15), st.sampled_from([1, 6]),
    st.sampled_from([None, 4, 9]), st.booleans(),
)  # fmt: skip
def test_a_prompt_of_a_batch_gives_what_it_gives_alone(several, width, new, slide, eos, use_cache):
    options = {"eos_id": eos, "length_penalty": 0.5, "n_best": width, "use_cache": use_cache, "slide": slide}
    for prompt, found in zip(several, beams(MODEL, several, width, new, **options), strict=True):
        alone = beam(MODEL, prompt, width, new, **options)
        assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_equal_transformers(penalty):
    prompt, reference = [5, 9, 2], transformers_model(MODEL)
    expected = reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 3), max_new_tokens=10, num_beams=4, do_sample=False,
        num_return_sequences=4, eos_token_id=None, pad_token_id=0, length_penalty=penalty,
    )  # fmt: skip
    found = beam(MODEL, prompt, 4, 10, None, penalty, n_best=4)
    assert [hypothesis.tokens for hypothesis in found] == expected[:, 3:].tolist()


def test_log_probabilities_are_the_models():
    for hypothesis in beam(MODEL, [1, 2], 3, 8, eos_id=7, n_best=3):
        tokens = torch.tensor([[1, 2, *hypothesis.tokens]])
        log_probs = MODEL(tokens, targets=tokens)[0].double().log_softmax(-1)[0]
        spelled = sum(log_probs[place, token].item() for place, token in enumerate(tokens[0, 2:], start=1))
        assert hypothesis.log_prob == pytest.approx(spelled, abs=1e-6)


def test_numbers_out_of_range_and_no_room():
    for options in ({"width": 0}, {"width": 2, "n_best": 3}, {"width": 2, "length_penalty": -1.0}):
        with pytest.raises(ValueError, match="no beam of width"):
            beam(MODEL, [1], max_new_tokens=3, **options)
    with pytest.raises(ValueError, match="a prompt is empty"):
        beam(MODEL, [], 2, 3)
    assert beam(MODEL, [1], 2, 0)[0].tokens == []
