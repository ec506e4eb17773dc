"""Decode steps: one token per row, given the tokens that a cache holds. `choose_step` picks the fastest for a model.

    python run_llama.py --option generate --quantize int8
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.decode.cpu_step import CpuStep, supports
from engine.model.kv_cache import KVCache

DecodeStep = Callable[[Tensor, KVCache, Tensor | None], Tensor]  # tokens (batch, 1), cache, padding mask -> logits


def plain_step(model) -> DecodeStep:
    """The model itself as a decode step: logits (batch, 1, vocab_size) after tokens (batch, 1)."""

    @torch.inference_mode()
    def step(tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None) -> Tensor:
        return model(tokens, cache=cache, padding_mask=padding_mask)[0]

    return step


def choose_step(model, dtype: str = "float32") -> DecodeStep:
    """The fused CPU step with weights of this precision where it supports the model, else the plain step.

    The model may only be read afterwards: its weights are laid out anew, and packed ones replace the originals.
    Raises ValueError where the plain step would have to serve a precision that it does not have.
    """
    if supports(model.config) and model.device.type == "cpu":
        return CpuStep(model, dtype, replace=True)
    if dtype != "float32":
        needs = "a CPU and a Llama with rotary positions, SwiGLU and one softmax per head, without a gate"
        raise ValueError(f"{dtype} weights for generation need {needs}")
    return plain_step(model)
