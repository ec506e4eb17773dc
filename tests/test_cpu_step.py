"""The fused CPU step equals the plain one for every shape of model and batch; int8 stays close."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import run_llama
from engine.decode import cpu_step
from engine.decode.cpu_step import CpuStep
from engine.decode.fast_step import choose_step
from engine.decode.loop import stream
from engine.decode.packed_linear import PackedLinear, SplitDense, int8, saturates
from engine.decode.sampling import Sampler
from llama import load_pretrained
from tests.oracles import random_llama
from tests.tiny import ROOT, step_logits, write_tiny_checkpoint
from tokenizer import load_tokenizer

SMALL = {"vocab_size": 61, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
VARIANTS = [{}, {"norm_type": "rmsnorm"}, {"tie_embeddings": False}, {"n_kv_heads": 1}, {"n_kv_heads": 4}]
VARIANTS += [{"head_size": 6}, {"sliding_window": 5}, {"sliding_window": 1, "norm_type": "rmsnorm"}]
MODELS = [random_llama(**(SMALL | fields)).double() for fields in VARIANTS]
FAST = [copy.deepcopy(model) for model in MODELS]
STEPS = [choose_step(model) for model in FAST]


def run(model, prompts, new, rule, step=None, slide=8) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return torch.stack(list(stream(model, prompts, new, rule, generator, slide=slide, step=step))).T.tolist()


@settings(max_examples=40)
@given(
    which=st.integers(0, len(MODELS) - 1),
    prompts=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=4),
    new=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_the_same_tokens_as_the_plain_path(which, prompts, new, temperature):
    rule = Sampler(temperature, top_p=0.9)
    assert run(FAST[which], prompts, new, rule, STEPS[which]) == run(MODELS[which], prompts, new, rule)


@pytest.mark.parametrize("which", range(len(MODELS)), ids=lambda which: str(VARIANTS[which]))
def test_the_same_logits_as_the_plain_path(which):
    for padded in (False, True):
        found = (step_logits(MODELS[which], padded), step_logits(FAST[which], padded, STEPS[which]))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", range(len(MODELS)), ids=lambda which: str(VARIANTS[which]))
def test_a_model_larger_than_the_cache_gives_the_same_logits_from_split_products(which, monkeypatch):
    monkeypatch.setattr(cpu_step, "LARGE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = copy.deepcopy(MODELS[which])
    step = choose_step(model)
    assert isinstance(step, CpuStep)
    assert isinstance(step.output, SplitDense)
    for padded in (False, True):
        found = (step_logits(MODELS[which], padded), step_logits(model, padded, step))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_the_model_goes_on_as_it_was_and_nothing_is_doubled():
    tokens = torch.arange(20)[None]
    for plain, lean in zip(MODELS, FAST, strict=True):
        torch.testing.assert_close(lean(tokens)[0], plain(tokens)[0], rtol=1e-12, atol=1e-12)
        attention = lean.layers[0].attention
        parts = (attention.compute_query, attention.compute_key, attention.compute_value)
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1


def test_int8_costs_hardly_any_loss_on_the_shipped_model():
    tokenizer = load_tokenizer(ROOT / "models" / "stories.model")
    text = "Once upon a time, there was a little girl named Lily. She loved to play in the sun with her red ball."
    ids = torch.tensor([tokenizer.encode(text, bos=True, eos=False)])
    losses = []
    for kind in ("float32", "int8"):
        model = load_pretrained(str(ROOT / "models" / "stories.pt"))
        step, cache = CpuStep(model, kind), model.new_cache(1, 64)
        with torch.inference_mode():
            logits = torch.cat([step(ids[:, place : place + 1], cache) for place in range(ids.shape[1] - 1)], dim=1)
        losses.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def activation_step() -> float:
    """Rounding of activations relative to 8 bits: twice as coarse where the kernel needs 7 (no VNNI)."""
    return 2.0 if saturates() else 1.0


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_packed_weights_serve_the_plain_path_too_and_the_models_own_are_dropped(kind):
    fields = SMALL | {"dim": 64, "n_heads": 4}
    exact, model = random_llama(**fields), random_llama(**fields)
    step = choose_step(model, kind)
    assert {name for name, parameter in model.named_parameters() if parameter.dim() == 2} == {"tok_embeddings.weight"}
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        expected, found = (llama(tokens, targets=tokens)[0] for llama in (exact, model))
        cache = model.new_cache(2)
        stepped = torch.cat([step(tokens[:, place : place + 1], cache) for place in range(20)], dim=1)
    error = (found - expected).norm() / expected.norm()
    int8_error = 0.05 * activation_step()
    assert 1e-5 < error < {"int8": int8_error, "bfloat16": 0.01}[kind]
    assert (found - stepped).norm() / expected.norm() < {"int8": int8_error, "bfloat16": 1e-5}[kind]


def test_each_row_of_a_packed_product_has_a_scale_of_its_own():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 6).view(2, 3, 1)
    x[0, 0] = 0.0
    found = PackedLinear(int8(weight))(x)
    expected = x @ weight.T
    assert not found[0, 0].any()
    assert torch.equal(found[1], PackedLinear(int8(weight))(x[1])), "a row must not depend on its neighbours"
    assert ((found - expected).norm(dim=-1) <= 0.02 * activation_step() * expected.norm(dim=-1)).all()


def test_int8_text_does_not_depend_on_its_neighbours():
    model = random_llama(**(SMALL | {"dim": 64, "n_heads": 4}))
    step = choose_step(model, "int8")
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [60, 2]]
    together = run(model, prompts, 12, Sampler(0.0), step)
    assert together == [run(model, [prompt], 12, Sampler(0.0), step)[0] for prompt in prompts]


def test_generate_in_int8_and_where_it_cannot_be_had(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    flags = ["--pretrained-model-path", "tiny.pt", "--prompt", "Once", "--max_new_tokens", "8", "--quantize", "int8"]
    assert run_llama.main(flags) == 0
    assert "tokens/s" in capsys.readouterr().out
    for fields in ({"position_embedding_type": "alibi"}, {"attention_type": "differential"}, {"gated_heads": True}):
        model = random_llama(**SMALL, **fields)
        with pytest.raises(ValueError, match="int8 weights for generation need"):
            choose_step(model, "int8")
        assert not isinstance(choose_step(model), CpuStep)
