"""Weights as bytes for the page: matrices in int8 with one float32 scale per row, vectors in float32.

    python -c "from tasks.page.pack import *; print(quantize(torch.randn(4, 8)))"

A model of up to `EXACT` parameters stays in float32: an adder's few weights cost nothing and keep its answers.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import torch
from torch import Tensor

from config import LlamaConfig

EXACT = 100_000
SIZES = {  # fields of the config that may have any value
    "vocab_size", "dim", "dropout", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "layer_norm_eps",
    "multiple_of", "hidden_dim", "use_cache", "norm_type", "rope_theta", "tie_embeddings", "head_size",
}  # fmt: skip


def check_config(config: LlamaConfig) -> None:
    """Raises ValueError for a field that the page's engine does not implement; all but `SIZES` must be as in Llama."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if entry.name not in SIZES and value != entry.default:
            raise ValueError(f"the page does not know {entry.name}={value!r}: it runs models with {entry.default!r}")


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row of weight (rows, columns) to multiples of its largest magnitude / 127: int8, float32 scales."""
    scales = weight.float().abs().amax(dim=1) / 127
    scales = torch.where(scales == 0, 1.0, scales)
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def page_weights(config: LlamaConfig, state: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The tensors that the page holds, by name: (int8, scales) of a quantised matrix, (float32,) of any other."""
    names = [name for name in state if not (config.tie_embeddings and name == "output.weight")]
    exact = sum(state[name].numel() for name in names) <= EXACT
    return {
        name: (state[name].float(),) if exact or state[name].dim() < 2 else quantize(state[name]) for name in names
    }


def dequantized(config: LlamaConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float32 weights with which the page computes: the oracle of its engine is a `Llama` with these."""
    weights = {}
    for name, parts in page_weights(config, state).items():
        weights[name] = parts[0] if len(parts) == 1 else parts[0].float() * parts[1][:, None]
    if config.tie_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def pack(config: LlamaConfig, state: dict[str, Tensor]) -> dict[str, Any]:
    """What the page's engine reads: shape of the model, index of the tensors, and their bytes in base64."""
    data, index = bytearray(), []
    for name, parts in page_weights(config, state).items():
        entry = {"name": name, "shape": list(parts[0].shape), "type": "float32" if len(parts) == 1 else "int8"}
        for key, tensor in zip(("offset", "scales"), parts, strict=False):
            data += bytes(-len(data) % 4)  # a Float32Array starts at a multiple of four bytes
            entry[key] = len(data)
            data += tensor.contiguous().numpy().tobytes()
        index.append(entry)
    shape = {name: getattr(config, name) for name in sorted(SIZES - {"dropout", "multiple_of", "use_cache"})}
    shape |= {"head_dim": config.head_dim, "ffn_dim": config.ffn_dim}
    count = sum(parts[0].numel() for parts in page_weights(config, state).values())
    return {"config": shape, "parameters": count, "tensors": index, "bytes": base64.b64encode(data).decode("ascii")}
