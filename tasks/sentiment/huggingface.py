"""Trained classifiers as Hugging Face's `…ForSequenceClassification`, and LoRA adapters in peft's format, both ways.

    python run_llama.py --option export --pretrained-model-path runs/RUN/best.pt --out runs/folder
    python run_llama.py --option predict --checkpoint runs/folder --text "A film to remember."

The head of Hugging Face's sequence classifiers has no bias. A LayerNorm model's final norm has one, so ours moves
there: W·β' = W·β + b. The exact values stay in the header of the weights for the way back. RMSNorm has none, but the
head of `LlamaForTokenClassification` has: an RMSNorm classifier becomes one. A text has its last token's label.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import Checkpoint, CheckpointError, load_plain, read_checkpoint
from engine.io.files import read_json_object, write_json
from engine.io.huggingface import HEAD, HEAD_BIAS, header_notes, read_folder, read_tensors, tokenizer_of, write_folder
from engine.io.huggingface_config import OWN_FIELDS, architecture, check_exportable
from engine.io.peft_adapter import CONFIG as ADAPTER
from engine.io.peft_adapter import TENSORS, WEIGHTS, Adapter, base_of, read_adapter, write_adapter
from llama import from_checkpoint
from tasks.sentiment.checkpoint import ClassifierInfo, adapter_form
from tokenizer import load_tokenizer

DESCRIPTION = "classifier.json"  # beside an adapter: what config.json says of a whole classifier
NORM, OWN_NORM_BIAS, OWN_HEAD_BIAS = "model.norm", "min_llama.norm_bias", "min_llama.head_bias"
UNUSUAL = 1e-5  # largest error of the moved bias, relative to the bias


def check_classifier(model: LlamaEmbeddingClassifier) -> None:
    """Raises ValueError, naming the field, for a classifier that Hugging Face's classes cannot hold."""
    check_exportable(model.llama.config)
    if model.pooling != "last_token":
        raise ValueError(f"Hugging Face's classifiers have no pooling {model.pooling!r}: they read the last token")
    head_tensors(model)


def per_token(model: LlamaEmbeddingClassifier) -> bool:
    """True if only Hugging Face's token classifiers can hold the head: it has a bias, and the final norm has none."""
    return model.llama.config.norm_type == "rmsnorm" and bool(model.classifier_head.bias.any())


def head_tensors(model: LlamaEmbeddingClassifier) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The head, with the final norm's new bias, by Hugging Face's names; and the exact biases as header notes."""
    head, norm = model.classifier_head, model.llama.norm
    weight, bias = head.weight.detach(), head.bias.detach()
    if not bias.any():
        return {HEAD: weight}, {}
    if per_token(model):
        return {HEAD: weight, HEAD_BIAS: bias}, {}
    shift = torch.linalg.lstsq(weight.double(), bias.double()[:, None], driver="gelsd").solution[:, 0]
    if (weight.double() @ shift - bias.double()).abs().max() > UNUSUAL * bias.abs().max():
        raise ValueError("classifier_head.bias: the rows of the head depend on each other, so no norm can hold it")
    moved = (norm.bias.detach().double() + shift).float()
    notes = {OWN_NORM_BIAS: json.dumps(norm.bias.tolist()), OWN_HEAD_BIAS: json.dumps(bias.tolist())}
    return {HEAD: weight, f"{NORM}.weight": norm.weight.detach(), f"{NORM}.bias": moved}, notes


def description(model: LlamaEmbeddingClassifier, info: ClassifierInfo) -> dict[str, Any]:
    """Labels and padding as config.json has them, and what only this project needs."""
    own = info.to_dict(Path()) | {"hidden_dropout_prob": model.dropout.p}
    own = {name: value for name, value in own.items() if name not in ("label_names", "tokenizer")}
    names = list(info.label_names)
    fields = {"id2label": {str(i): name for i, name in enumerate(names)}, "pad_token_id": model.pad_id}
    return fields | {"label2id": {name: index for index, name in enumerate(names)}, OWN_FIELDS: own}


def write_classifier(folder: Path, model: LlamaEmbeddingClassifier, info: ClassifierInfo) -> None:
    """Writes a whole classifier without its tokenizer. The output matrix, which it does not use, is left out."""
    others, notes = head_tensors(model)
    config = dataclasses.replace(model.llama.config, tie_embeddings=True)
    fields = {"architectures": [f"{architecture(config)[1]}For{_task(model)}Classification"]}
    fields |= description(model, info)
    if not per_token(model):
        fields["problem_type"] = "single_label_classification"
    write_folder(folder, config, model.llama.state_dict(), fields, others, notes)


def _task(model: LlamaEmbeddingClassifier) -> str:
    return "Token" if per_token(model) else "Sequence"


def write_peft(
    folder: Path, checkpoint: str | Path, model: LlamaEmbeddingClassifier, info: ClassifierInfo, base: str
) -> None:
    """Writes the adapter file `checkpoint`, whose merged classifier is `model`, for the base model at `base`."""
    content = load_plain(checkpoint)
    tensors: dict[str, Tensor] = content["model"]
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, ending = name.rpartition(".")
        if ending in TENSORS:
            layers.setdefault(f"{stem.removeprefix('llama.')}.weight", {})[ending] = tensor
    others, notes = head_tensors(model)
    adapter = Adapter(adapter_form(content), content["rank"], content["alpha"], layers, others)
    task = "TOKEN_CLS" if per_token(model) else "SEQ_CLS"
    fields = {"task_type": task, "modules_to_save": ["score", *([NORM] if notes else [])]}
    write_adapter(folder, model.llama.config, adapter, fields | {"base_model_name_or_path": base}, notes)
    write_json(folder / DESCRIPTION, description(model, info))


def read_classifier(
    folder: str | Path, base: str | Path | None = None
) -> tuple[LlamaEmbeddingClassifier, ClassifierInfo]:
    """The classifier of a folder in evaluation mode, and its info; an adapter in peft's format is merged into its base.

    Raises OSError for a missing file and CheckpointError for a folder that is not a classifier's.
    """
    folder = Path(folder)
    if not (folder / ADAPTER).exists():
        if base is not None:
            raise CheckpointError(f"{folder} is a whole model: leave --pretrained-model-path out")
        fields, tensors = read_json_object(folder / "config.json"), read_tensors(folder)
        return _classifier(folder, read_folder(folder), tensors, fields, folder / "model.safetensors")
    checkpoint = read_checkpoint(base_of(folder, base))
    adapter = read_adapter(folder, checkpoint.config)
    checkpoint.state_dict = adapter.merge(checkpoint.state_dict)
    for name in ("weight", "bias"):
        if f"{NORM}.{name}" in adapter.others:
            checkpoint.state_dict[f"norm.{name}"] = adapter.others[f"{NORM}.{name}"]
    fields = read_json_object(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    return _classifier(folder, checkpoint, adapter.others, fields, folder / WEIGHTS)


def _classifier(
    folder: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], fields: dict[str, Any], weights: Path
) -> tuple[LlamaEmbeddingClassifier, ClassifierInfo]:
    if HEAD not in tensors:
        raise CheckpointError(f"{folder} is not a classifier: it has no {HEAD}")
    if HEAD_BIAS in tensors and OWN_FIELDS not in fields:
        raise CheckpointError(f"{folder} labels tokens, not texts: its {HEAD_BIAS} is a token classifier's")
    head = tensors[HEAD].float()
    tokenizer = tokenizer_of(folder) or checkpoint.tokenizer
    if tokenizer is None:
        raise FileNotFoundError(f"{folder} has no tokenizer.json or tokenizer.model")
    own = fields.get(OWN_FIELDS, {})
    names = _label_names(folder, fields, len(head))
    info = ClassifierInfo.from_dict(own | {"label_names": names, "tokenizer": tokenizer.name}, tokenizer)
    pad_id = fields.get("pad_token_id")
    pad_id = load_tokenizer(tokenizer).pad_id if pad_id is None else pad_id
    config = {"num_labels": len(names), "pad_id": pad_id, "hidden_dropout_prob": own.get("hidden_dropout_prob", 0.0)}
    model = LlamaEmbeddingClassifier(SimpleNamespace(**config), from_checkpoint(checkpoint))
    notes = header_notes(weights) if weights.is_file() else {}
    with torch.no_grad():
        model.classifier_head.weight.copy_(head)
        model.classifier_head.bias.copy_(tensors.get(HEAD_BIAS, torch.zeros(len(head))))
        if OWN_NORM_BIAS in notes:
            model.llama.norm.bias = torch.nn.Parameter(torch.tensor(json.loads(notes[OWN_NORM_BIAS])))
            model.classifier_head.bias.copy_(torch.tensor(json.loads(notes[OWN_HEAD_BIAS])))
    return model.eval(), info


def _label_names(folder: Path, fields: dict[str, Any], count: int) -> list[str]:
    """The names of the labels in the order of their numbers; `LABEL_0` and so on where nothing names them."""
    named = fields.get("id2label") or {str(index): f"LABEL_{index}" for index in range(count)}
    if sorted(named) != sorted(str(index) for index in range(count)):
        raise CheckpointError(f"{folder}: id2label names {len(named)} labels, but {HEAD} has {count} rows")
    return [str(named[str(index)]) for index in range(count)]
