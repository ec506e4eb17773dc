"""The Llama equals transformers' and a float64 calculation spelled out in NumPy, in every variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import llama
from config import LlamaConfig
from llama import Attention, LayerNorm, Llama, RMSNorm
from rope import apply_rotary_emb, rotate, rotate_spelled_out, rotation_table
from tests.golden import numpy_llama
from tests.oracles import numpy_weights, random_llama, transformers_model

VARIANTS = {
    "layernorm": {},
    "rmsnorm": {"norm_type": "rmsnorm"},
    "one KV head": {"n_kv_heads": 1},
    "no grouping": {"n_kv_heads": 4, "norm_type": "rmsnorm"},
    "untied": {"tie_embeddings": False},
    "untied rmsnorm": {"tie_embeddings": False, "norm_type": "rmsnorm", "rope_theta": 100.0},
    "odd width": {"dim": 24, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 50, "rope_theta": 500.0},
}
BASE = {"vocab_size": 97, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 48}


def model_of(variant: str) -> Llama:
    return random_llama(**(BASE | VARIANTS[variant]))


def tokens_of(seqlen: int = 40, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, BASE["vocab_size"], (batch, seqlen), generator=torch.Generator().manual_seed(3))


def difference(actual, expected) -> float:
    """Largest difference, on the scale of what is expected."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant):
    model, tokens = model_of(variant), tokens_of()
    with torch.no_grad():
        logits, _ = model(tokens, targets=tokens)
        expected = transformers_model(model)(tokens).logits
    assert difference(logits, expected) < 2e-6


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_equals_float64_numpy(variant, causal):
    model = random_llama(**(BASE | VARIANTS[variant] | {"causal": causal}))
    tokens, weights = tokens_of(seqlen=12, batch=1), numpy_weights(model)
    with torch.no_grad():
        logits, hidden = model(tokens, targets=tokens)
        _, hidden64 = model.double()(tokens, targets=tokens)
    config = model.config.to_dict()
    expected = numpy_llama.hidden_states(tokens[0].numpy(), weights, config)
    assert difference(hidden[0], expected) < 2e-6
    assert difference(logits[0], numpy_llama.logits(expected, weights)) < 2e-6
    assert difference(hidden64[0], expected) < 1e-6  # rotation tables and norms' inputs stay float32


def test_only_the_last_logits_without_targets():
    model, tokens = model_of("layernorm"), tokens_of()
    with torch.no_grad():
        last, hidden = model(tokens)
        every, same_hidden = model(tokens, targets=tokens)
    assert last.shape == (3, 1, 97) and hidden.shape == (3, 40, 32)
    torch.testing.assert_close(last, every[:, -1:], rtol=1e-6, atol=1e-6)
    assert torch.equal(hidden, same_hidden)


@given(st.integers(1, 6), st.floats(0.01, 1000.0), st.integers(0, 99))
def test_norms_equal_numpy(width, scale, seed):
    random = np.random.default_rng(seed)
    x, weight, bias = random.normal(1.0, scale, (3, 5, 4 * width)), *random.normal(size=(2, 4 * width))
    layer, rms = LayerNorm(4 * width, 1e-5), RMSNorm(4 * width, 1e-5)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    rms.load_state_dict({"weight": torch.tensor(weight)})
    tensor = torch.tensor(x)
    with torch.no_grad():
        plain = layer._norm(tensor) * torch.tensor(weight) + torch.tensor(bias)
        assert difference(plain, numpy_llama.layer_norm(x, weight, bias, 1e-5)) < 1e-12
        single = layer(tensor.float())
        assert single.dtype == torch.float32
        assert difference(single, numpy_llama.layer_norm(x, weight, bias, 1e-5)) < 1e-4
        assert difference(rms(tensor.float()), numpy_llama.rms_norm(x, weight, 1e-5)) < 1e-5
        half = layer(tensor.bfloat16())
        assert half.dtype == torch.bfloat16 and half.isfinite().all()


@given(st.sampled_from([2, 4, 6, 16]), st.floats(10.0, 1e6), st.integers(1, 30), st.integers(0, 99))
def test_rope_equals_complex_rotation(head_dim, theta, seqlen, seed):
    random = np.random.default_rng(seed)
    query, key = random.normal(size=(2, seqlen, 3, head_dim)), random.normal(size=(2, seqlen, 1, head_dim))
    turned = apply_rotary_emb(torch.tensor(query).float(), torch.tensor(key).float(), head_dim, 32, theta)
    for actual, x in zip(turned, (query, key), strict=True):
        expected = [
            [[numpy_llama.turn(head, place, theta) for head in row] for place, row in enumerate(batch)] for batch in x
        ]
        assert difference(actual.double(), np.array(expected)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_turned_as_complex_numbers_is_turned_as_real_ones(dtype):
    wide = torch.randn(2, 7, 12, 4, dtype=torch.float64).to(dtype)
    cos, sin = (table[:7, None] for table in rotation_table(8, 16))
    whole, shifted = wide.flatten(2).view(2, 7, 6, 8), wide.flatten(2)[..., 1:25].unflatten(2, (3, 8))
    for x in (whole, shifted, wide.transpose(2, 3)[..., 1:9]):  # as they come, and in strides of no complex number
        results = []
        for turn in (rotate, rotate_spelled_out):
            leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            turned = turn(leaf, cos, sin)
            (turned * turned.detach().roll(1, -1)).sum().backward()
            results.append((turned, leaf.grad))
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype != torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(results[0], results[1], **tolerance)
        torch.testing.assert_close(rotate(x, cos, sin), rotate_spelled_out(x, cos, sin), **tolerance)


def test_rmsnorms_gradient_by_hand():
    norm = RMSNorm(6, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    found = []
    for way in (norm, norm._norm):
        norm.zero_grad()
        x.grad = None
        way(x).pow(3).sum().backward()
        found.append((x.grad.clone(), norm.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_far_positions_are_as_exact_as_near_ones():
    cos, sin = rotation_table(64, 100_000)
    angles = 99_999 * 10000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(cos[-1].numpy(), np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[-1].numpy(), np.sin(angles), atol=1e-6)
    assert rotation_table(64, 100_000)[0] is cos  # once, not per layer and call


def test_a_sequence_beyond_the_positions_is_refused():
    with pytest.raises(ValueError, match="21 tokens is longer than the 20"):
        apply_rotary_emb(torch.zeros(1, 21, 1, 4), torch.zeros(1, 21, 1, 4), 4, 20)
    with pytest.raises(ValueError, match="49 tokens are more than the model's 48"):
        model_of("layernorm")(torch.zeros(1, 49, dtype=torch.long))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_numpy_and_the_plain_path(kv_heads, causal):
    config = LlamaConfig(**(BASE | {"n_kv_heads": kv_heads, "causal": causal}))
    attention, random = Attention(config), np.random.default_rng(0)
    query, key, value = (random.normal(size=(1, heads, 9, 8)) for heads in (4, kv_heads, kv_heads))
    tensors = [torch.tensor(x) for x in (query, key, value)]
    expected = numpy_llama.attend(query[0], key[0], value[0], causal)
    assert difference(attention.compute_query_key_value_scores(*tensors)[0], expected) < 1e-12
    assert difference(llama.plain_attention(*tensors, None, causal)[0], expected) < 1e-12
    if kv_heads == 4:  # the course's callers repeat the keys themselves
        return
    repeated = [tensors[0], *(x.repeat_interleave(4 // kv_heads, dim=1) for x in tensors[1:])]
    assert difference(attention.compute_query_key_value_scores(*repeated)[0], expected) < 1e-12


def test_plain_attention_takes_masks_as_the_fused_kernel_does():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 5, 7, generator=generator) < 0.6
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert difference(llama.plain_attention(query, key, value, mask, causal=False), expected) < 1e-12


def test_no_key_is_copied_for_a_single_position(monkeypatch):
    shapes = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **options):
        shapes.append(tuple(key.shape))
        return fused(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = model_of("layernorm")
    model(tokens_of(seqlen=1))
    assert shapes == [(3, 2, 1, 8)] * 3


def test_residual_projections_start_smaller_and_nothing_but_weights_is_stored():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=500, dim=128, n_layers=8, n_heads=4, n_kv_heads=2))
    spread = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.dim() == 2}
    for name, std in spread.items():
        expected = 0.02 / 4 if name.endswith(("compute_output.weight", "w2.weight")) else 0.02
        assert std == pytest.approx(expected, rel=0.1), name
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} | {"output.weight"}
    assert model.output.weight is model.tok_embeddings.weight
    assert model.parameter_count() == sum(parameter.numel() for parameter in model.parameters())


def test_padding_beside_a_row_changes_nothing():
    model, tokens = model_of("layernorm"), tokens_of(seqlen=10, batch=2)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        _, together = model(tokens, padding_mask=mask)
        _, alone = model(tokens[:1, 4:])
        _, other = model(tokens[1:])
    assert difference(together[0, 4:], alone[0]) < 2e-6
    assert difference(together[1], other[0]) < 2e-6
