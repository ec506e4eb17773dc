"""The configuration: the course's defaults, JSON in and out, and what no model can be built with."""

from __future__ import annotations

import pytest

from config import LlamaConfig

COURSE = {
    "vocab_size": 32000, "dim": 512, "dropout": 0.0, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "max_seq_len": 1024,
    "layer_norm_eps": 1e-5, "multiple_of": 32, "hidden_dim": None, "position_embedding_type": "rotary",
    "use_cache": True,
}  # fmt: skip


def test_the_courses_defaults():
    fields = LlamaConfig().to_dict()
    assert {name: fields[name] for name in COURSE} == COURSE


@pytest.mark.parametrize(
    ("dim", "multiple_of", "ffn_dim"),
    [(512, 32, 1376), (288, 32, 768), (16, 32, 64), (8, 32, 32), (8, 1, 21), (768, 256, 2048)],
)
def test_the_feed_forward_width_of_llama2c(dim, multiple_of, ffn_dim):
    assert LlamaConfig(dim=dim, multiple_of=multiple_of, n_heads=2, n_kv_heads=2).ffn_dim == ffn_dim


def test_json_round_trip():
    config = LlamaConfig(dim=24, n_heads=4, n_kv_heads=None, norm_type="rmsnorm", rope_theta=100.0, hidden_dim=7)
    assert LlamaConfig.from_json(config.to_json()) == config
    assert config.n_kv_heads == 4 and config.ffn_dim == 7


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"unknown configuration field\(s\): colour, size"):
        LlamaConfig.from_dict({"dim": 16, "size": 1, "colour": 2})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30}, "dim 30 cannot be split into 8 heads"),
        ({"n_kv_heads": 3}, "n_heads 8 is not a multiple of n_kv_heads 3"),
        ({"dim": 24, "n_heads": 8}, "even head size: 3"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"n_layers": 2.0}, "n_layers"),
        ({"n_heads": True}, "n_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"norm_type": "batchnorm"}, "norm_type must be one of layernorm, rmsnorm"),
        ({"position_embedding_type": "learned"}, "position_embedding_type"),
        ({"ffn_type": "tanh"}, "ffn_type must be one of swiglu, relu, gelu"),
        ({"attention_type": "linear"}, "attention_type must be one of softmax, differential"),
        ({"attention_type": "differential", "n_kv_heads": 1}, "n_heads 8 and n_kv_heads 1 must be even"),
        ({"sliding_window": 0}, "sliding_window must be a positive whole number"),
        ({"gated_heads": 1}, "gated_heads must be true or false"),
        ({"norm_position": "middle"}, "norm_position must be one of pre, post"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**fields)
