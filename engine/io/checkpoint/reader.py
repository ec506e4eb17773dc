"""Reads every supported format into a `Checkpoint`, and writes this project's own.

    python -c "from engine.io import checkpoint; print(checkpoint.read_checkpoint('models/stories.pt').config)"
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import Checkpoint, CheckpointError, checked
from engine.io.checkpoint.foreign import CONFIG_KEYS, beside, foreign
from engine.io.checkpoint.identify import is_gguf
from engine.io.checkpoint.llama2c import read_bin
from engine.io.checkpoint.pickles import load_plain, save_plain
from engine.io.files import check_readable
from tokenizer import load_tokenizer, vocabulary_digest

FORMAT = "min-llama"
CLASSIFIER_FORMAT = "min-llama-classifier"  # of a trained classifier, whose backbone can be read as a model


def read_checkpoint(path: str | os.PathLike, norm: str | None = None, mapped: bool = True) -> Checkpoint:
    """Reads this project's `.pt`, the course's, llama2.c's `.pt` or legacy `.bin`, GGUF, or a Hugging Face folder.

    `norm` sets the norm of a checkpoint that does not name its own. Tensors are memory-mapped if the file allows it
    and `mapped` is set. Raises OSError for a file that cannot be read, and CheckpointError for one that is cut short,
    has an unknown format, lacks a tensor or has an unknown one.
    """
    if os.path.isdir(path):
        return import_module("engine.io.huggingface").read_folder(Path(path))  # imports its package only where needed
    path = check_readable(path)
    if is_gguf(path):
        return import_module("engine.io.gguf").read_gguf(path)
    if path.suffix == ".bin":
        config, state = read_bin(path)
        return checked(path, Checkpoint(config, state, tokenizer=beside(path, "tokenizer.bin")), norm)
    content = load_plain(path, mapped)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a model")
    if content.get("format") in (FORMAT, CLASSIFIER_FORMAT):
        return checked(path, _own(path, content), norm=None)
    for name in CONFIG_KEYS:
        if name in content and "model" in content:
            return checked(path, foreign(path, content["model"], content[name], strict=name == "model_args"), norm)
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
    try:
        config = LlamaConfig.from_dict(content["config"])
        prefix = "llama." if content["format"] == CLASSIFIER_FORMAT else ""
        tensors = {n.removeprefix(prefix): tensor for n, tensor in content["model"].items() if n.startswith(prefix)}
        state = {name: tensor.float() for name, tensor in tensors.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    tokenizer = path.parent / content["tokenizer"] if content.get("tokenizer") else None
    return Checkpoint(config, state, tokenizer, vocabulary=content.get("vocabulary"))
