"""The step of fixed shapes equals the plain one on a CPU; that a CUDA graph replays it is tested where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.decode.cuda_step import StaticStep
from engine.decode.fast_step import make_lean, round_weights
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from tests.oracles import random_llama
from tests.tiny import step_logits

SMALL = {"vocab_size": 61, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
VARIANTS = [{}, {"norm_type": "rmsnorm"}, {"tie_embeddings": False, "n_kv_heads": 4}]
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8]]
GREEDY = Sampler(0.0)


def text(model, prompts, new=30, rule=GREEDY) -> list[list[int]]:
    generator = torch.Generator(model.device).manual_seed(5)
    return torch.stack(list(stream(model, prompts, new, rule, generator, slide=8))).T.tolist()


def static(plain):
    model = copy.deepcopy(plain)
    model.lean_step = StaticStep(model)
    return model


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "alone"])
def test_the_same_text_as_the_plain_path(fields, prompts):
    plain = random_llama(**(SMALL | fields))
    assert text(static(plain), prompts) == text(plain, prompts)
    sampled = Sampler(1.0, top_p=0.9)
    assert text(static(plain), prompts, 12, sampled) == text(plain, prompts, 12, sampled)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_same_logits_as_the_plain_path(fields):
    plain = random_llama(**(SMALL | fields))
    model = static(plain)
    for padded in (False, True, False):
        torch.testing.assert_close(step_logits(model, padded), step_logits(plain, padded), rtol=1e-5, atol=1e-5)


def test_shapes_and_places_stay_and_a_full_cache_is_refused():
    model = static(random_llama(**SMALL))
    cache = model.new_cache(1, 3)
    places = set()
    for token in range(3):
        logits = model.step(torch.tensor([[token]]), cache)
        places.add((logits.data_ptr(), id(model.lean_step.program)))
    assert len(places) == 1
    with pytest.raises(ValueError, match="the cache holds 3 tokens; 4 were asked for"):
        model.step(torch.tensor([[1]]), cache)


def test_bfloat16_is_of_the_weights_alone():
    plain = random_llama(**SMALL)
    model = copy.deepcopy(plain)
    round_weights(model)
    assert model.dtype == torch.bfloat16 and model.rope_cos.dtype == torch.float32
    model.lean_step = StaticStep(model)
    rounded = copy.deepcopy(plain)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    with torch.no_grad():
        found = model.step(torch.tensor([[7]]), model.new_cache(1))
        expected = rounded.step(torch.tensor([[7]]), rounded.new_cache(1))
    assert (found - expected).norm() / expected.norm() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: a graph is captured and replayed")
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "alone"])
def test_a_captured_graph_gives_the_same_text(prompts):
    plain = random_llama(**SMALL).cuda()
    model = copy.deepcopy(plain)
    make_lean(model)
    assert isinstance(model.lean_step, StaticStep)
    assert text(model, prompts) == text(plain, prompts)
    make_lean(model, "bfloat16")
    assert len(text(model, prompts)[0]) == 30
