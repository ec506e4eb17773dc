"""llama2.c's `.bin` files: the legacy one (version 0), float32 (1) and int8 in groups (2).

    python run_llama.py --option generate --pretrained-model-path stories15M.bin --norm rmsnorm
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import CheckpointError, parameter_shapes

BIN_HEADER = struct.Struct("<7i")  # dim, ffn, layers, heads, key/value heads, vocabulary (below 0: untied), positions
MAGIC = b"24ka"  # 0x616b3432, "ak42", in little-endian order
NEW_HEADER = struct.Struct("<4si7iBi")  # magic, version, the seven, tied, group size (version 2)
NEW_START = 256  # where the tensors of versions 1 and 2 begin
LIMIT = 10**7  # of any number in a plausible header
NORMS = ("attention_norm", "ffn_norm")
MATRICES = tuple(f"attention.compute_{name}" for name in ("query", "key", "value", "output"))
MATRICES += tuple(f"feed_forward.{name}" for name in ("w1", "w2", "w3"))
Order = list[tuple[str | None, tuple[int, ...]]]


@dataclass(frozen=True)
class Header:
    """What a `.bin` says of itself; `size` is the file's, in bytes, and `group` that of version 2's scales."""

    version: int
    config: LlamaConfig
    size: int
    group: int = 1


def read_header(path: Path) -> Header | None:
    """The header of a llama2.c file; None if it is none.

    Raises CheckpointError for an unknown version, a shape that is invalid, and a file of another size than it says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(NEW_START)
    if head[:4] == MAGIC:
        if len(head) < NEW_START:
            raise CheckpointError(f"{path} is a llama2.c checkpoint that is cut short in its header: download it again")
        _, version, *numbers, tied, group = NEW_HEADER.unpack(head[: NEW_HEADER.size])
        if version not in (1, 2):
            raise CheckpointError(f"{path} is a llama2.c checkpoint of version {version}; 0, 1 and 2 are supported")
    elif len(head) >= BIN_HEADER.size:
        numbers, version, group = list(BIN_HEADER.unpack(head[: BIN_HEADER.size])), 0, 1
        tied, numbers[5] = numbers[5] > 0, abs(numbers[5])
    else:
        return None
    try:
        config = _config(numbers, bool(tied))
    except ValueError as error:
        if version == 0:
            return None
        raise CheckpointError(f"{path} is a llama2.c checkpoint with a damaged header: {error}") from None
    expected = _size(version, config, group)
    if size != expected:
        raise CheckpointError(f"{path} is a llama2.c checkpoint that is cut short or damaged: it has {size:,} bytes, "
                              f"not the {expected:,} of its header; download or export it again")  # fmt: skip
    return Header(version, config, size, group)


def _config(numbers: list[int], tied: bool) -> LlamaConfig:
    if not all(0 < number < LIMIT for number in numbers):
        raise ValueError(f"its sizes are {numbers}")
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    return LlamaConfig(**dict(zip(names, numbers, strict=True)), tie_embeddings=tied)


def _size(version: int, config: LlamaConfig, group: int) -> int:
    """The size of a file in bytes, by a formula: a damaged header may name millions of layers."""
    matrices = config.dim * (2 * config.dim + 2 * config.n_kv_heads * config.head_dim + 3 * config.ffn_dim)
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    norms, weights = config.dim * (2 * config.n_layers + 1), config.n_layers * matrices + embeddings
    if version == 0:
        return BIN_HEADER.size + 4 * (norms + weights + 2 * config.max_seq_len * (config.head_dim // 2))
    if version == 1:
        return NEW_START + 4 * (norms + weights)
    return NEW_START + 4 * norms + weights + 4 * (weights // group if group > 0 else 0)


def read_bin(path: Path, header: Header) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The tensors of a llama2.c file by our names, memory-mapped in versions 0 and 1, float32 in all."""
    data = np.memmap(path, dtype=np.uint8, mode="c")
    offset, state = BIN_HEADER.size if header.version == 0 else NEW_START, {}
    for name, shape in bin_order(header.config, header.version):
        count = math.prod(shape)
        if header.version == 2 and len(shape) == 2:
            values, offset = _dequantized(path, data, offset, count, header.group)
        else:
            values, offset = torch.from_numpy(data[offset : offset + 4 * count].view(np.float32)), offset + 4 * count
        state[name] = values.view(shape)
    state.pop(None, None)
    return header.config, state


def _dequantized(path: Path, data: np.ndarray, offset: int, count: int, group: int) -> tuple[Tensor, int]:
    """`count` weights from int8 values and one float32 scale for each `group` of them, and the offset after them."""
    if group < 1 or count % group:
        raise CheckpointError(f"{path} is a llama2.c checkpoint with a damaged header: groups of {group} weights")
    scales_start, end = offset + count, offset + count + 4 * (count // group)
    values = torch.from_numpy(data[offset:scales_start].view(np.int8)).view(-1, group)
    scales = torch.from_numpy(data[scales_start:end].copy().view(np.float32))  # may not be aligned in the file
    return values.float() * scales[:, None], end


def bin_order(config: LlamaConfig, version: int = 0) -> Order:
    """The tensors of a `.bin` in order; None marks the two rotation tables of version 0, which are recomputed."""
    shapes = parameter_shapes(LlamaConfig.from_dict(config.to_dict() | {"norm_type": "rmsnorm"}))

    def of_layers(*groups: str) -> list[str]:
        return [f"layers.{index}.{group}.weight" for group in groups for index in range(config.n_layers)]

    attention, feed_forward = MATRICES[:4], MATRICES[4:]
    if version == 0:
        names = ["tok_embeddings.weight", *of_layers(NORMS[0], *attention, NORMS[1], *feed_forward), "norm.weight"]
    else:
        names = [*of_layers(*NORMS), "norm.weight", "tok_embeddings.weight", *of_layers(*MATRICES)]
    order: Order = [(name, shapes[name]) for name in names]
    if version == 0:
        order += [(None, (config.max_seq_len, config.head_dim // 2))] * 2
    return order + ([] if config.tie_embeddings else [("output.weight", shapes["output.weight"])])
