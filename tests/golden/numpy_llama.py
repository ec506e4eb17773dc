"""The Llama of `llama.py` spelled out in float64 NumPy, one head and one position at a time: an oracle.

Shares nothing with the project: it reads weights by name from a plain mapping and takes the configuration as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy import ndarray


def layer_norm(x: ndarray, weight: ndarray, bias: ndarray, eps: float) -> ndarray:
    """x (..., dim): (x − mean) / √(biased variance + eps) · weight + bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def rms_norm(x: ndarray, weight: ndarray, eps: float) -> ndarray:
    """x (..., dim): x / √(mean of squares + eps) · weight."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def turn(vector: ndarray, position: int, theta: float) -> ndarray:
    """One head's vector (head_dim,), its adjacent pairs taken as complex numbers and turned."""
    head_dim = len(vector)
    pairs = vector[0::2] + 1j * vector[1::2]
    angles = position * theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    turned = pairs * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(head_dim)


def softmax(scores: ndarray) -> ndarray:
    """exp(scores) over their sum."""
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def sinusoid(position: int, dim: int) -> ndarray:
    """The position's row (dim,), feature by feature."""
    row = np.zeros(dim)
    for feature in range(dim):
        angle = position / 10000.0 ** ((feature - feature % 2) / dim)
        row[feature] = np.cos(angle) if feature % 2 else np.sin(angle)
    return row


def slope(head: int, heads: int) -> float:
    """ALiBi's slope of a head, for a number of heads that is a power of two."""
    return 1.0 / 2.0 ** (8.0 / heads * (head + 1))


def attend(queries: ndarray, keys: ndarray, values: ndarray, causal: bool, alibi: bool = False) -> ndarray:
    """queries (heads, seqlen, head_dim), keys and values (kv_heads, seqlen, head_dim) -> (heads, seqlen, head_dim)."""
    heads, seqlen, head_dim = queries.shape
    shared = heads // len(keys)
    out = np.zeros_like(queries)
    for head in range(heads):
        for place in range(seqlen):
            seen = place + 1 if causal else seqlen
            scores = keys[head // shared, :seen] @ queries[head, place] / np.sqrt(head_dim)
            if alibi:
                scores -= slope(head, heads) * np.abs(place - np.arange(seen))
            out[head, place] = softmax(scores) @ values[head // shared, :seen]
    return out


def _split(x: ndarray, heads: int) -> ndarray:
    """(seqlen, heads * head_dim) -> (heads, seqlen, head_dim)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _normalise(x: ndarray, weights: Mapping[str, ndarray], name: str, eps: float) -> ndarray:
    if f"{name}.bias" in weights:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
    return rms_norm(x, weights[f"{name}.weight"], eps)


def _attention(x: ndarray, weights: Mapping[str, ndarray], name: str, config: Mapping) -> ndarray:
    query, key, value = (x @ weights[f"{name}.compute_{part}.weight"].T for part in ("query", "key", "value"))
    query, key = _split(query, config["n_heads"]), _split(key, config["n_kv_heads"])
    theta, positions = config["rope_theta"], config.get("position_embedding_type", "rotary")
    if positions == "rotary":
        query, key = (
            np.array([[turn(vector, place, theta) for place, vector in enumerate(head)] for head in part])
            for part in (query, key)
        )
    attended = attend(query, key, _split(value, config["n_kv_heads"]), config["causal"], positions == "alibi")
    return attended.transpose(1, 0, 2).reshape(len(x), -1) @ weights[f"{name}.compute_output.weight"].T


def _feed_forward(x: ndarray, weights: Mapping[str, ndarray], name: str, kind: str) -> ndarray:
    up = x @ weights[f"{name}.w1.weight"].T
    if kind == "relu":
        inner = np.where(up > 0.0, up, 0.0)
    elif kind == "gelu":
        inner = up * np.vectorize(lambda value: 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))))(up)
    else:
        inner = up / (1.0 + np.exp(-up)) * (x @ weights[f"{name}.w3.weight"].T)
    return inner @ weights[f"{name}.w2.weight"].T


def hidden_states(tokens: ndarray, weights: Mapping[str, ndarray], config: Mapping) -> ndarray:
    """tokens (seqlen,) -> hidden states after the final norm, (seqlen, dim)."""
    weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
    eps, kind = config["layer_norm_eps"], config.get("ffn_type", "swiglu")
    x = weights["tok_embeddings.weight"][tokens]
    if config.get("position_embedding_type") == "sinusoidal":
        x = np.sqrt(x.shape[1]) * x + np.array([sinusoid(place, x.shape[1]) for place in range(len(x))])
    for index in range(config["n_layers"]):
        layer = f"layers.{index}."
        if config.get("norm_position") == "post":
            x = x + _attention(x, weights, f"{layer}attention", config)
            x = _normalise(x, weights, f"{layer}attention_norm", eps)
            x = x + _feed_forward(x, weights, f"{layer}feed_forward", kind)
            x = _normalise(x, weights, f"{layer}ffn_norm", eps)
            continue
        normed = _normalise(x, weights, f"{layer}attention_norm", eps)
        x = x + _attention(normed, weights, f"{layer}attention", config)
        normed = _normalise(x, weights, f"{layer}ffn_norm", eps)
        x = x + _feed_forward(normed, weights, f"{layer}feed_forward", kind)
    return x if config.get("norm_position") == "post" else _normalise(x, weights, "norm", eps)


def logits(hidden: ndarray, weights: Mapping[str, ndarray]) -> ndarray:
    """hidden (..., dim) -> (..., vocab_size); a missing output is the embedding."""
    output = weights["output.weight"] if "output.weight" in weights else weights["tok_embeddings.weight"]
    return hidden @ np.asarray(output, dtype=np.float64).T
