"""Gradient checkpointing by hand (Chen et al. 2016): layers keep their input alone and run again in the backward pass.

Twice the forward arithmetic of the layers buys the memory of everything between their inputs and outputs. The second
run draws the same dropout and works in the same precision, so the gradients are those of a plain run, to the bit.

    python run_llama.py --option pretrain --gradient_checkpointing --corpus TEXT --tokenizer FILE --save_dir runs/mine
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class _Recomputed(torch.autograd.Function):
    """run(x), whose inside is computed again when its gradient is asked for.

    The parameters are inputs of their own, so that their gradients go the way of all others: they accumulate, they
    can be asked for by `torch.autograd.grad`, and hooks on them (as of several processes) fire when they should.
    """

    @staticmethod
    def forward(ctx, run: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.device = run, x.device
        ctx.random = random_state(x.device)
        ctx.autocast = {
            "device_type": x.device.type,
            "dtype": torch.get_autocast_dtype(x.device.type),
            "enabled": torch.is_autocast_enabled(x.device.type),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.save_for_backward(x, *parameters)
        return run(x)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        saved, *parameters = ctx.saved_tensors
        x = saved.detach().requires_grad_(ctx.needs_input_grad[1])
        before = random_state(ctx.device)
        set_random_state(ctx.device, ctx.random)
        try:
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                output = ctx.run(x)
        finally:
            set_random_state(ctx.device, before)
        wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, grad_output, allow_unused=True))
        return None, *(next(found) if tensor.requires_grad else None for tensor in (x, *parameters))


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

        def run(x: Tensor, part: Sequence[nn.Module] = part) -> Tensor:
            for layer in part:
                x = layer(x, *constants)
            return x

        parameters = [p for layer in part for p in layer.parameters() if p.requires_grad]
        x = _Recomputed.apply(run, x, *parameters)
    return x
