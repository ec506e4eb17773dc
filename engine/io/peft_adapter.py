"""LoRA adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors`, in and out.

    python run_llama.py --option generate --pretrained-model-path ADAPTER_FOLDER

An adapter names its base model; a folder `base` inside the adapter's comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import CheckpointError
from engine.io.files import read_json_object, write_json
from engine.io.huggingface import read_weights, write_safetensors
from engine.io.huggingface_config import adjacent_pairs, half_split, heads_of, their_names

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base"
PREFIX = "base_model.model."  # of a tensor's name, before the base model's own name
FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
PLAIN = {  # what a field of adapter_config.json may be; None: absent or null
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


@dataclass(frozen=True)
class Adapter:
    """Low-rank factors (A, B) by our name of the weight that they change, their scale, and other trained tensors."""

    rank: int
    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]
    others: dict[str, Tensor]  # by Hugging Face's names, such as score.weight

    def merge(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict with (alpha / rank) · B · A added (Hu et al. 2021, eq. 3)."""
        merged = dict(state)
        for name, (a, b) in self.factors.items():
            merged[name] = merged[name] + b @ a * (self.alpha / self.rank)
        return merged


def base_of(folder: Path, named: str | Path | None = None) -> Path:
    """The base model of an adapter: `named`, else the folder `base` in it, else the one its configuration names.

    Raises FileNotFoundError if it is not on this machine.
    """
    if named is not None:
        return Path(named)
    path = read_json_object(folder / CONFIG).get("base_model_name_or_path")
    candidates = [folder / BASE, *([folder / path, Path(path)] if isinstance(path, str) and path else [])]
    for candidate in candidates:
        if candidate.exists() and candidate.resolve() != folder.resolve():
            return candidate
    raise FileNotFoundError(f"{folder} needs its base model {path}, which is not on this machine")


def read_adapter(folder: Path, config: LlamaConfig) -> Adapter:
    """The adapter in a folder, for a base model with this configuration.

    Raises CheckpointError, naming the field or tensor, for what plain LoRA on this project's layers does not have.
    """
    fields = read_json_object(folder / CONFIG)
    for name, values in PLAIN.items():
        if fields.get(name) not in values:
            raise CheckpointError(f"{folder / CONFIG}: {name} {fields.get(name)!r} is not supported")
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{folder / CONFIG} needs a rank r and a lora_alpha, not {rank!r} and {alpha!r}")
    tensors = {n.removeprefix(PREFIX): t.float() for n, t in read_weights(folder / WEIGHTS).items()}
    ours = {theirs: name for name, theirs in their_names(config).items()}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for theirs in [match[1] for name in tensors if (match := FACTOR.fullmatch(name)) and match[2] == "A"]:
        a, b = tensors.pop(f"{theirs}.lora_A.weight"), tensors.pop(f"{theirs}.lora_B.weight", None)
        name = ours.get(f"{theirs}.weight")
        if name is None or b is None or a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(f"{folder / WEIGHTS}: the factors of {theirs} do not fit rank {rank} and the base")
        heads = heads_of(config, name)
        factors[name] = (a, b if heads is None else adjacent_pairs(b, heads))
    return Adapter(rank, float(alpha), factors, tensors)


def write_adapter(
    folder: Path,
    config: LlamaConfig,
    adapter: Adapter,
    fields: Mapping[str, Any],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes an adapter for peft. `fields` of its configuration name the base model, the task and modules_to_save.

    `notes` go into the header of the weights.
    """
    names, tensors = their_names(config), {f"{PREFIX}{name}": tensor for name, tensor in adapter.others.items()}
    modules = set()
    for name, (a, b) in adapter.factors.items():
        heads, stem = heads_of(config, name), names[name].removesuffix(".weight")
        tensors[f"{PREFIX}{stem}.lora_A.weight"] = a
        tensors[f"{PREFIX}{stem}.lora_B.weight"] = b if heads is None else half_split(b, heads)
        modules.add(stem.rpartition(".")[2])
    content = {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": sorted(modules)}
    content |= {"bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True}
    write_safetensors(folder / WEIGHTS, tensors, notes)
    write_json(folder / CONFIG, content | dict(fields))
