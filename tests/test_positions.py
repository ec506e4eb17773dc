"""Sinusoids, ALiBi and no positions, plain feed-forwards, norms behind: equal to NumPy, to torch, and cached."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.decode import loop as decoding
from engine.decode.sampling import Sampler
from engine.io.checkpoint import parameter_shapes, read_checkpoint, save_checkpoint
from engine.model.positions import alibi_slopes, sinusoids
from llama import Llama, from_checkpoint
from tests.golden import numpy_llama
from tests.oracles import numpy_weights, random_llama

POSITIONS, INNER, NORMED = ("rotary", "sinusoidal", "alibi", "none"), ("swiglu", "relu", "gelu"), ("pre", "post")
VARIANTS = list(itertools.product(POSITIONS, INNER, NORMED))
BASE = {"vocab_size": 61, "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24}


def model_of(positions: str, inner: str = "gelu", norms: str = "pre", **fields) -> Llama:
    fields = BASE | {"position_embedding_type": positions, "ffn_type": inner, "norm_position": norms} | fields
    return random_llama(**fields)


def tokens_of(seqlen: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 61, (batch, seqlen), generator=torch.Generator().manual_seed(seed))


def difference(actual, expected) -> float:
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("positions", "inner", "norms"), VARIANTS)
def test_every_variant_equals_float64_numpy(positions, inner, norms):
    model, tokens = model_of(positions, inner, norms, tie_embeddings=False), tokens_of(12)
    with torch.no_grad():
        logits, hidden = model(tokens, targets=tokens)
    weights = numpy_weights(model)
    expected = numpy_llama.hidden_states(tokens[0].numpy(), weights, model.config.to_dict())
    assert difference(hidden[0], expected) < 4e-6
    assert difference(logits[0], numpy_llama.logits(expected, weights)) < 4e-6


def torch_encoder(model: Llama) -> nn.TransformerEncoder:
    """torch's own Transformer with the model's weights (it keeps q, k and v in one matrix, and has biases: zero)."""
    config = model.config
    layer = nn.TransformerEncoderLayer(
        config.dim, config.n_heads, config.ffn_dim, 0.0, config.ffn_type, config.layer_norm_eps, batch_first=True,
        norm_first=config.norm_position == "pre",
    )  # fmt: skip
    final = nn.LayerNorm(config.dim, config.layer_norm_eps) if config.norm_position == "pre" else None
    encoder = nn.TransformerEncoder(layer, config.n_layers, final, enable_nested_tensor=False).to(model.dtype)
    for name, parameter in encoder.named_parameters():
        nn.init.zeros_(parameter)
        assert "norm" in name or parameter.dim() == 2 or name.endswith("bias")
    for theirs, ours in zip(encoder.layers, model.layers, strict=True):
        attention, inner = ours.attention, ours.feed_forward
        joined = [getattr(attention, f"compute_{name}").weight for name in ("query", "key", "value")]
        theirs.self_attn.in_proj_weight.data = torch.cat(joined)
        theirs.self_attn.out_proj.weight.data = attention.compute_output.weight
        theirs.linear1.weight.data, theirs.linear2.weight.data = inner.w1.weight, inner.w2.weight
        theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
        theirs.norm2.load_state_dict(ours.ffn_norm.state_dict())
    if final is not None:
        encoder.norm.load_state_dict(model.norm.state_dict())
    return encoder.eval()


@pytest.mark.parametrize("inner", ["relu", "gelu"])
@pytest.mark.parametrize("norms", NORMED)
def test_the_sinusoidal_model_is_torchs_transformer(inner, norms):
    model = model_of("sinusoidal", inner, norms, n_kv_heads=4).double()
    tokens = tokens_of(20, batch=3)
    x = 24**0.5 * model.tok_embeddings(tokens)
    x = x + torch.tensor(np.array([numpy_llama.sinusoid(place, 24) for place in range(20)]))
    mask = nn.Transformer.generate_square_subsequent_mask(20, dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(tokens)[1], torch_encoder(model)(x, mask=mask, is_causal=True)) < 1e-6


def test_sinusoids_by_hand_and_of_an_odd_width():
    table = sinusoids(3, 4).tolist()
    assert table[0] == [0.0, 1.0, 0.0, 1.0]
    assert table[2] == pytest.approx([0.9092974268, -0.4161468365, 0.0199986667, 0.9998000067])  # sin 2, cos 2, of 0.02
    np.testing.assert_allclose(sinusoids(50, 7), [numpy_llama.sinusoid(place, 7) for place in range(50)], atol=1e-6)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    assert alibi_slopes(16)[:3].tolist() == pytest.approx([2**-0.5, 2**-1.0, 2**-1.5])
    twelve = [2.0**-power for power in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve)


@pytest.mark.parametrize(("positions", "kv_heads"), list(itertools.product(POSITIONS, (1, 2, 4))))
def test_padding_beside_a_row_changes_nothing(positions, kv_heads):
    model, tokens = model_of(positions, n_kv_heads=kv_heads), tokens_of(10, batch=2)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        together, alone = model(tokens, padding_mask=mask)[1], model(tokens[:1, 4:])[1]
        assert difference(together[0, 4:], alone[0]) < 4e-6
        assert difference(together[1], model(tokens[1:])[1][0]) < 4e-6


@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=12)
@given(st.data())
def test_cached_equals_uncached_past_the_window(positions, data):
    model = model_of(positions, norms=data.draw(st.sampled_from(NORMED))).double()
    prompts = data.draw(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=3))
    slide, rows = data.draw(st.sampled_from([1, 6])), []
    for use_cache in (True, False):
        generator = torch.Generator().manual_seed(7)
        steps = decoding.stream(model, prompts, 20, Sampler(1.0), generator, use_cache=use_cache, slide=slide)
        rows.append(torch.stack(list(steps)).tolist())
    assert rows[0] == rows[1]


@pytest.mark.parametrize("positions", POSITIONS)
def test_half_precision_takes_its_own_path_to_the_same_place(positions):
    model, tokens = model_of(positions), tokens_of(16, batch=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(tokens)[1]
    assert difference(half.float(), model(tokens)[1].detach()) < 0.1


@pytest.mark.parametrize("positions", POSITIONS[1:])
def test_odd_head_sizes_need_no_pairs(positions):
    model = model_of(positions, dim=20, n_heads=4)
    assert model.config.head_dim == 5 and model(tokens_of(6))[0].isfinite().all()


@pytest.mark.parametrize(("positions", "inner", "norms"), VARIANTS)
def test_checkpoints_hold_what_the_variant_has(tmp_path, positions, inner, norms):
    model = model_of(positions, inner, norms)
    named = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert named == parameter_shapes(model.config)
    save_checkpoint(tmp_path / "m.pt", model.config, model.state_dict())
    found = read_checkpoint(tmp_path / "m.pt")
    assert found.notes == [] and found.config == model.config
    assert torch.equal(from_checkpoint(found)(tokens_of(9))[0], model(tokens_of(9))[0])


def test_a_config_from_before_these_fields_is_the_courses(tmp_path):
    model = random_llama(**BASE)
    save_checkpoint(tmp_path / "m.pt", model.config, model.state_dict())
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    for name in ("ffn_type", "norm_position"):
        assert content["config"].pop(name) in ("swiglu", "pre")
    torch.save(content, tmp_path / "old.pt")
    assert torch.equal(from_checkpoint(read_checkpoint(tmp_path / "old.pt"))(tokens_of(9))[0], model(tokens_of(9))[0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("positions", "norms"), list(itertools.product(POSITIONS, NORMED)))
def test_one_position_a_row_is_what_it_is_among_all(positions, norms, padded):
    model, tokens, places = model_of(positions, norms=norms), tokens_of(10, batch=3), torch.tensor([2, 9, 5])
    mask = None
    if padded:
        mask = torch.arange(10) <= places[:, None]
    with torch.no_grad():
        every, some = model.hidden_states(tokens, padding_mask=mask), model.hidden_states_at(tokens, places, mask)
    assert difference(some, every[torch.arange(3), places]) < 4e-6
