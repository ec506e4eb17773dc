"""llama2.c's files out: weights of version 0 (float32, for `run`) and version 2 (int8, for `runq`).

    python run_llama.py --option export --format llama2c --pretrained-model-path MODEL.pt --out runs/folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.llama2c import BIN_HEADER, MAGIC, NEW_HEADER, NEW_START, bin_order
from engine.io.files import atomic_path, write_sidecar

GROUP = 64  # weights per scale in version 2, or the largest power of two below it that divides the widths


def write_bin(path: Path, config: LlamaConfig, state: Mapping[str, Tensor]) -> None:
    """Writes version 0, for llama2.c's `run`. The norms' biases, if any, are left out."""
    vocabulary = config.vocab_size if config.tie_embeddings else -config.vocab_size
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(BIN_HEADER.pack(*_sizes(config), vocabulary, config.max_seq_len))
        for name, shape in bin_order(config):
            tensor = torch.zeros(shape) if name is None else state[name]  # run recomputes the rotation tables
            file.write(tensor.detach().float().numpy().tobytes())
    write_sidecar(path)


def write_quantized_bin(path: Path, config: LlamaConfig, state: Mapping[str, Tensor]) -> None:
    """Writes version 2, for llama2.c's `runq`: int8 in groups that share a scale, norms in float32."""
    group = GROUP
    while config.dim % group or config.ffn_dim % group:
        group //= 2
    sizes = (*_sizes(config), config.vocab_size, config.max_seq_len)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(NEW_HEADER.pack(MAGIC, 2, *sizes, config.tie_embeddings, group).ljust(NEW_START, b"\0"))
        for name, shape in bin_order(config, version=2):
            values = state[str(name)].detach().float().numpy()
            if len(shape) == 1:
                file.write(values.tobytes())
                continue
            groups = values.reshape(-1, group)
            scales = np.abs(groups).max(axis=1, keepdims=True) / 127.0
            file.write(np.round(groups / np.maximum(scales, 1e-12)).astype(np.int8).tobytes() + scales.tobytes())
    write_sidecar(path)


def _sizes(config: LlamaConfig) -> tuple[int, ...]:
    return config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads
