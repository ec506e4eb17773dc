"""Sliding windows, differential attention and gated heads: spelled-out float64 formulas, caches, batches, and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import run_llama
from config import ATTENTION_VARIANTS, LlamaConfig
from engine.decode.continuous_batching import one_by_one, refilled
from engine.decode.sampling import Sampler
from engine.io.checkpoint import load_plain, parameter_shapes, read_checkpoint, save_checkpoint
from llama import Attention, Llama, from_checkpoint
from tasks.addition.batched_model import check_config
from tasks.addition.native_step import supported
from tasks.attention_maps import attention_weights
from tests.golden.numpy_llama import slope, softmax, turn
from tests.oracles import random_llama
from tests.test_gradient_checkpointing import assert_same_bits, gradients
from tests.tiny import TOKENIZER, write_corpus

SMALL = {"vocab_size": 61, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}
ALL = {"attention_type": "differential", "gated_heads": True, "sliding_window": 4}
VARIANTS = {
    "window": {"sliding_window": 5},
    "window of one": {"sliding_window": 1},
    "differential": {"attention_type": "differential"},
    "gated": {"gated_heads": True},
    "all": ALL,
    "all with ALiBi": ALL | {"position_embedding_type": "alibi"},
    "all, ungrouped": ALL | {"n_kv_heads": 4},
}
MODELS = {name: random_llama(**(SMALL | fields)).double() for name, fields in VARIANTS.items()}
TOKENS = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(2))


def softmax_map(config: LlamaConfig, queries: np.ndarray, keys: np.ndarray, head: int) -> np.ndarray:
    """The attention map (seqlen, seqlen) of one head, position by position."""
    weights = np.zeros((len(queries), len(queries)))
    for position in range(len(queries)):
        first = max(0, position - config.sliding_window + 1) if config.sliding_window else 0
        seen = range(first, position + 1)
        scores = np.array([queries[position] @ keys[other] / np.sqrt(config.head_dim) for other in seen])
        if config.position_embedding_type == "alibi":
            scores -= [slope(head, config.n_heads) * (position - other) for other in seen]
        weights[position, first : position + 1] = softmax(scores)
    return weights


def head_vectors(config: LlamaConfig, x: np.ndarray, weight: np.ndarray, rotated: bool) -> np.ndarray:
    """Projected heads (seqlen, heads, head_dim) of x (seqlen, dim)."""
    vectors = (x @ weight.T).reshape(len(x), -1, config.head_dim)
    if rotated and config.position_embedding_type == "rotary":
        vectors = [[turn(vector, place, config.rope_theta) for vector in row] for place, row in enumerate(vectors)]
    return np.array(vectors)


def formula(attention: Attention, config: LlamaConfig, x: np.ndarray, layer_id: int) -> np.ndarray:
    """The attention layer on x (seqlen, dim) in NumPy, as the papers write it."""
    weight = {name: tensor.detach().numpy() for name, tensor in attention.named_parameters()}
    queries, keys, values = (
        head_vectors(config, x, weight[f"compute_{part}.weight"], part != "value") for part in ("query", "key", "value")
    )
    shared, outputs = config.n_heads // config.n_kv_heads, []
    if config.attention_type == "differential":
        dots = [weight[f"differential.lambda_q{i}"] @ weight[f"differential.lambda_k{i}"] for i in (1, 2)]
        first = 0.8 - 0.6 * np.exp(-0.3 * layer_id)
        balance = np.exp(dots[0]) - np.exp(dots[1]) + first
        for head in range(config.n_heads // 2):
            pair = head // shared
            one = softmax_map(config, queries[:, 2 * head], keys[:, 2 * pair], 2 * head)
            two = softmax_map(config, queries[:, 2 * head + 1], keys[:, 2 * pair + 1], 2 * head + 1)
            out = (one - balance * two) @ np.concatenate([values[:, 2 * pair], values[:, 2 * pair + 1]], axis=1)
            rms = np.sqrt((out**2).mean(axis=1, keepdims=True) + config.layer_norm_eps)
            outputs.append((1 - first) * out / rms * weight["differential.norm.weight"])
    else:
        for head in range(config.n_heads):
            weights = softmax_map(config, queries[:, head], keys[:, head // shared], head)
            outputs.append(weights @ values[:, head // shared])
    if config.gated_heads:
        gates = 1 / (1 + np.exp(-x @ weight["gate.compute_gate.weight"].T))  # (seqlen, heads)
        outputs = [out * gates[:, [head]] for head, out in enumerate(outputs)]
    return np.concatenate(outputs, axis=1) @ weight["compute_output.weight"].T


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layer_id", [0, 1])
def test_a_layer_is_its_formula(name, layer_id):
    model, record = MODELS[name], {}
    attention = model.layers[layer_id].attention
    hook = attention.register_forward_hook(lambda module, inputs, output: record.update(x=inputs[0], output=output))
    with torch.no_grad():
        model.hidden_states(TOKENS[:1])
    hook.remove()
    expected = formula(attention, model.config, record["x"][0].numpy(), layer_id)
    np.testing.assert_allclose(record["output"][0].numpy(), expected, rtol=1e-5, atol=1e-6)  # RoPE's table is float32


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_batched_and_cached_decoding_is_that_of_one_prompt_without_a_cache(name, data):
    prompts = data.draw(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), min_size=1, max_size=5))
    slide, eos = data.draw(st.sampled_from([1, 8])), data.draw(st.sampled_from([None, 7]))
    how = (MODELS[name], prompts, 12, Sampler(1.0, top_p=0.9), 3, eos, slide)
    assert dict(refilled(*how, rows=2)) == dict(one_by_one(*how, use_cache=False))


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_beside_a_row_and_a_single_column_change_nothing(name):
    model, mask = MODELS[name], torch.ones(3, 17, dtype=torch.bool)
    mask[0, :6] = False
    with torch.no_grad():
        hidden = model.hidden_states(TOKENS, padding_mask=mask)
        torch.testing.assert_close(hidden[:1, 6:], model.hidden_states(TOKENS[:1, 6:]))
        torch.testing.assert_close(hidden[1:], model.hidden_states(TOKENS[1:]))
        columns = torch.tensor([16, 3, 9])
        for given_mask in (mask, None):
            expected = model.hidden_states(TOKENS, padding_mask=given_mask)[torch.arange(3), columns]
            torch.testing.assert_close(model.hidden_states_at(TOKENS, columns, given_mask), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_and_gradient_checkpointing(name):
    model = random_llama(scale=2.0, **(SMALL | VARIANTS[name]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model.hidden_states(TOKENS)
    plain = model.hidden_states(TOKENS).detach()
    assert ((half - plain).norm() / plain.norm()).item() < 0.05
    assert_same_bits(gradients(VARIANTS[name], 1), gradients(VARIANTS[name], 0))


def test_a_wide_window_is_plain_attention_to_the_bit():
    plain, wide = (random_llama(**SMALL, sliding_window=window) for window in (None, 17))
    assert torch.equal(plain.hidden_states(TOKENS), wide.hidden_states(TOKENS))


@pytest.mark.parametrize("name", VARIANTS)
def test_files_hold_a_variant_and_say_nothing_of_it_otherwise(tmp_path, name):
    model = random_llama(**(SMALL | VARIANTS[name]))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == parameter_shapes(model.config)
    save_checkpoint(tmp_path / "model.pt", model.config, model.state_dict())
    again = from_checkpoint(read_checkpoint(tmp_path / "model.pt"))
    assert again.config == model.config
    assert torch.equal(again.hidden_states(TOKENS), model.hidden_states(TOKENS))
    usual = Llama(LlamaConfig(**SMALL))
    save_checkpoint(tmp_path / "usual.pt", usual.config, usual.state_dict())
    assert not set(ATTENTION_VARIANTS) & set(load_plain(tmp_path / "usual.pt")["config"])


def test_attention_maps_of_differential_attention_are_those_of_both_softmaxes():
    maps = attention_weights(MODELS["differential"], TOKENS[0])
    assert maps.shape == (2, 4, 17, 17)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 4, 17, dtype=torch.float64))


@pytest.mark.parametrize("name", ["window", "differential", "gated"])
def test_the_fast_paths_of_adders_leave_variants_to_the_plain_one(name):
    config = LlamaConfig(vocab_size=13, dim=8, n_heads=2, n_kv_heads=2, max_seq_len=16)
    check_config(config)
    variant = LlamaConfig(**(config.to_dict() | VARIANTS[name]))
    with pytest.raises(ValueError, match="plain attention"):
        check_config(variant)
    assert not supported(variant, torch.device("cpu"))


def test_a_run_goes_on_only_with_the_attention_it_began_with(tmp_path, capsys):
    paths = ["--corpus", str(write_corpus(tmp_path / "corpus.txt", 20)), "--tokenizer", str(TOKENIZER)]
    shape = ["--dim=16", "--n_layers=1", "--n_heads=2", "--n_kv_heads=2", "--max_seq_len=32", "--epochs=1"]
    words = ["--option", "pretrain", *paths, *shape, "--threads=1", "--save_dir", str(tmp_path / "run")]
    assert run_llama.main([*words, "--sliding_window", "8"]) == 0
    assert read_checkpoint(tmp_path / "run" / "best.pt").config.sliding_window == 8
    assert run_llama.main([*words, "--resume"]) == 2
    assert "was started with sliding_window 8, not None" in capsys.readouterr().err
