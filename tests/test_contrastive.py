"""Contrastive search equals a version without cache that follows the paper token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import loop as decoding
from engine.decode.contrastive import contrastive
from engine.decode.sampling import Sampler
from tests.oracles import random_llama

SMALL = {"vocab_size": 31, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 20}
MODEL = random_llama(**SMALL, scale=3.0).double()
OTHERS = {name: random_llama(**SMALL, position_embedding_type=name).double() for name in ("alibi", "sinusoidal")}

prompts_of = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=24), min_size=1, max_size=4)


def run(prompts, new, alpha, k, model=MODEL, **options) -> list[list[int]]:
    steps = list(contrastive(model, prompts, new, alpha, k, **options))
    return torch.stack(steps).T.tolist() if steps else [[] for _ in prompts]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def choice(probabilities: list[float], candidates: dict[int, list[float]], before: list[list[float]], alpha: float):
    """Eq. 5 of the paper: the best of the candidates, whose hidden states are given by token."""
    scores = {
        token: (1 - alpha) * probabilities[token] - alpha * max(cosine(state, other) for other in before)
        for token, state in candidates.items()
    }
    return max(scores, key=lambda token: scores[token])


def spelled_out(model, prompt: list[int], new: int, alpha: float, k: int, slide: int = 1) -> list[int]:
    """Contrastive search without a cache: for each candidate the whole window is read again, with it at the end."""
    ids, limit = list(prompt), model.config.max_seq_len
    with torch.no_grad():
        for _ in range(new):
            window = ids[decoding.window_start(len(ids), limit, slide) :]
            probabilities = model(torch.tensor([window]))[0][0, -1].softmax(-1).tolist()
            likely = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:k]
            kept = ids[decoding.window_start(len(ids) + 1, limit, slide) :]
            states = {token: model(torch.tensor([[*kept, token]]))[1][0].tolist() for token in likely}
            candidates = {token: rows[-1] for token, rows in states.items()}
            ids.append(choice(probabilities, candidates, states[likely[0]][:-1], alpha))
    return ids[len(prompt) :]


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from([MODEL, *OTHERS.values()]), prompts=prompts_of, new=st.integers(1, 12),
    alpha=st.sampled_from([0.2, 0.6, 1.0]), k=st.integers(1, 6), slide=st.sampled_from([1, 5]),
)  # fmt: skip
def test_the_same_as_spelled_out(model, prompts, new, alpha, k, slide):
    expected = [spelled_out(model, prompt, new, alpha, k, slide) for prompt in prompts]
    assert run(prompts, new, alpha, k, model, slide=slide) == expected


class Fixed:
    """A model of three tokens whose logits and hidden states depend on the last token alone."""

    def __init__(self):
        self.config, self.device = random_llama(**SMALL | {"vocab_size": 3}).config, torch.device("cpu")
        self.states = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
        self.probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def new_cache(self, batch, capacity):
        return random_llama(**SMALL).new_cache(batch, capacity)

    def hidden_states(self, tokens, cache, mask):
        cache.advance(tokens.shape[1])
        return self.states[tokens]

    def output(self, hidden):
        return self.probabilities.log().expand(len(hidden), 3)


def test_fixed_states_by_hand():
    assert run([[0]], 1, 0.4, 2, Fixed()) == [[0]]  # 0.6·0.5 − 0.4·1 = −0.10 beats 0.6·0.3 − 0.4·0.8 = −0.14
    assert run([[0]], 1, 0.6, 2, Fixed()) == [[1]]  # 0.4·0.5 − 0.6·1 = −0.40 loses to 0.4·0.3 − 0.6·0.8 = −0.36
    assert run([[0]], 3, 0.6, 3, Fixed()) == [[2, 1, 0]]  # 0.4·0.2 − 0 = 0.08; then as above; then all are seen


@settings(max_examples=15, deadline=None)
@given(prompts_of, st.integers(0, 25), st.sampled_from([(0.0, 5), (0.6, 1)]), st.sampled_from([1, 6, 64]))
def test_without_penalty_or_choice_it_is_greedy(prompts, new, rule, slide):
    slide = min(slide, 10)  # a slide of the whole window differs: contrastive search keeps a token to compare with
    steps = list(decoding.stream(MODEL, prompts, new, Sampler(0.0), eos_id=3, slide=slide))
    greedy = torch.stack(steps).T.tolist() if steps else [[] for _ in prompts]
    assert run(prompts, new, *rule, eos_id=3, slide=slide) == greedy


def test_eos_ends_a_row_and_the_last_one_ends_the_loop():
    prompts = [[1, 2], [3, 4, 5]]
    free = run(prompts, 15, 0.6, 4)
    eos = free[0][4]
    stopped = run(prompts, 15, 0.6, 4, eos_id=eos)
    for row, full in zip(stopped, free, strict=True):
        end = full.index(eos) + 1 if eos in full else len(full)
        assert row[:end] == full[:end][: len(row)] and set(row[end:]) <= {eos}


def test_numbers_out_of_range_are_refused():
    assert run([[1, 2]], 5, 0.6, 99) == run([[1, 2]], 5, 0.6, 31)  # all tokens are candidates
    for alpha, k in ((-0.1, 3), (1.1, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="no contrastive search"):
            run([[1]], 2, alpha, k)
    with pytest.raises(ValueError, match="a context of two or more"):
        run([[1]], 2, 0.6, 3, random_llama(**SMALL | {"max_seq_len": 1}))
    with pytest.raises(ValueError, match="a prompt is empty"):
        run([[]], 2, 0.6, 3)
