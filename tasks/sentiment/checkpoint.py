"""Trained classifiers in files: whole models, and LoRA adapters. Tensors and plain types only.

    python -c "from tasks.sentiment import checkpoint as c; print(c.load_classifier('runs/RUN/best.pt')[1])"
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from classifier import LlamaEmbeddingClassifier
from config import LlamaConfig
from engine.io.checkpoint import (
    CLASSIFIER_FORMAT,
    Checkpoint,
    CheckpointError,
    check_finite,
    check_tensors,
    find_tokenizer,
    is_padding,
    load_plain,
    read_checkpoint,
    save_plain,
)
from engine.io.files import sha256_of
from engine.model.adapters import apply_adapters, form_of
from llama import Llama, from_checkpoint
from lora import lora_layers, merge_lora_weights
from tasks.sentiment.flags import TASKS
from utils import DTYPES

ADAPTER_FORMAT = "min-llama-adapter"
ADAPTER_TENSORS = ("lora_A", "lora_B", "magnitude", "ia3", "pool_query")
OPTIONAL = ("max_sentence_len", "dtype", "batch_size", "vocabulary", "task", "question")  # older files lack these
DAMAGED = (KeyError, TypeError, ValueError, RuntimeError, AttributeError)  # what reading a bad file's fields raises


@dataclass(frozen=True)
class ClassifierInfo:
    """What prediction needs besides the model: label names, tokenizer, truncation, precision and batch size."""

    label_names: Sequence[str]
    tokenizer: Path
    max_sentence_len: int | None = None
    dtype: str = "float32"
    batch_size: int = 8
    vocabulary: str | None = None  # digest of the tokenizer's pieces
    task: str = "reviews"
    question: str = ""  # follows every sentence

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain types; the tokenizer's path is relative to `folder`."""
        plain = {"label_names": list(self.label_names), "tokenizer": _relative(self.tokenizer, folder)}
        return plain | {name: getattr(self, name) for name in OPTIONAL}

    @classmethod
    def from_dict(cls, content: dict[str, Any], path: Path) -> ClassifierInfo:
        """Reads what `to_dict` wrote to the checkpoint `path`; older files lack all but label names and tokenizer.

        Raises ValueError for bad values.
        """
        label_names = content["label_names"]
        are_names = isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
        if not are_names or len(label_names) < 2:
            raise ValueError("label_names is not a list of two or more names")
        tokenizer = find_tokenizer(path, [content["tokenizer"]]) or path.parent / content["tokenizer"]
        info = cls(label_names, tokenizer, **{n: content[n] for n in OPTIONAL if n in content})
        if info.dtype not in DTYPES:
            raise ValueError(f"dtype {info.dtype!r} is not one of {', '.join(DTYPES)}")
        for name, value in (("max_sentence_len", info.max_sentence_len), ("batch_size", info.batch_size)):
            if not (isinstance(value, int) and value > 0) and (name, value) != ("max_sentence_len", None):
                raise ValueError(f"{name} is {value!r}, not a positive whole number")
        if info.task not in TASKS or not isinstance(info.question, str):
            raise ValueError(f"task {info.task!r} is not one of {', '.join(TASKS)}, or its question is not text")
        return info


def save_classifier(path: str | os.PathLike, model: LlamaEmbeddingClassifier, info: ClassifierInfo) -> None:
    """Writes all that is needed to classify: weights, configuration and `info`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.llama.config.tie_embeddings:
        tensors.pop("llama.output.weight")
    content = {"format": CLASSIFIER_FORMAT, "model": tensors} | _description(model)
    save_plain(content | info.to_dict(Path(path).parent), path)


def load_classifier(
    path: str | os.PathLike, base: str | os.PathLike | None = None
) -> tuple[LlamaEmbeddingClassifier, ClassifierInfo]:
    """The classifier in evaluation mode and its info, from a whole model or from a LoRA adapter and its base model.

    An adapter names its base model; `base` overrides that path. Raises OSError for a file that cannot be read and
    CheckpointError for one that is not a classifier.
    """
    content = load_plain(path)
    _check_format(path, content, CLASSIFIER_FORMAT, ADAPTER_FORMAT)
    if content["format"] == ADAPTER_FORMAT and "base" not in content:
        raise CheckpointError(f"{path} is an adapter that names no base model: use merged.pt beside it")
    try:
        info = ClassifierInfo.from_dict(content, Path(path))
        if content["format"] == ADAPTER_FORMAT:
            return _merged_adapter(Path(path), content, base), info
        if base is not None:
            raise CheckpointError(f"{path} is a whole model: leave --pretrained-model-path out")
        llama = Llama(LlamaConfig.from_dict(content["config"]))
        model = _new_classifier(content, llama)
        state = dict(content["model"])
        check_tensors(Path(path), state)
        check_finite(Path(path), state)
        if llama.config.tie_embeddings:
            state["llama.output.weight"] = state["llama.tok_embeddings.weight"]
        model.load_state_dict(state)
    except CheckpointError:
        raise
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged: {textwrap.shorten(str(error), 250)}") from None
    return model.eval(), info


def save_adapter(
    path: str | os.PathLike, model: LlamaEmbeddingClassifier, info: ClassifierInfo, base: str | os.PathLike
) -> None:
    """Writes what LoRA trained (adapters and head), and which base model they belong to, by path and content."""
    layers = list(lora_layers(model))
    layer = layers[0][2]
    content = {"format": ADAPTER_FORMAT, "adapter": form_of(layer), "rank": layer.rank, "alpha": layer.alpha}
    content |= {"targets": sorted({name for _, name, _ in layers}), "base_digest": _digest(base)}
    content |= {"base": _relative(base, Path(path).parent), "model": adapter_state(model)} | _description(model)
    save_plain(content | info.to_dict(Path(path).parent), path)


def adapter_state(model: LlamaEmbeddingClassifier) -> dict[str, Tensor]:
    """Copies of what LoRA trains, the adapters' parameters and the head, by their names in the model."""
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[2] in ADAPTER_TENSORS or name.startswith("classifier_head.")
    }


@torch.no_grad()
def load_adapter(path: str | os.PathLike, model: LlamaEmbeddingClassifier) -> None:
    """Reads adapters and head into a model that `apply_adapters` has been called on.

    Raises OSError for a file that cannot be read and CheckpointError for one that does not fit the model.
    """
    content = load_plain(path)
    _check_format(path, content, ADAPTER_FORMAT)
    _load_adapter_state(path, content, model)


def _load_adapter_state(path: str | os.PathLike, content: dict[str, Any], model: LlamaEmbeddingClassifier) -> None:
    layer = next(layer for _, _, layer in lora_layers(model))
    if adapter_form(content) != form_of(layer):
        raise CheckpointError(f"{path} holds adapters of the form {adapter_form(content)}, not {form_of(layer)}")
    if (content["rank"], content["alpha"]) != (layer.rank, layer.alpha):
        raise CheckpointError(
            f"{path} has rank {content['rank']} and alpha {content['alpha']}, not {layer.rank} and {layer.alpha}"
        )
    expected = {name: tuple(tensor.shape) for name, tensor in adapter_state(model).items()}
    if expected != {name: tuple(tensor.shape) for name, tensor in content["model"].items()}:
        raise CheckpointError(f"{path} is the adapter of another model")
    check_tensors(Path(path), content["model"])
    check_finite(Path(path), content["model"])
    model.load_state_dict(content["model"], strict=False)


def _merged_adapter(path: Path, content: dict[str, Any], base: str | os.PathLike | None) -> LlamaEmbeddingClassifier:
    """The classifier of an adapter, merged into its base model."""
    base_path = Path(base) if base is not None else path.parent / content["base"]
    if not base_path.exists():
        raise FileNotFoundError(f"{path} needs its base model {base_path}: name it with --pretrained-model-path")
    if _digest(base_path) != content["base_digest"]:
        raise CheckpointError(f"{path} was trained on another base model than {base_path}: name that one with "
                              "--pretrained-model-path, or use merged.pt")  # fmt: skip
    checkpoint = read_base(base_path, LlamaConfig.from_dict(content["config"]))
    model = _new_classifier(content, from_checkpoint(checkpoint))
    apply_adapters(model.llama, adapter_form(content), content["rank"], content["alpha"], content["targets"])
    _load_adapter_state(path, content, model)
    merge_lora_weights(model)
    return model.eval()


def adapter_form(content: dict[str, Any]) -> str:
    """The form of an adapter file's adapters; older files do not name it."""
    return content.get("adapter", "lora")


def read_base(path: str | os.PathLike, config: LlamaConfig) -> Checkpoint:
    """The language model that a classifier of this configuration was trained from, read as it was for the training."""
    checkpoint = read_checkpoint(path, config.norm_type, n_heads=config.n_heads, rope_theta=config.rope_theta)
    if is_padding(checkpoint.config.vocab_size, config.vocab_size):
        checkpoint.cut_vocabulary(config.vocab_size)
    checkpoint.config = config
    return checkpoint


def _description(model: LlamaEmbeddingClassifier) -> dict[str, Any]:
    """The fields that `_new_classifier` reads."""
    fields = {"config": model.llama.config.to_dict(), "hidden_dropout_prob": model.dropout.p}
    return fields | {"pooling": model.pooling, "pad_id": model.pad_id}


def _new_classifier(content: dict[str, Any], llama: Llama) -> LlamaEmbeddingClassifier:
    fields = {name: content[name] for name in ("hidden_dropout_prob", "pooling", "pad_id")}
    if not isinstance(fields["pad_id"], int) or fields["pad_id"] < 0:
        raise ValueError(f"pad_id is {fields['pad_id']!r}, not a token id")
    return LlamaEmbeddingClassifier(SimpleNamespace(num_labels=len(content["label_names"]), **fields), llama)


def _relative(path: str | os.PathLike, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _digest(path: str | os.PathLike) -> str:
    return sha256_of(path)[:16]


def _check_format(path: str | os.PathLike, content: object, *formats: str) -> None:
    if not isinstance(content, dict) or content.get("format") not in formats:
        expected = " or ".join(name.removeprefix("min-llama-") for name in formats)
        raise CheckpointError(f"{path} is not a {expected} of this project")
