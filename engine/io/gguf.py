"""GGUF files in: the weights dequantised to float32, and the tokenizer from the file's metadata.

    pip install -r requirements-gguf.txt
    python run_llama.py --option generate --pretrained-model-path model.gguf

The package `gguf` reads the file. llama.cpp's Llama rotates adjacent pairs, as ours does, so no rows are reordered.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_fit,
    checked,
    parameter_shapes,
    translated_names,
)
from engine.io.files import check_readable
from engine.io.json_tokenizer import JsonTokenizer, tokenizers_library
from engine.io.packages import needed
from engine.io.tokenizer_json import byte_level_tokenizer, sentencepiece_tokenizer

ARCHITECTURE = "llama"
SIZES = {  # after "llama." in the metadata -> LlamaConfig
    "embedding_length": "dim", "feed_forward_length": "hidden_dim", "block_count": "n_layers",
    "attention.head_count": "n_heads", "context_length": "max_seq_len",
}  # fmt: skip
OPTIONAL = {"attention.head_count_kv": "n_kv_heads", "attention.key_length": "head_size"}
NAMES = {  # of this project's layers -> GGUF's
    "attention.compute_query": "attn_q", "attention.compute_key": "attn_k", "attention.compute_value": "attn_v",
    "attention.compute_output": "attn_output", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip
OUTER_NAMES = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError, MemoryError)  # in a bad file


class GgufTokenizer(JsonTokenizer):
    """The tokenizer in a GGUF file's metadata: byte-level ("gpt2") or SentencePiece ("llama")."""

    def __init__(self, max_len: int | None = None, tokenizer_model: str = "model.gguf"):
        self.model_path, self.max_len = str(tokenizer_model), max_len
        fields = metadata(check_readable(tokenizer_model), "tokenizer.ggml.")
        try:
            inner = _tokenizer(Path(tokenizer_model), fields)
            ids = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}
            special = {f"{name}_token_id": fields.get(key) for name, key in ids.items()}
            special["add_bos_token"] = fields.get("add_bos_token", fields["model"] == "llama")
            self._set_up(inner, special)
        except KeyError as error:
            raise CheckpointError(f"{tokenizer_model} has no tokenizer.ggml.{error.args[0]}") from None


def read_gguf(path: Path) -> Checkpoint:
    """The model of a file in float32; the file is also its tokenizer.

    Raises CheckpointError for a file that is damaged or cut short, and for a feature that this project's Llama does not
    have, by its name.
    """
    general = metadata(path, "general.")
    if general.get("architecture") != ARCHITECTURE:
        raise CheckpointError(f"{path}: general.architecture {general.get('architecture')!r} is not {ARCHITECTURE!r}")
    quantized = {tensor.name: tensor for tensor in _reader(path).tensors}
    config = _config(path, metadata(path, f"{ARCHITECTURE}."), quantized)
    names, shapes = translated_names(config, OUTER_NAMES, "blk", NAMES), parameter_shapes(config)
    _check_names(path, quantized, {names[name]: shape for name, shape in shapes.items()})
    state = {name: _dequantised(path, quantized[theirs], shapes[name]) for name, theirs in names.items()}
    return checked(path, Checkpoint(config, state, path), norm=None)


def metadata(path: Path, prefix: str) -> dict[str, Any]:
    """The metadata whose keys begin with `prefix`, as plain values, without the prefix."""
    fields = _reader(path).fields
    try:
        return {key.removeprefix(prefix): field.contents() for key, field in fields.items() if key.startswith(prefix)}
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _library() -> Any:
    return needed("gguf", "GGUF files", "-r requirements-gguf.txt")


def _reader(path: Path) -> Any:
    status = os.stat(path)
    return _opened(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # the model and the tokenizer are read one after the other
def _opened(path: str, _mtime: int, _size: int) -> Any:
    library = _library()
    try:
        return library.GGUFReader(path)
    except DAMAGE as error:
        raise CheckpointError(f"{path} is not a GGUF file, or it is cut short: {error}") from None


def _config(path: Path, fields: dict[str, Any], tensors: dict[str, Any]) -> LlamaConfig:
    refused = {
        "rope.scaling.type": fields.get("rope.scaling.type", "none") != "none",
        "rope_freqs.weight": "rope_freqs.weight" in tensors,
        "expert_count": bool(fields.get("expert_count", 0)),
        "attention.sliding_window": fields.get("attention.sliding_window", 1 << 40) < fields.get("context_length", 0),
    }
    for name, applies in refused.items():
        if applies:
            raise CheckpointError(f"{path}: {name} is a feature that this project's Llama does not have")
    if missing := [name for name in SIZES if name not in fields]:
        raise CheckpointError(f"{path} lacks {ARCHITECTURE}.{missing[0]}")
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path} lacks token_embd.weight")
    sizes = {ours: fields[theirs] for theirs, ours in SIZES.items()}
    sizes |= {ours: fields[theirs] for theirs, ours in OPTIONAL.items() if theirs in fields}
    try:
        config = LlamaConfig(
            **{"n_kv_heads": None} | sizes, vocab_size=int(tensors["token_embd.weight"].shape[1]), norm_type="rmsnorm",
            layer_norm_eps=fields.get("attention.layer_norm_rms_epsilon", 1e-5),
            rope_theta=fields.get("rope.freq_base", 10000.0), tie_embeddings="output.weight" not in tensors,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if config.head_dim * config.n_heads == config.dim:
        config.head_size = None
    if (rotated := fields.get("rope.dimension_count", config.head_dim)) != config.head_dim:
        raise CheckpointError(f"{path}: rope.dimension_count {rotated} of {config.head_dim}: this project rotates all")
    return config


def _check_names(path: Path, tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compares the shapes, which GGUF stores with the innermost axis first, before anything is dequantised."""
    sizes = {name: torch.empty(*map(int, reversed(entry.shape)), device="meta") for name, entry in tensors.items()}
    check_fit(path, sizes, shapes)


def _dequantised(path: Path, tensor: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        values = _library().dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(shape))
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise CheckpointError(f"{path}: {tensor.name} is {kind}, which the package gguf cannot dequantise") from None
    except DAMAGE as error:
        raise CheckpointError(f"{path}: {tensor.name} is damaged: {error}") from None


def _tokenizer(path: Path, fields: dict[str, Any]) -> Any:
    """The tokenizer of the metadata as a `tokenizers.Tokenizer`."""
    tokenizers_library()
    if fields["model"] == "gpt2":
        merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
        return byte_level_tokenizer(fields["tokens"], merges, fields["token_type"], fields.get("pre", "gpt-2"))
    if fields["model"] == "llama":
        prefix = fields.get("add_space_prefix", True)
        return sentencepiece_tokenizer(fields["tokens"], fields["scores"], fields["token_type"], prefix)
    raise CheckpointError(f"{path}: tokenizer.ggml.model {fields['model']!r} is not gpt2 or llama")
