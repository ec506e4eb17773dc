"""Guessing ahead changes nothing but the speed: the same text, the same logits, whatever happens to the cache."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.decode.cpu_step import LeanStep
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.decode.speculative import MOST, Drafted
from tests.oracles import random_llama

SMALL = {"vocab_size": 4000, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
VARIANTS = [{}, {"norm_type": "rmsnorm", "tie_embeddings": False}]
GREEDY = Sampler(0.0)


def drafted(plain):
    model = copy.deepcopy(plain)
    model.lean_step = Drafted(LeanStep(model, screened=0))
    return model


def text(model, prompts, new, slide=8, eos=None) -> list[list[int]]:
    return torch.stack(list(stream(model, prompts, new, GREEDY, None, eos, slide=slide))).T.tolist()


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_same_text_as_the_plain_path(fields):
    plain = random_llama(**(SMALL | fields))
    model = drafted(plain)
    for prompts in ([[5]], [[1, 700, 3]], [[5, 600, 7], [3999]]):
        for new in (1, 2, 60):
            assert text(model, prompts, new) == text(plain, prompts, new)
    end = text(plain, [[5]], 12)[0][6]
    assert text(model, [[5]], 60, eos=end) == text(plain, [[5]], 60, eos=end)


@pytest.mark.parametrize("follow", [1.0, 0.5, 0.0], ids=["guessed", "half", "never"])
def test_the_logits_ahead_are_those_of_single_steps(follow):
    plain = random_llama(**SMALL)
    model, generator = drafted(plain), torch.Generator().manual_seed(1)
    ours, other, token = model.new_cache(1), plain.new_cache(1), torch.tensor([[9]])
    with torch.inference_mode():
        for _ in range(SMALL["max_seq_len"]):
            found, expected = model.step(token, ours, greedy=True), plain.step(token, other)
            assert ours.length == other.length
            best = expected.argmax(-1)
            assert int(found.argmax(-1)) == int(best)
            torch.testing.assert_close(found.amax(), expected.amax(), rtol=1e-5, atol=1e-5)
            free = torch.randint(0, 4000, (1, 1), generator=generator)
            token = best if torch.rand(1, generator=generator) < follow else free
    with pytest.raises(ValueError, match="the cache holds 24 tokens; 25 were asked for"):
        model.step(token, ours, greedy=True)


def test_right_guesses_save_passes_and_wrong_ones_make_fewer():
    model = drafted(random_llama(**(SMALL | {"max_seq_len": 200})))
    step, passes = model.lean_step, []
    several = step.exact.several
    step.exact.several = lambda tokens, cache: passes.append(len(tokens)) or several(tokens, cache)
    cache, token = model.new_cache(1), torch.tensor([[9]])
    for _ in range(100):
        token = model.step(token, cache, greedy=True).argmax(-1)
    assert len(passes) < 60 and max(passes) <= MOST + 1
    for place in range(20):
        model.step(torch.tensor([[place]]), cache, greedy=True)
    assert step.guesses <= 2


def test_nothing_is_taken_from_a_cache_that_has_changed():
    plain = random_llama(**SMALL)
    model = drafted(plain)
    token = torch.tensor([[9]])
    for change in ("clear", "shift", "hidden_states", "sampled"):
        ours, other = model.new_cache(1), plain.new_cache(1)
        with torch.inference_mode():
            for each, cache in ((model, ours), (plain, other)):
                each.hidden_states(torch.tensor([[1, 2, 3]]), cache)
                if each is model:
                    token = model.step(torch.tensor([[9]]), cache, greedy=True).argmax(-1)
                    assert cache.ahead
                else:
                    plain.step(torch.tensor([[9]]), cache)
                if change == "clear":
                    cache.clear()
                    each.hidden_states(torch.tensor([[4, 5, 6, 7]]), cache)
                elif change == "shift":
                    cache.shift(-1)
                elif change == "hidden_states":
                    each.hidden_states(torch.tensor([[8]]), cache)
                else:
                    each.step(token, cache)
            assert not ours.ahead
            found, expected = model.step(token, ours, greedy=True), plain.step(token, other)
        torch.testing.assert_close(found.amax(), expected.amax(), rtol=1e-5, atol=1e-5)
        assert int(found.argmax()) == int(expected.argmax())
