"""Low-rank adaptation (Hu et al. 2021): frozen linear layers with a trained product of two thin matrices beside them.

    python run_llama.py --option lora --lr 2e-3 --train data/reviews-train.txt --dev data/reviews-dev.txt \\
        --test data/reviews-test.txt --label-names data/reviews-label-mapping.json \\
        --dev_out reviews-dev-lora-output.txt --test_out reviews-test-lora-output.txt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_PROJECTIONS = ("compute_query", "compute_key", "compute_value", "compute_output")
TARGETS = {  # what --lora_targets names; Dettmers et al. 2023, section 4, needed all to match fine-tuning
    "attention": ATTENTION_PROJECTIONS,
    "all": (*ATTENTION_PROJECTIONS, "w1", "w2", "w3"),
}
INIT_STD = 0.02


class LoRALayer(nn.Module):
    """W·x + (alpha / rank)·B·A·x with W frozen (Hu et al. 2021, eq. 3).

    A (rank, in) is drawn from N(0, 0.02²) and B (out, rank) is zero, so the layer begins as the one it wraps.
    Raises ValueError for a rank below 1 or above what the layer's own shape allows.
    """

    def __init__(
        self, original_layer: nn.Linear, rank: int = 4, alpha: float = 1.0, generator: torch.Generator | None = None
    ):
        super().__init__()
        out_features, in_features = original_layer.weight.shape
        if not 1 <= rank <= min(out_features, in_features):
            raise ValueError(f"rank {rank}: a layer of {in_features} to {out_features} features takes 1 to "
                             f"{min(out_features, in_features)}")  # fmt: skip
        self.original_layer = original_layer.requires_grad_(False)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        like = {"dtype": original_layer.weight.dtype}
        drawn = torch.randn(rank, in_features, generator=generator, **like) * INIT_STD  # on the CPU: one seed, one draw
        self.lora_A = nn.Parameter(drawn.to(original_layer.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, device=original_layer.weight.device, **like))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.original_layer(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The wrapped layer with W + (alpha / rank)·B·A in place of W; this object must not be used afterwards."""
        self.original_layer.weight += self.lora_B @ self.lora_A * self.scaling
        return self.original_layer


def apply_lora(
    model: nn.Module,
    rank: int = 4,
    alpha: float = 1.0,
    targets: Sequence[str] = ATTENTION_PROJECTIONS,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Freezes `model` and puts a `LoRALayer` around every linear layer named in `targets`; returns the model.

    Raises ValueError where no layer has such a name, or the rank does not fit one.
    """
    found = [
        (parent, name, layer)
        for parent in list(model.modules())
        for name, layer in parent.named_children()
        if name in targets and isinstance(layer, nn.Linear)
    ]
    if not found:
        raise ValueError(f"the model has no linear layer named {', '.join(targets)}")
    model.requires_grad_(False)
    for parent, name, layer in found:
        setattr(parent, name, LoRALayer(layer, rank, alpha, generator))
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, LoRALayer]]:
    """Every adapted layer, with its parent and its name there."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, LoRALayer):
                yield parent, name, layer


def count_lora_parameters(model: nn.Module) -> tuple[int, int, float]:
    """(values in the factors, values in all parameters, the former in per cent of the latter)."""
    factors = sum(parameter.numel() for parameter in get_lora_optimizer_params(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    return factors, total, 100.0 * factors / max(1, total)


def get_lora_optimizer_params(model: nn.Module) -> list[nn.Parameter]:
    """The factors A and B of every adapted layer, and nothing else."""
    return [parameter for _, _, layer in lora_layers(model) for parameter in (layer.lora_A, layer.lora_B)]


def merge_lora_weights(model: nn.Module) -> nn.Module:
    """Puts a plain linear layer with the merged weight in place of every adapted one; returns the model."""
    for parent, name, layer in lora_layers(model):
        setattr(parent, name, layer.merged())
    return model
