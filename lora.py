"""Low-rank adaptation (Hu et al. 2021): a frozen linear layer plus the trained product of two thin matrices.

    python run_llama.py --option lora --lr 2e-3 --train data/reviews-train.txt --dev data/reviews-dev.txt \\
        --test data/reviews-test.txt --label-names data/reviews-label-mapping.json \\
        --dev_out reviews-dev-lora-output.txt --test_out reviews-test-lora-output.txt
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_PROJECTIONS = ("compute_query", "compute_key", "compute_value", "compute_output")
TARGETS = {  # values of --lora_targets; Dettmers et al. 2023, section 4, needed "all" to match fine-tuning
    "attention": ATTENTION_PROJECTIONS,
    "all": (*ATTENTION_PROJECTIONS, "w1", "w2", "w3"),
}
INIT_STD = 0.02


class AdaptedLayer(nn.Module, ABC):
    """A frozen linear layer and the parameters of its adapter; `engine/model/adapters.py` has further forms."""

    rank: int
    alpha: float

    def __init__(self, original_layer: nn.Linear):
        super().__init__()
        self.original_layer = original_layer.requires_grad_(False)

    @abstractmethod
    def merged(self) -> nn.Linear:
        """The original layer with the adapter in its weight; this object is then invalid."""


class LoRALayer(AdaptedLayer):
    """W·x + (alpha / rank)·B·A·x with W frozen (Hu et al. 2021, eq. 3).

    A (rank, in) is drawn from N(0, 0.02²) and B (out, rank) is zero, so that the initial output is W·x.
    Raises ValueError for a rank below 1 or above min(in, out).
    """

    def __init__(
        self, original_layer: nn.Linear, rank: int = 4, alpha: float = 1.0, generator: torch.Generator | None = None
    ):
        super().__init__(original_layer)
        check_rank(original_layer, rank)
        out_features, in_features = original_layer.weight.shape
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        dtype, device = original_layer.weight.dtype, original_layer.weight.device
        initial = torch.randn(rank, in_features, generator=generator, dtype=dtype) * INIT_STD  # on the CPU
        self.lora_A = nn.Parameter(initial.to(device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.original_layer(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Adds (alpha / rank)·B·A to the wrapped layer's W and returns that layer; this object is then invalid."""
        self.original_layer.weight += self.lora_B @ self.lora_A * self.scaling
        return self.original_layer


def check_rank(layer: nn.Linear, rank: int) -> None:
    """Raises ValueError unless 1 ≤ rank ≤ min(in, out) of the layer."""
    out_features, in_features = layer.weight.shape
    most = min(out_features, in_features)
    if not 1 <= rank <= most:
        raise ValueError(f"rank {rank}: a layer of {in_features} to {out_features} features takes 1 to {most}")


def adaptable_layers(
    model: nn.Module, targets: Sequence[str] = ATTENTION_PROJECTIONS
) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of every linear layer named in `targets`; ValueError if there are none."""
    layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if name in targets and isinstance(layer, nn.Linear)
    ]
    if not layers:
        raise ValueError(f"the model has no linear layer named {', '.join(targets)}")
    return layers


def apply_lora(
    model: nn.Module,
    rank: int = 4,
    alpha: float = 1.0,
    targets: Sequence[str] = ATTENTION_PROJECTIONS,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Freezes `model` and wraps every linear layer named in `targets` in a `LoRALayer`; returns the model.

    Raises ValueError if no layer has such a name, or the rank does not fit one.
    """
    layers = adaptable_layers(model, targets)
    model.requires_grad_(False)
    for parent, name, layer in layers:
        setattr(parent, name, LoRALayer(layer, rank, alpha, generator))
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, AdaptedLayer]]:
    """(parent, name, layer) of every adapted layer."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, AdaptedLayer):
                yield parent, name, layer


def count_lora_parameters(model: nn.Module) -> tuple[int, int, float]:
    """(size of all factors, size of all parameters, the first as a percentage of the second)."""
    factors = sum(parameter.numel() for parameter in get_lora_optimizer_params(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    return factors, total, 100.0 * factors / max(1, total)


def get_lora_optimizer_params(model: nn.Module) -> list[nn.Parameter]:
    """The factors A and B of all adapted layers, or the parameters that another adapter has instead."""
    return [parameter for _, _, layer in lora_layers(model) for parameter in layer.parameters(recurse=False)]


def merge_lora_weights(model: nn.Module) -> nn.Module:
    """Replaces every adapted layer with a plain linear layer of the merged weight; returns the model."""
    for parent, name, layer in lora_layers(model):
        setattr(parent, name, layer.merged())
    return model
