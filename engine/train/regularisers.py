"""Regularisers of fine-tuning, each a small function of log-probabilities or parameters: mixout, R-Drop, SMART.

    python run_llama.py --option finetune --help        (--mixout, --r_drop, --smart, --proximal)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

Forward = Callable[[], Tensor]  # computes log-probabilities (batch, labels) anew

SMART_NOISE, SMART_RADIUS, SMART_RATE = 1e-5, 1e-5, 1e-3  # σ, ε and η of Jiang et al. 2020, section 4.1


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p), summed over the rows of two tensors of log-probabilities (batch, labels)."""
    return ((first.exp() - second.exp()) * (first - second)).sum()


def r_drop(log_probs: Tensor, forward: Forward) -> Tensor:
    """½·(KL(p‖q) + KL(q‖p)) between two passes with different dropout (Liang et al. 2021, eq. 2)."""
    return 0.5 * symmetric_kl(log_probs, forward())


@contextmanager
def shifted_output(module: nn.Module, shift: Tensor) -> Iterator[None]:
    """Adds `shift` to the module's output while the block runs."""

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output + shift

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def smoothness(embedding: nn.Module, shape: tuple[int, ...], log_probs: Tensor, forward: Forward) -> Tensor:
    """SMART's smoothness penalty: symmetric KL between f(x) and f(x̃), x̃ the worst embedding near x.

    Jiang et al. 2020, eq. 1 and algorithm 1 with one ascent step: δ ~ N(0, σ²), then δ ← clip(δ + η·g / ‖g‖∞, ±ε) with
    g the gradient of the penalty. `embedding` is the module whose output, of `shape` (batch, seqlen, dim), is shifted.
    """
    weight = next(embedding.parameters())
    noise = torch.randn(shape, device=weight.device, dtype=weight.dtype) * SMART_NOISE
    noise.requires_grad_(True)
    with torch.enable_grad(), shifted_output(embedding, noise):
        (gradient,) = torch.autograd.grad(symmetric_kl(forward(), log_probs.detach()), noise)
    step = SMART_RATE * gradient / gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
    worst = (noise.detach() + step).clamp(-SMART_RADIUS, SMART_RADIUS)
    with shifted_output(embedding, worst):
        return symmetric_kl(forward(), log_probs)


def proximal_divergence(model: nn.Module, anchor: Mapping[str, Tensor], log_probs: Tensor, inputs: Tensor) -> Tensor:
    """SMART's Bregman proximal point: symmetric KL between f(x; θ) and f(x; θ̃), summed over the batch.

    Jiang et al. 2020, section 3.2 and algorithm 1. `anchor` holds θ̃ of the trained parameters by name, an average of
    earlier weights; f(x; θ̃) is computed without dropout or gradient. The model is left in training mode.
    """
    model.eval()
    with torch.no_grad():
        anchored = functional_call(model, dict(anchor), (inputs,))
    model.train()
    return symmetric_kl(log_probs, anchored)


def mixed_parameters(model: nn.Module, pretrained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mixout (Lee et al. 2020, eq. 5): each weight is the pretrained one with probability `share`, rescaled.

    w' = ((1 − M)·w + M·u − p·u) / (1 − p) with M ~ Bernoulli(p), whose expectation is w. Only matrices in `pretrained`
    are mixed; the others are returned as they are. A share of 0 gives w exactly.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if share == 0.0:
        return parameters
    for name, origin in pretrained.items():
        weight = parameters[name]
        drop = torch.rand_like(weight) < share
        parameters[name] = (torch.where(drop, origin, weight) - share * origin) / (1.0 - share)
    return parameters


def matrices_of(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Copies of the trained matrices whose names start with `prefix`, by name: what mixout mixes in."""
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if name.startswith(prefix) and weight.requires_grad and weight.dim() >= 2
    }


def forward_mixed(model: nn.Module, pretrained: Mapping[str, Tensor], share: float, inputs: Tensor) -> Tensor:
    """The model's output with `mixed_parameters`."""
    return functional_call(model, mixed_parameters(model, pretrained, share), (inputs,))
