"""Hand-written gradient checkpointing (Chen et al. 2016): only layer inputs are stored, layers are recomputed.

The layers run again in the backward pass: twice the forward arithmetic, without the memory of their activations. The
second run uses the same dropout and precision, so the gradients equal those of a plain run exactly.

    python run_llama.py --option pretrain --gradient_checkpointing --corpus TEXT --tokenizer FILE --save_dir runs/mine
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Recomputed(torch.autograd.Function):
    """Runs x through some layers and recomputes them in the backward pass.

    The trained parameters are explicit inputs, so that their gradients behave as usual: they accumulate,
    `torch.autograd.grad` returns them, and hooks fire once. The second run therefore uses detached handles of them.
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
    """The state of the generators that dropout on `device` uses."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Restores a state returned by `random_state`."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def run_recomputed(layers: Sequence[nn.Module], x: Tensor, segment: int, *constants) -> Tensor:
    """Runs x through all layers, called as layer(x, *constants); only the input of each `segment` of layers is stored.

    `constants` (rotation, mask) have no gradient. The result and all gradients equal those of the plain loop.
    """
    for start in range(0, len(layers), segment):
        group = layers[start : start + segment]
        parameters = [parameter for layer in group for parameter in _trained(layer).values()]
        x = _Recomputed.apply(group, constants, x, *parameters)
    return x
