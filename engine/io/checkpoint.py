"""Checkpoints in and out: every supported format is read here, strictly, without running pickled code.

    python -c "from engine.io import checkpoint; print(checkpoint.read_checkpoint('models/stories.pt').config)"
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
import re
import struct
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.files import atomic_path, check_readable

FORMAT = "min-llama"
CLASSIFIER_FORMAT = "min-llama-classifier"  # of a trained classifier, whose backbone can be read as a model
LLAMA2C_NAMES = {"wq": "compute_query", "wk": "compute_key", "wv": "compute_value", "wo": "compute_output"}
BIN_HEADER = struct.Struct("<7i")
CONFIG_KEYS = ("model_args", "model_config", "config", "args")  # where the course, llama2.c and others keep the shape
FIELD_NAMES = {"norm_eps": "layer_norm_eps"}  # llama2.c's names of our fields
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.|model\.)+")  # torch.compile, DataParallel, a surrounding class
DERIVED = re.compile(r"(^|\.)(freqs_cos|freqs_sin|freqs_cis|freqs|inv_freq|mask|causal_mask|rope_cos|rope_sin)$")
SIGNATURES = {  # first bytes -> what the file is
    b"version https://git-lfs": "it is a Git LFS pointer: run git lfs pull for the file itself",
    b"<!DOCTYPE": "it is an HTML page: the download did not return the file",
    b"<html": "it is an HTML page: the download did not return the file",
    b"GGUF": "it is a GGUF file, which is not supported",
    b"{": "it is JSON, not a checkpoint",
}
SAFE = [  # classes that are data and may be unpickled, beside torch's own list
    argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, np._core.multiarray._reconstruct,
    np._core.multiarray.scalar, *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
]  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """A checkpoint as read: configuration, tensors, tokenizer path if any, and notes for the user."""

    config: LlamaConfig
    state_dict: dict[str, Tensor]
    tokenizer: Path | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike, norm: str | None = None, mapped: bool = True) -> Checkpoint:
    """Reads this project's `.pt`, the course's, llama2.c's `.pt`, or llama2.c's legacy `.bin` (version 0).

    `norm` sets the norm of a checkpoint that does not name its own. Tensors are memory-mapped if the file allows it
    and `mapped` is set. Raises OSError for a file that cannot be read, and CheckpointError for one that is cut short,
    has an unknown format, lacks a tensor or has an unknown one.
    """
    path = check_readable(path)
    if path.suffix == ".bin":
        config, state = _read_bin(path)
        return _checked(path, Checkpoint(config, state, tokenizer=_beside(path, "tokenizer.bin")), norm)
    content = load_plain(path, mapped)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a model")
    if content.get("format") in (FORMAT, CLASSIFIER_FORMAT):
        return _checked(path, _own(path, content), norm=None)
    for name in CONFIG_KEYS:
        if name in content and "model" in content:
            return _checked(path, _foreign(path, content["model"], content[name], strict=name == "model_args"), norm)
    keys = ", ".join(f"'{name}'" for name in CONFIG_KEYS)
    raise CheckpointError(f"{path} is not a checkpoint of a model: it needs 'model' and one of {keys}")


def save_checkpoint(
    path: str | os.PathLike,
    config: LlamaConfig,
    state: dict[str, Tensor],
    tokenizer: Path | None = None,
    extra: dict | None = None,
) -> None:
    """Writes this project's format, atomically. A tied output is stored once; the tokenizer's path is relative.

    `extra` entries (tensors and plain types) are for other programs; `read_checkpoint` ignores them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_embeddings:
        tensors.pop("output.weight", None)
    name = None if tokenizer is None else Path(os.path.relpath(tokenizer, Path(path).parent)).as_posix()
    content = {"format": FORMAT, "config": config.to_dict(), "tokenizer": name, "model": tensors}
    save_plain(content | (extra or {}), path)


def save_plain(content: dict, path: str | os.PathLike) -> None:
    """`torch.save` through a temporary file: an interrupted write leaves the previous file."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_plain(path: str | os.PathLike, mapped: bool = True) -> dict:
    """`torch.load` of tensors, plain types and the data classes in `SAFE`, without running pickled code.

    Memory-mapped if the file allows it and `mapped` is set. Raises CheckpointError for a file that is cut short, is not
    a torch file, or contains any other class.
    """
    path = check_readable(path)
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and _is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} was not loaded: {_why_refused(path, str(error))}") from None
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, AttributeError, TypeError, struct.error):
        raise CheckpointError(f"{path} was not loaded: {what_it_is(path)}") from None


def _why_refused(path: Path, message: str) -> str:
    """The class that the restricted reader refused, with the way to save the file otherwise; or what the file is."""
    if (match := re.search(r"GLOBAL ([\w.]+)", message)) is None:
        return what_it_is(path)
    return f"it contains {match[1]}, not only tensors and plain types; save model.state_dict() and plain values instead"


def what_it_is(path: Path) -> str:
    """What a file that torch cannot read really is, from its first bytes, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    for start, description in SIGNATURES.items():
        if head.lstrip().startswith(start):
            return description
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file, which is not supported"
    return "it is not a checkpoint, or it is cut short"


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _beside(path: Path, name: str) -> Path | None:
    candidate = path.parent / name
    return candidate if candidate.is_file() else None


def _own(path: Path, content: dict) -> Checkpoint:
    try:
        config = LlamaConfig.from_dict(content["config"])
        prefix = "llama." if content["format"] == CLASSIFIER_FORMAT else ""
        tensors = {n.removeprefix(prefix): tensor for n, tensor in content["model"].items() if n.startswith(prefix)}
        state = {name: tensor.float() for name, tensor in tensors.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    tokenizer = path.parent / content["tokenizer"] if content.get("tokenizer") else None
    return Checkpoint(config, state, tokenizer)


def _foreign(path: Path, model: object, shape: object, strict: bool) -> Checkpoint:
    """The course's or llama2.c's tensors and shape; the shape may be a dict, a Namespace or a config object."""
    config = _config_of(path, shape, strict)
    if not isinstance(model, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in model.items()):
        raise CheckpointError(f"{path}: 'model' is not a state dict of named tensors")
    state = {_course_name(name): tensor.float() for name, tensor in model.items()}
    state = {name: tensor for name, tensor in state.items() if not DERIVED.search(name)}
    output, embedding = state.get("output.weight"), state.get("tok_embeddings.weight")
    config.tie_embeddings = output is None or embedding is None or torch.equal(output, embedding)
    tokenizer = _beside(path, "tokenizer.model") or _beside(path, "tokenizer.bin")
    return Checkpoint(config, state, tokenizer)


def _config_of(path: Path, shape: object, strict: bool) -> LlamaConfig:
    """The configuration from the fields of `shape`; unless `strict`, others, such as flags of a run, are ignored."""
    fields = shape if isinstance(shape, dict) else getattr(shape, "__dict__", None)
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise CheckpointError(f"{path}: its configuration is {type(shape).__name__}, not a table of fields")
    fields = {FIELD_NAMES.get(name, name): value for name, value in fields.items()}
    known = {entry.name for entry in dataclasses.fields(LlamaConfig)}
    try:
        return LlamaConfig.from_dict({"n_kv_heads": None} | {n: v for n, v in fields.items() if strict or n in known})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _course_name(name: str) -> str:
    """`_orig_mod.layers.0.attention.wq.weight` -> `layers.0.attention.compute_query.weight`."""
    name = WRAPPERS.sub("", name)
    return re.sub(r"\.(w[qkvo])\.", lambda match: f".{LLAMA2C_NAMES[match[1]]}.", name)


def _checked(path: Path, checkpoint: Checkpoint, norm: str | None) -> Checkpoint:
    """Compares names and shapes with the configuration; adds zero biases to weights that were trained with RMSNorm."""
    if norm is not None:
        checkpoint.config.norm_type = norm
    if checkpoint.config.tie_embeddings:
        checkpoint.state_dict.pop("output.weight", None)
    shapes = parameter_shapes(checkpoint.config)
    biases = [name for name in shapes if name.endswith("norm.bias")]
    if biases and not any(name in checkpoint.state_dict for name in biases):
        checkpoint.state_dict |= {name: torch.zeros(shapes[name]) for name in biases}
        checkpoint.notes.append(
            f"{path}: no LayerNorm biases (the weights were trained with RMSNorm); they start at zero, "
            "as in the course. --norm rmsnorm gives the weights the norm they were trained with."
        )
    _check_fit(path, checkpoint.state_dict, shapes)
    return checkpoint


def _check_fit(path: Path, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if name not in state]
    unexpected = [name for name in state if name not in shapes]
    faults = [f"it lacks {', '.join(missing[:3])}"] if missing else []
    faults += [f"it has an unknown {', '.join(unexpected[:3])}"] if unexpected else []
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ][:3]
    if faults:
        raise CheckpointError(f"{path} does not fit its configuration: {'; '.join(faults)}")


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of this configuration, without a tied output."""
    dim, ffn = config.dim, config.ffn_dim
    query_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    norm_parts = ("weight", "bias") if config.norm_type == "layernorm" else ("weight",)
    shapes = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for layer in (f"layers.{index}." for index in range(config.n_layers)):
        shapes[f"{layer}attention.compute_query.weight"] = (query_dim, dim)
        shapes[f"{layer}attention.compute_output.weight"] = (dim, query_dim)
        shapes |= {f"{layer}attention.compute_{name}.weight": (kv_dim, dim) for name in ("key", "value")}
        inner = ("w1", "w3") if config.ffn_type == "swiglu" else ("w1",)
        shapes |= {f"{layer}feed_forward.{name}.weight": (ffn, dim) for name in inner}
        shapes[f"{layer}feed_forward.w2.weight"] = (dim, ffn)
        shapes |= {f"{layer}{norm}.{part}": (dim,) for norm in ("attention_norm", "ffn_norm") for part in norm_parts}
    if config.norm_position == "pre":  # post-norm: the last layer ends with its own norm
        shapes |= {f"norm.{part}": (dim,) for part in norm_parts}
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def _read_bin(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
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
