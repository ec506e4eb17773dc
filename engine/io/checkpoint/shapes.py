"""The configuration of a checkpoint: from the fields it names, its weights, its position tables, and flags.

    python run_llama.py --option generate --pretrained-model-path state_dict.pt --n_heads 8
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import MOST, LlamaConfig
from engine.io.checkpoint.contents import CheckpointError, shown

CONFIG_KEYS = ("model_args", "model_config", "config", "hyper_parameters", "args")  # where others keep the shape
FIELD_NAMES = {"norm_eps": "layer_norm_eps"}  # llama2.c's names of our fields
KNOWN = {entry.name for entry in dataclasses.fields(LlamaConfig)}
SHAPE = {"dim", "n_layers", "n_heads"}  # a table with one of these describes a model
LAYER = re.compile(r"layers\.(\d{1,9})\.")
EMBEDDING = "tok_embeddings.weight"
QUERY, KEY = (f"layers.0.attention.compute_{name}.weight" for name in ("query", "key"))
INNER = "layers.0.feed_forward.w1.weight"


@dataclass(frozen=True)
class Unsaid:
    """What weights cannot say, from flags; None: not given."""

    norm: str | None = None
    n_heads: int | None = None
    rope_theta: float | None = None

    def check(self, path: Path, config: LlamaConfig) -> None:
        """Raises CheckpointError if a checkpoint that names these itself names others."""
        for name in ("n_heads", "rope_theta"):
            value, own = getattr(self, name), getattr(config, name)
            if value is not None and value != own:
                raise CheckpointError(f"--{name} {value}: {path} has {own}")


def config_of(
    path: Path, content: Mapping[Any, Any], state: Mapping[str, Tensor], derived: Mapping[str, Tensor], unsaid: Unsaid
) -> tuple[LlamaConfig, list[str]]:
    """The configuration of a foreign checkpoint, and a note of what was assumed, if anything was.

    Fields that it does not name come from its position tables, then from `unsaid`, then from its weights. Raises
    CheckpointError for an invalid field, and if nothing decides the number of heads.
    """
    named = _table_fields(derived, state) | _named_fields(path, content)
    flags = {name: getattr(unsaid, name) for name in ("n_heads", "rope_theta") if getattr(unsaid, name) is not None}
    if "n_heads" not in named | flags:
        raise CheckpointError(
            f"{path} does not say how many heads it has, and its weights cannot: give --n_heads N (and --norm and "
            "--rope_theta, unless they are layernorm and 10000)"
        )
    fields = flags | named
    try:
        config = LlamaConfig.from_dict(_weight_fields(state, fields) | fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return config, [] if "n_heads" in named else [_assumed(path, config, named)]


def _named_fields(path: Path, content: Mapping[Any, Any]) -> dict[str, Any]:
    """Our fields that the checkpoint names; llama2.c's `model_args` may have no others, tables of flags may."""
    tables = {key: content[key] for key in CONFIG_KEYS if key in content}
    tables = {key: value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
              for key, value in tables.items()}  # fmt: skip
    if tables and not any(isinstance(fields, Mapping) for fields in tables.values()):
        raise CheckpointError(f"{path}: '{next(iter(tables))}' is not a table of fields")
    key = next((name for name, fields in tables.items() if fields and SHAPE & set(fields)), None)
    if key is None:
        return {}
    fields = {name: v.item() if isinstance(v, np.generic) else v for name, v in tables[key].items()}
    fields = {FIELD_NAMES.get(n, n): v for n, v in fields.items() if v is not None and not _is_unset(v)}
    unknown = [shown(name) for name in fields if name not in KNOWN]
    if unknown and key == "model_args":
        raise CheckpointError(f"{path}: unknown configuration field(s): {', '.join(unknown[:5])}")
    return {name: value for name, value in fields.items() if name in KNOWN}


def _is_unset(value: object) -> bool:
    """Llama 2's own files say that their vocabulary has −1 tokens, and leave the number to the weights."""
    return type(value) is int and value == -1


def _weight_fields(state: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights decide, given the number of heads in `fields`."""
    rows = {name: state[name].shape[0] for name in (EMBEDDING, QUERY, KEY, INNER) if _is_matrix(state.get(name))}
    layers = [int(match[1]) for name in state if (match := LAYER.match(name))]
    decided: dict[str, Any] = {"n_layers": max(layers) + 1} if layers else {}
    if EMBEDDING in rows:
        decided |= {"vocab_size": rows[EMBEDDING], "dim": state[EMBEDDING].shape[1]}
    if INNER in rows and "multiple_of" not in fields:
        decided["hidden_dim"] = rows[INNER]
    heads = fields["n_heads"]
    if isinstance(heads, int) and heads > 0 and rows.get(QUERY, 0) and rows[QUERY] % heads == 0:
        head_dim = rows[QUERY] // heads
        decided["n_kv_heads"] = max(1, rows.get(KEY, rows[QUERY]) // head_dim)
        if rows[QUERY] != state[QUERY].shape[1]:
            decided["head_size"] = head_dim
    return {"n_kv_heads": None} | decided


def _is_matrix(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dim() == 2 and 0 not in tensor.shape


def _table_fields(derived: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What position tables and masks in a checkpoint say of heads, positions and theta."""
    said: dict[str, Any] = {}
    for name, table in derived.items():
        last = name.rpartition(".")[2]
        if last in ("freqs", "inv_freq") and table.dim() == 1:
            frequencies = table
        elif last == "freqs_sin" and table.dim() == 2 and len(table) > 1:
            said["max_seq_len"], frequencies = len(table), table[1].double().asin()  # row 1: the angles themselves
        elif last == "causal_mask" and table.dim() >= 2 and table.shape[-1] == table.shape[-2] > 1:
            said["max_seq_len"] = table.shape[-1]
            continue
        else:
            continue
        query, head_dim = state.get(QUERY), 2 * len(frequencies)
        if _is_matrix(query) and head_dim and query.shape[0] % head_dim == 0:
            said["n_heads"] = query.shape[0] // head_dim
        if (theta := _theta(frequencies)) is not None and table.dtype in (torch.float32, torch.float64):
            said["rope_theta"] = theta
    return said


def _theta(frequencies: Tensor) -> float | None:
    """RoPE's theta from theta^(−2i / head_dim), i < head_dim / 2; None if they are other numbers."""
    count = len(frequencies)
    last = float(frequencies[-1]) if count > 1 else 0.0
    if not 0.0 < last < 1.0:
        return None
    exact = last ** (-count / (count - 1))
    theta = float(f"{exact:.3g}") if exact < MOST else math.inf
    expected = theta ** (-torch.arange(count, dtype=torch.float64) / count)
    return theta if theta < MOST and torch.allclose(frequencies.double(), expected, rtol=1e-3) else None


def _assumed(path: Path, config: LlamaConfig, named: Mapping[str, Any]) -> str:
    """A line that says what the weights left open, and how to set it."""
    unsaid = [f"{config.n_heads} heads (--n_heads)"]
    unsaid += [f"theta {config.rope_theta:g} (--rope_theta)"] if "rope_theta" not in named else []
    unsaid += [f"{config.max_seq_len} positions"] if "max_seq_len" not in named else []
    return f"{path}: the shape comes from the weights; they do not say, so assumed are {', '.join(unsaid)}"
