"""A model of this project as transformers' StableLM, an independent implementation of the same network.

    python -c "from bench.stablelm import stablelm; from llama import *; print(stablelm(Llama(LlamaConfig())))"
"""

from __future__ import annotations

from torch import Tensor, nn

from llama import Llama

NAMES = {"compute_query": "q_proj", "compute_key": "k_proj", "compute_value": "v_proj", "compute_output": "o_proj"}
NAMES |= {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj", "feed_forward": "mlp", "attention": "self_attn"}
NAMES |= {"tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (heads · head_dim, dim) of a query or key projection: adjacent pairs -> first halves, second halves."""
    pairs = rows.view(-1, head_dim // 2, 2, rows.shape[-1])  # (heads, pairs, 2, dim)
    return pairs.transpose(1, 2).reshape(rows.shape)


def stablelm(model: Llama) -> nn.Module:
    """The same weights in transformers' StableLM (LayerNorm) or Llama (RMSNorm), without the vocabulary's head."""
    import transformers

    ours = model.config
    shared = {"vocab_size": ours.vocab_size, "hidden_size": ours.dim, "intermediate_size": ours.ffn_dim}
    shared |= {"num_hidden_layers": ours.n_layers, "num_attention_heads": ours.n_heads}
    shared |= {"num_key_value_heads": ours.n_kv_heads, "max_position_embeddings": ours.max_seq_len}
    shared |= {"tie_word_embeddings": True, "attention_dropout": 0.0, "hidden_act": "silu"}
    shared |= {"rope_parameters": {"rope_type": "default", "rope_theta": ours.rope_theta, "partial_rotary_factor": 1.0}}
    if ours.norm_type == "layernorm":
        theirs = transformers.StableLmModel(transformers.StableLmConfig(layer_norm_eps=ours.layer_norm_eps, **shared))
    else:
        theirs = transformers.LlamaModel(transformers.LlamaConfig(rms_norm_eps=ours.layer_norm_eps, **shared))
    state = {}
    for name, tensor in model.state_dict().items():
        turned = "compute_query" in name or "compute_key" in name
        state[their_name(name)] = half_split(tensor, ours.head_dim) if turned else tensor.clone()
    state.pop("output.weight")
    theirs.load_state_dict(state, strict=True)
    return theirs.train()


def their_name(name: str) -> str:
    """`layers.0.attention.compute_query.weight` -> `layers.0.self_attn.q_proj.weight`."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))
