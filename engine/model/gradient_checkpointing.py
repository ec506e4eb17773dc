"""Gradient checkpointing by hand (Chen et al. 2016): layers keep their input alone and run again in the backward pass.

Twice the forward arithmetic of the layers buys the memory of everything between their inputs and outputs. The second
run draws the same dropout and works in the same precision, so the gradients are those of a plain run, to the bit.

    python run_llama.py --option pretrain --gradient_checkpointing --corpus TEXT --tokenizer FILE --save_dir runs/mine
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Recomputed(torch.autograd.Function):
    """x through some layers, whose inside is computed again when the gradient is asked for.

    The trained parameters are inputs of their own, so that their gradients go the way of all others: they accumulate,
    they can be asked for by `torch.autograd.grad`, and hooks on them (as of several processes) fire when they should,
    once. The second run therefore works on copies of them (of the handles, not of the memory).
    """

    @staticmethod
    def forward(ctx, layers: Sequence[nn.Module], constants: tuple, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.layers, ctx.constants, ctx.device = layers, constants, x.device
        ctx.random = random_state(x.device)
        ctx.autocast = {
            "device_type": x.device.type,
            "dtype": torch.get_autocast_dtype(x.device.type),
            "enabled": torch.is_autocast_enabled(x.device.type),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.save_for_backward(x, *parameters)
        for layer in layers:
            x = layer(x, *constants)
        return x

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        saved, *parameters = (tensor.detach() for tensor in ctx.saved_tensors)
        x = output = saved.requires_grad_(ctx.needs_input_grad[2])
        leaves = iter([parameter.requires_grad_() for parameter in parameters])
        before = random_state(ctx.device)
        set_random_state(ctx.device, ctx.random)
        try:
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                for layer in ctx.layers:
                    copies = {name: next(leaves) for name in _trained(layer)}
                    output = functional_call(layer, copies, (output, *ctx.constants))
        finally:
            set_random_state(ctx.device, before)
        wanted = [x, *parameters] if x.requires_grad else parameters
        gradients = torch.autograd.grad(output, wanted, grad_output, allow_unused=True)
        return None, None, *(gradients if x.requires_grad else (None, *gradients))


def _trained(layer: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that dropout on `device` may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Goes back to what `random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def run_recomputed(layers: Sequence[nn.Module], x: Tensor, segment: int, *constants) -> Tensor:
    """x through all layers, each called as layer(x, *constants); so many as `segment` at a time keep their input alone.

    `constants` (rotation, mask) take no gradient. The result and all gradients are those of the plain loop.
    """
    for start in range(0, len(layers), segment):
        part = layers[start : start + segment]
        parameters = [parameter for layer in part for parameter in _trained(layer).values()]
        x = _Recomputed.apply(part, constants, x, *parameters)
    return x
