"""Checkpoints of the course, of llama2.c and of others: their names and shapes in terms of ours.

    python run_llama.py --option generate --pretrained-model-path stories15M.pt --norm rmsnorm
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.io.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    find_tokenizer,
    is_padding,
    shown,
)
from engine.io.checkpoint.shapes import EMBEDDING, Unsaid, config_of

STATE_KEYS = ("model", "state_dict", "model_state_dict")  # where checkpoints keep their tensors
LLAMA2C_NAMES = {"wq": "compute_query", "wk": "compute_key", "wv": "compute_value", "wo": "compute_output"}
WRAPPERS = {  # names that torch.compile, DataParallel, FSDP and surrounding classes insert, anywhere
    "module", "model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
}  # fmt: skip
TOKENIZERS = ("tokenizer.model", "tokenizer.bin")
BACKBONE = "llama."  # the course's classifier keeps its model there
DERIVED = re.compile(  # buffers that are computed from the configuration
    r"(^|\.)(freqs(_cos|_sin|_cis)?|inv_freq|(rope_)?(cos|sin)(_cached)?|(causal_|attn_)?mask|tril|position_ids|"
    r"sinusoids|alibi_slopes)$"
)


def foreign(path: Path, content: dict[Any, Any], unsaid: Unsaid) -> Checkpoint:
    """A checkpoint of another program: a state dict, bare or in an entry, perhaps with a configuration beside it."""
    named = _state_dict(path, content)
    derived = {name: t for name, t in named.items() if DERIVED.search(name) or t.dtype == torch.bool}
    state = {name: tensor for name, tensor in named.items() if name not in derived}
    notes = [_dropped(path, derived, "they are computed again")] if derived else []
    if any(name.startswith(BACKBONE) for name in state):
        heads = [name for name in state if not name.startswith(BACKBONE)]
        state = {name.removeprefix(BACKBONE): t for name, t in state.items() if name.startswith(BACKBONE)}
        notes += [_dropped(path, heads, "only the backbone of this classifier is read")] if heads else []
    config, assumed = config_of(path, content, state, derived, unsaid)
    check_tensors(path, state)
    output, embedding = state.get("output.weight"), state.get(EMBEDDING)
    config.tie_embeddings = output is None or embedding is None or torch.equal(output, embedding)
    checkpoint = Checkpoint(config, state, find_tokenizer(path, TOKENIZERS), notes + assumed)
    if embedding is not None and embedding.dim() == 2 and is_padding(len(embedding), config.vocab_size):
        size, config.vocab_size = config.vocab_size, len(embedding)
        checkpoint.cut_vocabulary(size)
        checkpoint.notes.append(f"{path}: dropped {len(embedding) - size} rows of the embedding; they are padding")
    return checkpoint


def _state_dict(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors by our names. Raises CheckpointError if there are none, or two have the same name."""
    key = next((name for name in STATE_KEYS if name in content), None)
    tensors = content if key is None else content[key]
    if key is None:  # a bare state dict may have a counter beside its tensors
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: '{key}' is not a state dict of named tensors: save model.state_dict() there")
    if not tensors:
        keys = f"'{key}' is empty" if key else f"it has {_listed(content) or 'nothing'}"
        raise CheckpointError(f"{path} is not a checkpoint of a model: it needs a state dict, but {keys}")
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} is not a state dict of named tensors: a name is {shown(name)}")
        if (ours := our_name(name)) in state:
            raise CheckpointError(f"{path} has two tensors for {shown(ours)}, one of them {shown(name)}: keep one")
        state[ours] = tensor
    return state


def our_name(name: str) -> str:
    """`_orig_mod.layers.0.attention.wq.weight` -> `layers.0.attention.compute_query.weight`."""
    return ".".join(LLAMA2C_NAMES.get(part, part) for part in name.split(".") if part not in WRAPPERS)


def _dropped(path: Path, names: Iterable[str], reason: str) -> str:
    count = len(names := list(names))
    tensors = f"the tensor {shown(names[0])}" if count == 1 else f"{count} tensors such as {shown(names[0])}"
    return f"{path}: dropped {tensors}; {reason}"


def _listed(content: Mapping[Any, Any]) -> str:
    names = [shown(name) for name in list(content)[:5]]
    return ", ".join(names) + (" and more" if len(content) > 5 else "")

