"""Trained classifiers in files: the whole one, and of a LoRA run the adapter alone. Tensors and plain types only.

    python -c "from tasks.sentiment import checkpoint as c; print(c.load_classifier('runs/RUN/best.pt')[1])"
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from classifier import LlamaEmbeddingClassifier
from config import LlamaConfig
from engine.io.checkpoint import CheckpointError, load_plain, save_plain
from llama import Llama
from lora import LoRALayer, lora_layers

CLASSIFIER, ADAPTER = "min-llama-classifier", "min-llama-adapter"


def save_classifier(
    path: str | os.PathLike, model: LlamaEmbeddingClassifier, label_names: Sequence[str], tokenizer: str | os.PathLike
) -> None:
    """Writes all that is needed to classify: weights, configuration, label names, the tokenizer's relative path."""
    llama = model.llama.config
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if llama.tie_embeddings:
        tensors.pop("llama.output.weight")
    content = {"format": CLASSIFIER, "config": llama.to_dict(), "label_names": list(label_names), "model": tensors}
    content |= {"hidden_dropout_prob": model.dropout.p, "pooling": model.pooling, "pad_id": model.pad_id}
    content["tokenizer"] = Path(os.path.relpath(tokenizer, Path(path).parent)).as_posix()
    save_plain(content, path)


def load_classifier(path: str | os.PathLike) -> tuple[LlamaEmbeddingClassifier, list[str], Path]:
    """The classifier in evaluation mode, its label names and its tokenizer's path.

    Raises OSError for a file that cannot be read and CheckpointError for one that is no classifier.
    """
    content = load_plain(path)
    _check_format(path, content, CLASSIFIER)
    try:
        llama = Llama(LlamaConfig.from_dict(content["config"]))
        settings = {name: content[name] for name in ("hidden_dropout_prob", "pooling", "pad_id")}
        names = list(content["label_names"])
        model = LlamaEmbeddingClassifier(SimpleNamespace(num_labels=len(names), **settings), llama)
        state = dict(content["model"])
        if llama.config.tie_embeddings:
            state["llama.output.weight"] = state["llama.tok_embeddings.weight"]
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return model.eval(), names, Path(path).parent / content["tokenizer"]


def save_adapter(path: str | os.PathLike, model: LlamaEmbeddingClassifier) -> None:
    """Writes what LoRA trained and nothing else: the factors and the head."""
    layers = [layer for _, _, layer in lora_layers(model)]
    content = {"format": ADAPTER, "rank": layers[0].rank, "alpha": layers[0].alpha, "model": adapter_state(model)}
    save_plain(content, path)


def adapter_state(model: LlamaEmbeddingClassifier) -> dict[str, Tensor]:
    """Copies of the factors and the head by their names in the model."""
    kept = ("lora_A", "lora_B")
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[2] in kept or name.startswith("classifier_head.")
    }


@torch.no_grad()
def load_adapter(path: str | os.PathLike, model: LlamaEmbeddingClassifier) -> None:
    """Reads the factors and the head into a model that `apply_lora` has been called on.

    Raises OSError for a file that cannot be read and CheckpointError for one that does not fit the model.
    """
    content = load_plain(path)
    _check_format(path, content, ADAPTER)
    layer: LoRALayer = next(layer for _, _, layer in lora_layers(model))
    if (content["rank"], content["alpha"]) != (layer.rank, layer.alpha):
        raise CheckpointError(
            f"{path} has rank {content['rank']} and alpha {content['alpha']}, not {layer.rank} and {layer.alpha}"
        )
    own = adapter_state(model)
    shapes, given = ({name: tuple(t.shape) for name, t in state.items()} for state in (own, content["model"]))
    if shapes != given:
        raise CheckpointError(f"{path} is the adapter of another model")
    model.load_state_dict(content["model"], strict=False)


def _check_format(path: str | os.PathLike, content: object, wanted: str) -> None:
    if not isinstance(content, dict) or content.get("format") != wanted:
        raise CheckpointError(f"{path} is not a {wanted.removeprefix('min-llama-')} of this project")
