"""llama2.c's `.bin` files.

    python run_llama.py --option generate --pretrained-model-path stories15M.bin --norm rmsnorm
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import CheckpointError, parameter_shapes

BIN_HEADER = struct.Struct("<7i")


def read_bin(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """llama2.c's legacy file: seven int32, then float32 tensors grouped by name, layer by layer."""
    data = np.memmap(path, dtype=np.uint8, mode="c") if path.stat().st_size >= BIN_HEADER.size else b""
    if len(data) < BIN_HEADER.size:
        raise CheckpointError(f"{path} is not a llama2.c checkpoint: it is shorter than its header")
    dim, ffn, layers, heads, kv_heads, vocab, seq_len = BIN_HEADER.unpack(bytes(data[: BIN_HEADER.size]))
    try:
        config = LlamaConfig(
            vocab_size=abs(vocab), dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            max_seq_len=seq_len, hidden_dim=ffn, tie_embeddings=vocab > 0,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"{path} is not a llama2.c checkpoint of version 0: {error}") from None
    order = bin_order(config)
    expected = BIN_HEADER.size + 4 * sum(int(np.prod(shape)) for _, shape in order)
    if len(data) != expected:
        raise CheckpointError(f"{path} is cut short or no llama2.c checkpoint: {len(data)} bytes, not {expected}")
    values, offset, state = torch.from_numpy(data[BIN_HEADER.size :].view(np.float32)), 0, {}
    for name, shape in order:
        size = int(np.prod(shape))
        if name is not None:
            state[name] = values[offset : offset + size].view(shape)
        offset += size
    return config, state


def bin_order(config: LlamaConfig) -> list[tuple[str | None, tuple[int, ...]]]:
    """The tensors of the legacy `.bin` in order; None marks the two rotation tables, which are recomputed."""
    rms = LlamaConfig.from_dict(config.to_dict() | {"norm_type": "rmsnorm"})
    shapes = parameter_shapes(rms)
    kinds = ["attention_norm", "attention.compute_query", "attention.compute_key", "attention.compute_value"]
    kinds += ["attention.compute_output", "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    names = ["tok_embeddings.weight"]
    names += [f"layers.{index}.{kind}.weight" for kind in kinds for index in range(config.n_layers)]
    order: list[tuple[str | None, tuple[int, ...]]] = [(name, shapes[name]) for name in [*names, "norm.weight"]]
    order += [(None, (config.max_seq_len, config.head_dim // 2))] * 2
    return order + ([] if config.tie_embeddings else [("output.weight", shapes["output.weight"])])
