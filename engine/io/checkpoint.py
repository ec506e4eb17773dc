"""Checkpoints in and out: every format is read here, strictly, and never by unpickling code.

    python -c "from engine.io import checkpoint; print(checkpoint.read_checkpoint('models/stories.pt').config)"
"""

from __future__ import annotations

import os
import pickle
import re
import struct
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


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


@dataclass
class Checkpoint:
    """A model as read: its configuration, its tensors, its tokenizer (if named) and what to tell the user."""

    config: LlamaConfig
    state_dict: dict[str, Tensor]
    tokenizer: Path | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike, norm: str | None = None, mapped: bool = True) -> Checkpoint:
    """Reads the project's `.pt`, the course's, llama2.c's `.pt` or llama2.c's legacy `.bin` (version 0).

    `norm` overrides the norm of a checkpoint that does not say which one it was trained with. Tensors are
    memory-mapped where the file allows, unless `mapped=False` asks for memory of its own for each. Raises OSError for
    a file that cannot be read and CheckpointError for one that is cut short, foreign, or lacks or adds a tensor.
    """
    path = check_readable(path)
    if path.suffix == ".bin":
        config, state = _read_bin(path)
        found = Checkpoint(config, state, tokenizer=_beside(path, "tokenizer.bin"))
        return _checked(path, found, norm)
    content = load_plain(path, mapped)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a model")
    if content.get("format") in (FORMAT, CLASSIFIER_FORMAT):
        return _checked(path, _own(path, content), norm=None)
    if "model" in content and "model_args" in content:
        return _checked(path, _foreign(path, content), norm)
    raise CheckpointError(f"{path} is not a checkpoint of a model: it has no 'model' with its 'model_args'")


def save_checkpoint(
    path: str | os.PathLike, config: LlamaConfig, state: dict[str, Tensor], tokenizer: Path | None = None
) -> None:
    """Writes the project's format, atomically. A tied output is stored once, the tokenizer relative to `path`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_embeddings:
        tensors.pop("output.weight", None)
    name = None if tokenizer is None else Path(os.path.relpath(tokenizer, Path(path).parent)).as_posix()
    save_plain({"format": FORMAT, "config": config.to_dict(), "tokenizer": name, "model": tensors}, path)


def save_plain(content: dict, path: str | os.PathLike) -> None:
    """`torch.save`, atomically: an interrupted write leaves the previous file."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_plain(path: str | os.PathLike, mapped: bool = True) -> dict:
    """`torch.load` of tensors and plain types only, memory-mapped where the file allows and `mapped` asks for it.

    Raises CheckpointError for a file that is cut short, is no torch file, or would run code when unpickled.
    """
    path = check_readable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and _is_zip(path))
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors and plain types" if "Weights only" in str(error) else "no torch file"
        raise CheckpointError(f"{path} was not loaded: {reason}") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError):
        raise CheckpointError(f"{path} is not a checkpoint, or it is cut short") from None


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


def _foreign(path: Path, content: dict) -> Checkpoint:
    """The course's or llama2.c's `{"model", "model_args"}`."""
    fields = dict(content["model_args"])
    if "norm_eps" in fields:
        fields["layer_norm_eps"] = fields.pop("norm_eps")
    try:
        config = LlamaConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    state = {_course_name(name): tensor.float() for name, tensor in content["model"].items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("freqs_")}  # rotation tables
    output, embedding = state.get("output.weight"), state.get("tok_embeddings.weight")
    config.tie_embeddings = output is None or embedding is None or torch.equal(output, embedding)
    tokenizer = _beside(path, "tokenizer.model") or _beside(path, "tokenizer.bin")
    return Checkpoint(config, state, tokenizer)


def _course_name(name: str) -> str:
    """`_orig_mod.layers.0.attention.wq.weight` -> `layers.0.attention.compute_query.weight`."""
    name = name.removeprefix("_orig_mod.")
    return re.sub(r"\.(w[qkvo])\.", lambda match: f".{LLAMA2C_NAMES[match[1]]}.", name)


def _checked(path: Path, found: Checkpoint, norm: str | None) -> Checkpoint:
    """Compares names and shapes with what the configuration asks for; fills in the biases RMSNorm weights lack."""
    if norm is not None:
        found.config.norm_type = norm
    if found.config.tie_embeddings:
        found.state_dict.pop("output.weight", None)
    shapes = parameter_shapes(found.config)
    biases = [name for name in shapes if name.endswith("norm.bias")]
    if biases and not any(name in found.state_dict for name in biases):
        found.state_dict |= {name: torch.zeros(shapes[name]) for name in biases}
        found.notes.append(
            f"{path}: no LayerNorm biases (the weights were trained with RMSNorm); they start at zero, "
            "as in the course. --norm rmsnorm gives the weights the norm they were trained with."
        )
    _check_fit(path, found.state_dict, shapes)
    return found


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
    """Name and shape of every parameter of a model of this configuration, a tied output left out."""
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
    if config.norm_position == "pre":  # else the last layer ends with a norm of its own
        shapes |= {f"norm.{part}": (dim,) for part in norm_parts}
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def _read_bin(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """llama2.c's legacy file: seven int32, then float32 tensors, layer by layer within each kind."""
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
    values, place, state = torch.from_numpy(data[BIN_HEADER.size :].view(np.float32)), 0, {}
    for name, shape in order:
        size = int(np.prod(shape))
        if name is not None:
            state[name] = values[place : place + size].view(shape)
        place += size
    return config, state


def bin_order(config: LlamaConfig) -> list[tuple[str | None, tuple[int, ...]]]:
    """Tensors of the legacy `.bin` in their order; None marks the two rotation tables, which are computed anew."""
    rms = LlamaConfig.from_dict(config.to_dict() | {"norm_type": "rmsnorm"})
    shapes = parameter_shapes(rms)
    kinds = ["attention_norm", "attention.compute_query", "attention.compute_key", "attention.compute_value"]
    kinds += ["attention.compute_output", "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    names = ["tok_embeddings.weight"]
    names += [f"layers.{index}.{kind}.weight" for kind in kinds for index in range(config.n_layers)]
    order: list[tuple[str | None, tuple[int, ...]]] = [(name, shapes[name]) for name in [*names, "norm.weight"]]
    order += [(None, (config.max_seq_len, config.head_dim // 2))] * 2
    return order + ([] if config.tie_embeddings else [("output.weight", shapes["output.weight"])])
