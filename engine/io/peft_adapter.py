"""Adapters (LoRA, rsLoRA, DoRA, IA³) in peft's format, in and out: `adapter_config.json`, `adapter_model.safetensors`.

    python run_llama.py --option generate --pretrained-model-path ADAPTER_FOLDER

An adapter names its base model; a folder `base` inside the adapter's comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint.contents import CheckpointError, parameter_shapes
from engine.io.files import read_json_object, write_json
from engine.io.huggingface import read_weights, write_safetensors
from engine.io.huggingface_config import adjacent_pairs, half_split, heads_of, their_names
from engine.model.adapters import merged_weight, scale_of

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base"
PREFIX = "base_model.model."  # of a tensor's name, before the base model's own name
TENSORS = {  # peft's name of an adapter's tensor, after the name of its layer, by ours
    "lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector", "ia3": "ia3_l",
}  # fmt: skip
PLAIN = {  # what a field of adapter_config.json may be; None: absent or null
    "peft_type": ("LORA", "IA3"),
    "use_dora": (False, True, None),
    "use_rslora": (False, True, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


@dataclass(frozen=True)
class Adapter:
    """The adapters of a model: their form, rank and alpha (IA³ has neither), their tensors, and other trained tensors.

    `layers` has an adapter's tensors, named as in `engine/model/adapters.py`, by our name of the weight they change.
    """

    form: str
    rank: int
    alpha: float
    layers: dict[str, dict[str, Tensor]]
    others: dict[str, Tensor]  # by Hugging Face's names, such as score.weight

    def merge(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict with the adapters in its weights."""
        scaling = 0.0 if self.form == "ia3" else scale_of(self.form, self.rank, self.alpha)
        return dict(state) | {name: merged_weight(state[name], own, scaling) for name, own in self.layers.items()}


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

    Raises CheckpointError, naming the field or tensor, for what adapters on this project's layers do not have.
    """
    fields = read_json_object(folder / CONFIG)
    for name, values in PLAIN.items():
        if fields.get(name) not in values:
            raise CheckpointError(f"{folder / CONFIG}: {name} {fields.get(name)!r} is not supported")
    form, rank, alpha = _form(folder / CONFIG, fields)
    tensors = {n.removeprefix(PREFIX): t.float() for n, t in read_weights(folder / WEIGHTS).items()}
    names, layers = their_names(config), dict[str, dict[str, Tensor]]()
    for name, shape in parameter_shapes(config).items():
        stem = names.get(name, name).removesuffix(".weight")
        own = {o: tensors.pop(f"{stem}.{t}") for o, t in TENSORS.items() if f"{stem}.{t}" in tensors}
        if own:
            _check_layer(folder / WEIGHTS, stem, own, _shapes(form, rank, shape))
            layers[name] = _reordered(own, heads_of(config, name), adjacent_pairs)
    if strange := [name for name in tensors if name.endswith(tuple(f".{theirs}" for theirs in TENSORS.values()))]:
        raise CheckpointError(f"{folder / WEIGHTS}: {strange[0]} belongs to no layer of the base model")
    if not layers:
        raise CheckpointError(f"{folder / WEIGHTS} has no adapter of a layer")
    return Adapter(form, rank, alpha, layers, tensors)


def _form(path: Path, fields: Mapping[str, Any]) -> tuple[str, int, float]:
    """(form, rank, alpha) of a configuration. DoRA with rsLoRA's scale is DoRA with another alpha."""
    if fields["peft_type"] == "IA3":
        return "ia3", 0, 0.0
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path} needs a rank r and a lora_alpha, not {rank!r} and {alpha!r}")
    if fields.get("use_dora"):
        return "dora", rank, alpha * math.sqrt(rank) if fields.get("use_rslora") else float(alpha)
    return "rslora" if fields.get("use_rslora") else "lora", rank, float(alpha)


def _shapes(form: str, rank: int, weight: tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that the tensors of a layer's adapter may have, by name, for a weight (out, in)."""
    out, width = weight[0], weight[-1]
    if form == "ia3":
        return [{"ia3": (out, 1)}, {"ia3": (1, width)}]
    factors = {"lora_A": (rank, width), "lora_B": (out, rank)}
    return [factors | ({"magnitude": (out,)} if form == "dora" else {})]


def _check_layer(path: Path, stem: str, own: Mapping[str, Tensor], expected: list[dict[str, tuple[int, ...]]]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes not in expected:
        has, needs = (
            ", ".join(f"{TENSORS[name]} {shape}" for name, shape in each.items()) for each in (shapes, expected[0])
        )
        raise CheckpointError(f"{path}: {stem} has {has}; its configuration and the base need {needs}")


def _reordered(
    own: Mapping[str, Tensor], heads: int | None, order: Callable[[Tensor, int], Tensor]
) -> dict[str, Tensor]:
    """An adapter's tensors, with those that have a row per output feature in the other order of rotary features."""
    by_input = {name for name, tensor in own.items() if name == "lora_A" or (name == "ia3" and len(tensor) == 1)}
    return {n: t if heads is None or n in by_input else order(t, heads) for n, t in own.items()}


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
    modules: dict[str, bool] = {}  # the last part of a layer's name: whether the layer's input is scaled
    for name, own in adapter.layers.items():
        stem = names[name].removesuffix(".weight")
        for ours, tensor in _reordered(own, heads_of(config, name), half_split).items():
            tensors[f"{PREFIX}{stem}.{TENSORS[ours]}"] = tensor
        modules[stem.rpartition(".")[2]] = "ia3" in own and len(own["ia3"]) == 1
    content = {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": sorted(modules)}
    content |= {"bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True}
    if adapter.form == "ia3":
        content = {"peft_type": "IA3", "target_modules": sorted(modules), "inference_mode": True}
        content |= {"feedforward_modules": sorted(name for name, on_input in modules.items() if on_input)}
    elif adapter.form != "lora":
        content |= {f"use_{adapter.form}": True}
    write_safetensors(folder / WEIGHTS, tensors, notes)
    write_json(folder / CONFIG, content | dict(fields))
