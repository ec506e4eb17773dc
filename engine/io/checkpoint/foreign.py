"""Checkpoints of the course, of llama2.c and of others: their names and shapes in terms of ours.

    python run_llama.py --option generate --pretrained-model-path stories15M.pt --norm rmsnorm
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import Checkpoint, CheckpointError

LLAMA2C_NAMES = {"wq": "compute_query", "wk": "compute_key", "wv": "compute_value", "wo": "compute_output"}
CONFIG_KEYS = ("model_args", "model_config", "config", "args")  # where the course, llama2.c and others keep the shape
FIELD_NAMES = {"norm_eps": "layer_norm_eps"}  # llama2.c's names of our fields
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.|model\.)+")  # torch.compile, DataParallel, a surrounding class
DERIVED = re.compile(r"(^|\.)(freqs_cos|freqs_sin|freqs_cis|freqs|inv_freq|mask|causal_mask|rope_cos|rope_sin)$")


def beside(path: Path, name: str) -> Path | None:
    """The file of this name in the folder of `path`, if there is one."""
    candidate = path.parent / name
    return candidate if candidate.is_file() else None


def foreign(path: Path, model: object, shape: object, strict: bool) -> Checkpoint:
    """The course's or llama2.c's tensors and shape; the shape may be a dict, a Namespace or a config object."""
    config = _config_of(path, shape, strict)
    if not isinstance(model, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in model.items()):
        raise CheckpointError(f"{path}: 'model' is not a state dict of named tensors")
    state = {_course_name(name): tensor.float() for name, tensor in model.items()}
    state = {name: tensor for name, tensor in state.items() if not DERIVED.search(name)}
    output, embedding = state.get("output.weight"), state.get("tok_embeddings.weight")
    config.tie_embeddings = output is None or embedding is None or torch.equal(output, embedding)
    tokenizer = beside(path, "tokenizer.model") or beside(path, "tokenizer.bin")
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
