"""Variants of LoRA: rank-stabilised LoRA, DoRA and IA³, and LoRA+'s two learning rates.

    python run_llama.py --option lora --adapter dora --help
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora import AdaptedLayer, LoRALayer, adaptable_layers, check_rank

IA3_OUTPUTS, IA3_INPUTS = ("compute_key", "compute_value"), ("w2",)  # the layers whose output or input IA³ scales


class RankStabilizedLayer(LoRALayer):
    """LoRA with the scale alpha / √rank (Kalajdzievski 2023, theorem 3.2)."""

    def __init__(self, original_layer: nn.Linear, rank: int, alpha: float):
        super().__init__(original_layer, rank, alpha)
        self.scaling = scale_of("rslora", rank, alpha)


class DoRALayer(LoRALayer):
    """m ⊙ (W + s·B·A)·x / ‖W + s·B·A‖ with the norm of each output row (Liu et al. 2024, eq. 5) and s = alpha / rank.

    The magnitude m (out,) starts as W's row norms, so that the initial output is W·x. The norm has no gradient
    (section 4.3).
    """

    def __init__(self, original_layer: nn.Linear, rank: int, alpha: float):
        super().__init__(original_layer, rank, alpha)
        self.magnitude = nn.Parameter(torch.linalg.vector_norm(original_layer.weight.detach(), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight, bias = self.original_layer.weight, self.original_layer.bias
        with torch.no_grad():
            norm = torch.linalg.vector_norm(weight + self.lora_B @ self.lora_A * self.scaling, dim=1)  # (out,)
        out = F.linear(x, weight) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
        out = out * (self.magnitude / norm)
        return out if bias is None else out + bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The original layer with the adapter in its weight; this object is then invalid."""
        own = {name: tensor.detach() for name, tensor in self.named_parameters(recurse=False)}
        self.original_layer.weight.copy_(merged_weight(self.original_layer.weight, own, self.scaling))
        return self.original_layer


class IA3Layer(AdaptedLayer):
    """A frozen linear layer whose output or input is multiplied by a trained vector (Liu et al. 2022, section 3.3).

    The vector starts at 1. Its shape, (out, 1) or (1, in), is the one that multiplies the weight.
    """

    def __init__(self, original_layer: nn.Linear, on_input: bool):
        super().__init__(original_layer)
        weight = original_layer.weight
        self.rank, self.alpha, self.on_input = 0, 0.0, on_input  # an adapter's file names them: IA³ has neither
        self.ia3 = nn.Parameter(torch.ones_like(weight[:1] if on_input else weight[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        vector = self.ia3.flatten()
        return self.original_layer(x * vector) if self.on_input else self.original_layer(x) * vector

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The original layer with the vector in its weight, and in its bias; this object is then invalid."""
        layer = self.original_layer
        layer.weight *= self.ia3
        if layer.bias is not None and not self.on_input:
            layer.bias *= self.ia3.flatten()
        return layer


FORMS: dict[str, type] = {"lora": LoRALayer, "rslora": RankStabilizedLayer, "dora": DoRALayer, "ia3": IA3Layer}


def scale_of(form: str, rank: int, alpha: float) -> float:
    """The factor of B·A."""
    return alpha / math.sqrt(rank) if form == "rslora" else alpha / rank


def form_of(layer: AdaptedLayer) -> str:
    """The name of an adapted layer's form in `FORMS`."""
    return next(name for name, layer_type in FORMS.items() if type(layer) is layer_type)


def merged_weight(weight: Tensor, own: Mapping[str, Tensor], scaling: float) -> Tensor:
    """W (out, in) with an adapter's tensors in it, named as the parameters of its layer are."""
    if "ia3" in own:
        return weight * own["ia3"]
    weight = weight + own["lora_B"] @ own["lora_A"] * scaling
    if "magnitude" not in own:
        return weight
    return weight * (own["magnitude"] / torch.linalg.vector_norm(weight, dim=1))[:, None]


def check_adapters(model: nn.Module, form: str, rank: int, targets: Sequence[str]) -> None:
    """Raises ValueError if the model has no such layers, or the rank does not fit one."""
    for _, _, layer in _layers(model, form, targets):
        if form != "ia3":
            check_rank(layer, rank)


def apply_adapters(model: nn.Module, form: str, rank: int, alpha: float, targets: Sequence[str]) -> nn.Module:
    """Freezes `model` and wraps its linear layers in adapters of a form; returns the model.

    With "lora" it is `lora.apply_lora`. IA³ has layers of its own to adapt, and neither rank nor alpha. Raises
    ValueError for another form, if no layer has such a name, or if the rank does not fit one.
    """
    layers = _layers(model, form, targets)
    model.requires_grad_(False)
    for parent, name, layer in layers:
        if form == "ia3":
            adapted: AdaptedLayer = IA3Layer(layer, on_input=name in IA3_INPUTS)
        else:
            adapted = FORMS[form](layer, rank, alpha)
        setattr(parent, name, adapted)
    return model


def _layers(model: nn.Module, form: str, targets: Sequence[str]) -> list[tuple[nn.Module, str, nn.Linear]]:
    if form not in FORMS:
        raise ValueError(f"adapter {form!r} is not one of {', '.join(FORMS)}")
    return adaptable_layers(model, IA3_OUTPUTS + IA3_INPUTS if form == "ia3" else targets)


def lora_plus_groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, ratio: float) -> list[dict]:
    """LoRA+ (Hayou et al. 2024, section 4): two parameter groups, in which every B has `ratio` times the others' rate.

    Frozen parameters are left out.
    """
    trained = [(name.endswith("lora_B"), parameter) for name, parameter in named if parameter.requires_grad]
    others, factors = ([parameter for is_b, parameter in trained if is_b is wanted] for wanted in (False, True))
    return [{"params": others, "lr": lr}, {"params": factors, "lr": lr * ratio}]
