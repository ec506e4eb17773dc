"""Configurations and tensor names of Hugging Face's `config.json` and of this project, in both directions.

RMSNorm models are `LlamaForCausalLM`, with a sliding window `MistralForCausalLM`; LayerNorm models are
`StableLmForCausalLM`. What one side cannot hold is refused by
the name of its field. Hugging Face's rotary weights are half-split (feature i is paired with i + head_dim / 2), ours
are adjacent pairs, so the rows of query and key projections are reordered.

    python run_llama.py --option export --format huggingface --out runs/folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import CheckpointError, translated_names

ARCHITECTURES = {"rmsnorm": ("llama", "Llama"), "layernorm": ("stablelm", "StableLm")}  # model_type, class prefix
MODEL_TYPES = ("llama", "mistral", "stablelm", "qwen2")
SIZES = {  # config.json -> LlamaConfig
    "vocab_size": "vocab_size", "hidden_size": "dim", "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "max_position_embeddings": "max_seq_len",
}  # fmt: skip
SUPPORTED = {  # what a field of config.json may be; None: absent or null
    "hidden_act": ("silu", "swish", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_qkv_bias": (False, None),
    "qk_layernorm": (False, None),
    "use_parallel_residual": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
}
NAMES = {  # of this project's layers -> Hugging Face's
    "attention.compute_query": "self_attn.q_proj",
    "attention.compute_key": "self_attn.k_proj",
    "attention.compute_value": "self_attn.v_proj",
    "attention.compute_output": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
OWN_FIELDS = "min_llama"  # our entry of config.json, for what Hugging Face's fields do not hold


def from_their_config(path: Path, fields: dict[str, Any]) -> LlamaConfig:
    """The configuration that `fields` of `path` (a config.json) describe.

    Raises CheckpointError, naming the field, for a feature that this project's Llama does not have.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"{path}: model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}")
    for name, values in SUPPORTED.items():
        if fields.get(name) not in values:
            raise _refusal(path, name, fields[name])
    if missing := [name for name in SIZES if name not in fields]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    stable, own = model_type == "stablelm", fields.get(OWN_FIELDS)
    try:
        return LlamaConfig(
            **{ours: fields[theirs] for theirs, ours in SIZES.items()},
            n_kv_heads=fields.get("num_key_value_heads"),
            head_size=_head_size(fields),
            layer_norm_eps=fields.get("layer_norm_eps", 1e-5) if stable else fields.get("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(path, fields),
            norm_type="layernorm" if stable else "rmsnorm",
            tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
            dropout=own.get("dropout", 0.0) if isinstance(own, dict) else 0.0,
            sliding_window=_window(path, fields),
        )
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from None


def _refusal(path: Path, name: str, value: object) -> CheckpointError:
    return CheckpointError(f"{path}: {name} {value!r} is a feature that this project's Llama does not have")


def _head_size(fields: dict[str, Any]) -> int | None:
    size = fields.get("head_dim")
    return None if size is None or size * fields["num_attention_heads"] == fields["hidden_size"] else size


def _window(path: Path, fields: dict[str, Any]) -> int | None:
    """Mistral's sliding window, if it is shorter than the context; any other model's is refused."""
    window = fields.get("sliding_window", 4096 if fields["model_type"] == "mistral" else None)
    used = window is not None and fields.get("use_sliding_window", fields["model_type"] != "qwen2")
    limited = used and window < fields["max_position_embeddings"]
    if limited and fields["model_type"] != "mistral":
        raise _refusal(path, "sliding_window", window)
    if other := sorted({kind for kind in fields.get("layer_types") or () if kind != "full_attention"}):
        raise _refusal(path, "layer_types", other[0])
    return window if limited else None


def _rope_theta(path: Path, fields: dict[str, Any]) -> float:
    """The base of the rotary frequencies; scaled and partial rotary positions are refused."""
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    rope = fields.get(name) or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise _refusal(path, name, rope)
    usual = 0.25 if fields["model_type"] == "stablelm" else 1.0
    share = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", usual))
    if share != 1:
        raise _refusal(path, "partial_rotary_factor", share)
    return float(rope.get("rope_theta", fields.get("rope_theta", 10000.0)))


def to_their_config(config: LlamaConfig) -> dict[str, Any]:
    """The fields of config.json for this configuration. Raises ValueError as `check_exportable` does."""
    check_exportable(config)
    model_type, prefix = architecture(config)
    fields = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()} | {"intermediate_size": config.ffn_dim}
    fields |= {"model_type": model_type, "architectures": [f"{prefix}ForCausalLM"], "dtype": "float32"}
    fields |= {"num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, "hidden_act": "silu"}
    fields |= {"tie_word_embeddings": config.tie_embeddings, "attention_dropout": 0.0, "use_cache": True}
    fields |= {"rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    fields |= {"rope_parameters": rope, OWN_FIELDS: {"dropout": config.dropout}}
    if config.norm_type == "rmsnorm":
        fields |= {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
        return fields | {"rms_norm_eps": config.layer_norm_eps, "attention_bias": False, "mlp_bias": False}
    fields |= {"layer_norm_eps": config.layer_norm_eps, "use_qkv_bias": False, "qk_layernorm": False}
    return fields | {"use_parallel_residual": False, "hidden_dropout": 0.0}


def architecture(config: LlamaConfig) -> tuple[str, str]:
    """Hugging Face's model_type for this configuration, and the prefix of its classes."""
    return ARCHITECTURES[config.norm_type] if config.sliding_window is None else ("mistral", "Mistral")


def check_exportable(config: LlamaConfig) -> None:
    """Raises ValueError, naming the field, for a feature that Hugging Face's Llama and StableLM do not have."""
    needed = {"position_embedding_type": "rotary", "ffn_type": "swiglu", "norm_position": "pre", "causal": True}
    needed |= {"attention_type": "softmax", "gated_heads": False}
    needed |= {"sliding_window": None} if config.norm_type == "layernorm" else {}  # Mistral has RMSNorm
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ValueError(f"Hugging Face's Llama and StableLM have no {name} {getattr(config, name)!r}")
    other_size = config.head_dim * config.n_heads != config.dim
    if config.dim % config.n_heads or (config.norm_type == "layernorm" and other_size):
        raise ValueError(
            f"Hugging Face's {ARCHITECTURES[config.norm_type][1]} has no head_size {config.head_dim} "
            f"with {config.n_heads} heads and a dim of {config.dim}"
        )


def their_names(config: LlamaConfig) -> dict[str, str]:
    """Hugging Face's name of every parameter, by our name, without a tied output."""
    return translated_names(config, OUTER_NAMES, "model.layers", NAMES)


def heads_of(config: LlamaConfig, name: str) -> int | None:
    """The number of heads in the rows of a rotated projection; None for any other parameter."""
    if "compute_query" in name:
        return config.n_heads
    return config.n_kv_heads if "compute_key" in name else None


def adjacent_pairs(weight: Tensor, heads: int) -> Tensor:
    """Reorders rows (heads · head_dim, …) from half-split to adjacent pairs: ours from Hugging Face's."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])  # (heads, 2, head_dim / 2, ...)
    return halves.transpose(1, 2).reshape(weight.shape)


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Reorders rows (heads · head_dim, …) from adjacent pairs to half-split: Hugging Face's from ours."""
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])  # (heads, head_dim / 2, 2, ...)
    return pairs.transpose(1, 2).reshape(weight.shape)
