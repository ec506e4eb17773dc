"""Reads every supported format into a `Checkpoint`, and writes this project's own.

    python -c "from engine.io import checkpoint; print(checkpoint.read_checkpoint('models/stories.pt').config)"
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_finite,
    check_tensors,
    checked,
    find_tokenizer,
)
from engine.io.checkpoint.foreign import foreign
from engine.io.checkpoint.identify import is_gguf, is_zip
from engine.io.checkpoint.llama2c import Header, read_bin, read_header
from engine.io.checkpoint.pickles import load_plain, save_plain
from engine.io.checkpoint.shapes import Unsaid
from engine.io.files import check_readable, check_sidecar
from tokenizer import load_tokenizer, vocabulary_digest

FORMAT = "min-llama"
CLASSIFIER_FORMAT = "min-llama-classifier"  # of a trained classifier, whose backbone can be read as a model


def read_checkpoint(
    path: str | os.PathLike,
    norm: str | None = None,
    mapped: bool = True,
    n_heads: int | None = None,
    rope_theta: float | None = None,
) -> Checkpoint:
    """Reads this project's `.pt`, the course's, llama2.c's, a bare state dict, GGUF, or a Hugging Face folder.

    `norm`, `n_heads` and `rope_theta` say what a checkpoint does not say itself. The tensors are float32, and
    memory-mapped if the file allows it and `mapped` is set. Raises OSError for a file that cannot be read, and
    CheckpointError for one that is cut short or damaged, has an unknown format, lacks a tensor, has an unknown one, or
    has weights that are not finite.
    """
    path, unsaid = Path(path), Unsaid(norm, n_heads, rope_theta)
    checkpoint = _read(path, unsaid)
    unsaid.check(path, checkpoint.config)
    state = checkpoint.state_dict
    for name, tensor in state.items():
        state[name] = tensor.detach().to(torch.float32, copy=not mapped)
    check_finite(path, state)
    return checkpoint


def _read(path: Path, unsaid: Unsaid) -> Checkpoint:
    if path.is_dir():
        return import_module("engine.io.huggingface").read_folder(path)  # imports its package only where needed
    if not is_zip(check_readable(path)):
        check_sidecar(path)
        if is_gguf(path):
            return import_module("engine.io.gguf").read_gguf(path)
        if (header := read_header(path)) is not None:
            return checked(path, _llama2c(path, header, unsaid), unsaid.norm)
    content = load_plain(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a model: it holds a {type(content).__name__}")
    if isinstance(content.get("format"), str) and content["format"] in (FORMAT, CLASSIFIER_FORMAT):
        return checked(path, _own(path, content), norm=None)
    return checked(path, foreign(path, content, unsaid), unsaid.norm)


def _llama2c(path: Path, header: Header, unsaid: Unsaid) -> Checkpoint:
    config, state = read_bin(path, header)
    config.rope_theta = unsaid.rope_theta or config.rope_theta  # a .bin does not say it
    return Checkpoint(config, state, find_tokenizer(path, ("tokenizer.bin", "tokenizer.model")))


def save_checkpoint(
    path: str | os.PathLike,
    config: LlamaConfig,
    state: dict[str, Tensor],
    tokenizer: Path | None = None,
    extra: dict | None = None,
) -> None:
    """Writes this project's format, atomically. A tied output is stored once; the tokenizer's path is relative.

    The digest of the tokenizer's pieces is stored too, if the file is there, so that another tokenizer is refused.

    `extra` entries (tensors and plain types) are for other programs; `read_checkpoint` ignores them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_embeddings:
        tensors.pop("output.weight", None)
    name = None if tokenizer is None else Path(os.path.relpath(tokenizer, Path(path).parent)).as_posix()
    content = {"format": FORMAT, "config": config.to_dict(), "tokenizer": name, "model": tensors}
    if tokenizer is not None and tokenizer.is_file():
        content["vocabulary"] = vocabulary_digest(load_tokenizer(tokenizer))
    save_plain(content | (extra or {}), path)


def _own(path: Path, content: dict) -> Checkpoint:
    prefix = "llama." if content["format"] == CLASSIFIER_FORMAT else ""
    fields, tensors = content.get("config"), content.get("model")
    tokenizer, vocabulary = content.get("tokenizer"), content.get("vocabulary")
    if not isinstance(fields, dict) or not isinstance(tensors, dict):
        raise CheckpointError(f"{path} is damaged: its config or model is missing or of another type")
    if not isinstance(tokenizer, str | None) or not isinstance(vocabulary, str | None):
        raise CheckpointError(f"{path} is damaged: its tokenizer or vocabulary is of another type")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()):
        raise CheckpointError(f"{path} is damaged: its model is not a state dict of named tensors")
    try:
        config = LlamaConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_tensors(path, state)
    stored = None if tokenizer is None else find_tokenizer(path, (tokenizer,)) or path.parent / tokenizer
    return Checkpoint(config, state, stored, vocabulary=vocabulary)
