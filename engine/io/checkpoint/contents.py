"""What every format is read into: a `Checkpoint`, whose names and shapes must fit its configuration.

    python -c "import config; from engine.io import checkpoint as c; print(c.parameter_shapes(config.LlamaConfig()))"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.files import FileError

LARGEST_TABLES = 2**30  # bytes of position tables
PADDING = 1024  # rows of an embedding are padded to at most a multiple of this


class CheckpointError(FileError):
    """A checkpoint that cannot be used; the message, one printable line, names the file and the reason."""

    def __init__(self, message: str):
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def shown(name: object) -> str:
    """A name from a file in a message: not too long, and what it is if it is no name."""
    return name[:80] if isinstance(name, str) else f"a {type(name).__name__}"


@dataclass
class Checkpoint:
    """A checkpoint as read: configuration, tensors, tokenizer path if any, and notes for the user."""

    config: LlamaConfig
    state_dict: dict[str, Tensor]
    tokenizer: Path | None = None
    notes: list[str] = field(default_factory=list)
    vocabulary: str | None = None  # digest of the tokenizer's pieces; None in files that do not record it

    def cut_vocabulary(self, size: int) -> None:
        """Drops the rows of embedding and output from `size` on, which are padding, so that they are never drawn."""
        self.config = dataclasses.replace(self.config, vocab_size=size)
        for name in ("tok_embeddings.weight", "output.weight"):
            if name in self.state_dict:
                self.state_dict[name] = self.state_dict[name][:size].clone()


def checked(path: Path, checkpoint: Checkpoint, norm: str | None) -> Checkpoint:
    """Compares names and shapes with the configuration; adds zero biases to weights that were trained with RMSNorm."""
    if norm is not None:
        checkpoint.config.norm_type = norm
    _check_sizes(path, checkpoint)
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


def _check_sizes(path: Path, checkpoint: Checkpoint) -> None:
    """Refuses sizes that would take memory before they are found to be wrong."""
    config = checkpoint.config
    if config.n_layers > len(checkpoint.state_dict):
        tensors = len(checkpoint.state_dict)
        raise CheckpointError(f"{path} does not fit its configuration: {config.n_layers} layers, but {tensors} tensors")
    width = {"rotary": config.head_dim, "sinusoidal": config.dim}.get(config.position_embedding_type, 0)
    if (size := 4 * width * config.max_seq_len) > LARGEST_TABLES:
        raise CheckpointError(
            f"{path} has {config.max_seq_len} positions, whose tables would take {size / 2**30:.1f} GiB: lower its "
            "max_seq_len"
        )


def check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming the tensor, for one that is not dense, not floating-point, or repeats its memory.

    A view that repeats its memory would grow without limit where it is copied.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {shown(name)} is {tensor.dtype}, not a dense floating-point tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is damaged: {shown(name)} is larger than what is stored of it")


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming the tensor, if a weight is NaN or infinite."""
    for name, tensor in state.items():
        if math.isfinite(tensor.sum()):  # fast; may overflow where each weight is finite
            continue
        if count := int((~tensor.isfinite()).sum()):
            raise CheckpointError(
                f"{path}: {count:,} of {tensor.numel():,} weights in {shown(name)} are not finite: its training "
                "diverged, or the file is damaged; take an earlier checkpoint"
            )


def find_tokenizer(path: Path, names: Sequence[str]) -> Path | None:
    """The first tokenizer of these names, relative to the checkpoint's folder or, if it was moved, beside it.

    The file called as the checkpoint, ending in `.model`, is tried last. None if there is none.
    """
    beside = [*(path.parent / Path(name).name for name in names), path.with_suffix(".model")]
    return next((file for file in [*(path.parent / name for name in names), *beside] if file.is_file()), None)


def is_padding(rows: int, size: int) -> bool:
    """Whether an embedding of `rows` may be one of `size` tokens and padding."""
    return 0 < rows - size < min(PADDING, size // 8)


def check_fit(path: Path, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError, naming up to three tensors, unless `state` has exactly these names and shapes."""
    missing = [name for name in shapes if name not in state]
    unexpected = [shown(name) for name in state if name not in shapes]
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
        if config.attention_type == "differential":
            vectors = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
            shapes |= {f"{layer}attention.differential.{name}": (config.head_dim,) for name in vectors}
            shapes[f"{layer}attention.differential.norm.weight"] = (2 * config.head_dim,)
        if config.gated_heads:
            gates = config.n_heads // (2 if config.attention_type == "differential" else 1)
            shapes[f"{layer}attention.gate.compute_gate.weight"] = (gates, dim)
        inner = ("w1", "w3") if config.ffn_type == "swiglu" else ("w1",)
        shapes |= {f"{layer}feed_forward.{name}.weight": (ffn, dim) for name in inner}
        shapes[f"{layer}feed_forward.w2.weight"] = (dim, ffn)
        shapes |= {f"{layer}{norm}.{part}": (dim,) for norm in ("attention_norm", "ffn_norm") for part in norm_parts}
    if config.norm_position == "pre":  # post-norm: the last layer ends with its own norm
        shapes |= {f"norm.{part}": (dim,) for part in norm_parts}
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def translated_names(
    config: LlamaConfig, outer: Mapping[str, str], layers: str, inner: Mapping[str, str]
) -> dict[str, str]:
    """Another program's name of every parameter, by our name.

    `outer` and `inner` translate the names outside and inside a layer; `layers` stands for our `layers`.
    """
    names = {}
    for name in parameter_shapes(config):
        stem, _, ending = name.rpartition(".")
        if stem in outer:
            names[name] = f"{outer[stem]}.{ending}"
        else:
            _, layer, part = stem.split(".", 2)
            names[name] = f"{layers}.{layer}.{inner[part]}.{ending}"
    return names
