"""Independent models for comparison: the same weights in `transformers`, and in float64 NumPy.

transformers pairs feature i of a head with i + head_dim / 2, where we pair neighbours: the rows of the query and key
projections are reordered to match.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from llama import Llama

RENAMED = {
    "attention.compute_query": "self_attn.q_proj",
    "attention.compute_key": "self_attn.k_proj",
    "attention.compute_value": "self_attn.v_proj",
    "attention.compute_output": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "embed_tokens",
}


def random_llama(seed: int = 0, scale: float = 5.0, **fields) -> Llama:
    """A model with weights `scale` times larger than fresh ones and random norms, so that every part matters."""
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
            assert parameter.abs().sum() > 0, name
    return model


def half_split_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection (heads * head_dim, dim): within a head, the even features first, then the odd ones."""
    rows = weight.view(heads, -1, 2, weight.shape[1])  # (heads, head_dim / 2, 2, dim)
    return rows.transpose(1, 2).reshape(weight.shape)


def transformers_state(model: Llama) -> dict[str, Tensor]:
    """The model's weights under the names, and with the pairing, of transformers' Llama and StableLM."""
    config, renamed = model.config, {}
    for name, tensor in model.state_dict().items():
        if "compute_query" in name or "compute_key" in name:
            tensor = half_split_rows(tensor, config.n_heads if "query" in name else config.n_kv_heads)
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        renamed["lm_head.weight" if name == "output.weight" else f"model.{name}"] = tensor.clone()
    return renamed


def transformers_model(model: Llama):
    """`LlamaForCausalLM` (RMSNorm) or `StableLmForCausalLM` (LayerNorm) with the model's weights, in its dtype."""
    import transformers

    config = model.config
    fields = {
        "vocab_size": config.vocab_size, "hidden_size": config.dim, "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings, "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0},
    }  # fmt: skip
    if config.norm_type == "rmsnorm":
        other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, rms_norm_eps=config.layer_norm_eps))
    else:
        fields |= {"layer_norm_eps": config.layer_norm_eps, "use_qkv_bias": False, "hidden_dropout": 0.0}
        other = transformers.StableLmForCausalLM(transformers.StableLmConfig(**fields))
    other.load_state_dict(transformers_state(model))
    return other.to(model.dtype).eval()


def numpy_weights(model: Llama) -> dict[str, np.ndarray]:
    """The model's weights in float64 for `tests/golden/numpy_llama.py`."""
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
