"""Hugging Face model folders in and out: `config.json`, safetensors (or `pytorch_model.bin`), and the tokenizer.

    python run_llama.py --option generate --pretrained-model-path FOLDER

Weights are memory-mapped. Nothing needs transformers; `safetensors` is imported when a folder is read or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import Checkpoint, CheckpointError, check_fit, checked, parameter_shapes
from engine.io.checkpoint.identify import known_signature
from engine.io.checkpoint.pickles import load_plain
from engine.io.files import atomic_path, check_readable, read_json_object, write_json
from engine.io.huggingface_config import (
    OWN_FIELDS,
    adjacent_pairs,
    from_their_config,
    half_split,
    heads_of,
    their_names,
    to_their_config,
)
from engine.io.packages import needed

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FOLDERS = "Hugging Face folders"
HEAD, HEAD_BIAS = "score.weight", "score.bias"  # of a classifier


def read_folder(folder: Path) -> Checkpoint:
    """The model of a folder in float32, with the path of its tokenizer, if any; an adapter's is merged into its base.

    Raises OSError for a missing file and CheckpointError for one that is damaged or does not fit `config.json`, or for
    a feature that this project's Llama does not have. The head of a classifier is left out.
    """
    if (folder / "adapter_config.json").exists():
        return _merged(folder)
    config = from_their_config(folder / CONFIG, read_json_object(folder / CONFIG))
    tensors = read_tensors(folder)
    tensors.pop(HEAD_BIAS, None)
    if tensors.pop(HEAD, None) is not None and "lm_head.weight" not in tensors:
        config.tie_embeddings = True  # a classifier has no output of its own
    state = from_their_tensors(folder, config, tensors)
    return checked(folder, Checkpoint(config, state, tokenizer_of(folder)), norm=None)


def _merged(folder: Path) -> Checkpoint:
    """The base model of a LoRA adapter in peft's format, with the adapter merged into it."""
    peft_adapter: Any = import_module("engine.io.peft_adapter")
    base = peft_adapter.base_of(folder)
    checkpoint = import_module("engine.io.checkpoint").read_checkpoint(base)
    adapter = peft_adapter.read_adapter(folder, checkpoint.config)
    checkpoint.state_dict = adapter.merge(checkpoint.state_dict)
    checkpoint.tokenizer = tokenizer_of(folder) or checkpoint.tokenizer
    checkpoint.notes.append(f"{folder} is an adapter, merged into {base}")
    return checkpoint


def tokenizer_of(folder: Path) -> Path | None:
    """The tokenizer in a folder: tokenizer.json, which transformers reads too, else tokenizer.model."""
    return next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by Hugging Face's names, memory-mapped, from one file or from shards and their index."""
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(WEIGHTS)}")
    if path.suffix != ".json":
        return read_weights(path)
    shards = read_json_object(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files")
    contents = {name: read_weights(_shard(path, name)) for name in sorted(set(shards.values()))}
    for tensor, name in shards.items():
        if tensor not in contents[name]:
            raise CheckpointError(f"{path} puts {tensor} into {name}, which does not hold it")
    return {tensor: contents[name][tensor] for tensor, name in shards.items()}


def _shard(index: Path, name: str) -> Path:
    """The file of a shard, which stands beside its index."""
    if Path(name).name != name:
        raise CheckpointError(f"{index} names {name!r}, which is not a file in its folder")
    if not (index.parent / name).is_file():
        raise FileNotFoundError(f"{index.parent} lacks the shard {name}, which {index.name} names")
    return index.parent / name


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one .safetensors or .bin file. Raises CheckpointError for a damaged file or integer tensors."""
    if path.suffix == ".safetensors":
        with opened_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    else:
        tensors = load_plain(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} is not a table of named tensors")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; only plain floating-point weights are supported")
    return tensors


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """An open safetensors file. Its header is checked against the file's size; a lie is a CheckpointError."""
    safetensors = needed("safetensors", FOLDERS)
    try:
        with safetensors.safe_open(check_readable(path), framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        reason = known_signature(path) or f"it is damaged or cut short ({error})"
        raise CheckpointError(f"{path} was not loaded: {reason}") from None


def from_their_tensors(folder: Path, config: LlamaConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in float32 from tensors by Hugging Face's names; raises CheckpointError if they do not fit."""
    if not any(name.startswith("model.") for name in tensors):  # saved without its head
        tensors = {name if name == "lm_head.weight" else f"model.{name}": value for name, value in tensors.items()}
    names, shapes = their_names(config), parameter_shapes(config)
    tensors = {name: value for name, value in tensors.items() if not _redundant(folder, name, value, config)}
    check_fit(folder, tensors, {names[name]: shape for name, shape in shapes.items()})
    state = {}
    for name, theirs in names.items():
        tensor, heads = tensors[theirs].float(), heads_of(config, name)
        state[name] = tensor if heads is None else adjacent_pairs(tensor, heads)
    return state


def _redundant(folder: Path, name: str, tensor: Tensor, config: LlamaConfig) -> bool:
    """True for a tied output, stored rotary frequencies and biases of zero; another bias is refused."""
    if name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight"):
        return True
    if not name.endswith(("_proj.bias", "lm_head.bias")):
        return False
    if tensor.any():
        feature = "attention_bias" if "self_attn" in name else "mlp_bias"
        raise CheckpointError(f"{folder}: {name} is a bias ({feature}), which this project's Llama does not have")
    return True


def to_their_tensors(config: LlamaConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of our tensors by Hugging Face's names and in its order of rotary features; a tied output is left out."""
    tensors = {}
    for name, theirs in their_names(config).items():
        tensor, heads = state[name].detach().cpu(), heads_of(config, name)
        tensors[theirs] = tensor.clone() if heads is None else half_split(tensor, heads).clone()
    return tensors


def write_folder(
    folder: Path,
    config: LlamaConfig,
    state: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    others: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.json` (with more `fields`) and `model.safetensors` (with `others`, by Hugging Face's names).

    `notes` go into the header of the weights. Raises ValueError for a configuration that the folder cannot hold.
    """
    theirs = to_their_config(config)
    content = theirs | dict(fields) | {OWN_FIELDS: theirs[OWN_FIELDS] | fields.get(OWN_FIELDS, {})}
    write_safetensors(folder / "model.safetensors", to_their_tensors(config, state) | dict(others or {}), notes)
    write_json(folder / CONFIG, content)


def header_notes(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    with opened_safetensors(path) as file:
        return dict(file.metadata() or {})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Writes tensors atomically; `notes` go into the header beside the format that transformers looks for."""
    library = needed("safetensors.torch", FOLDERS)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        library.save_file(plain, temporary, metadata={"format": "pt"} | dict(notes or {}))
