"""What every format is read into: a `Checkpoint`, whose names and shapes must fit its configuration.

    python -c "import config; from engine.io import checkpoint as c; print(c.parameter_shapes(config.LlamaConfig()))"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """A checkpoint as read: configuration, tensors, tokenizer path if any, and notes for the user."""

    config: LlamaConfig
    state_dict: dict[str, Tensor]
    tokenizer: Path | None = None
    notes: list[str] = field(default_factory=list)
    vocabulary: str | None = None  # digest of the tokenizer's pieces; None in files that do not record it


def checked(path: Path, checkpoint: Checkpoint, norm: str | None) -> Checkpoint:
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
    check_fit(path, checkpoint.state_dict, shapes)
    return checkpoint


def check_fit(path: Path, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError, naming up to three tensors, unless `state` has exactly these names and shapes."""
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
