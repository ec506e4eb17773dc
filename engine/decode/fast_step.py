"""Which way a loaded model takes single steps: on a CPU lean ones, guessed ahead where that pays; on a GPU captured.

    python run_llama.py --option generate --quantize int8
    python run_llama.py --option generate --use_gpu --dtype bfloat16
"""

from __future__ import annotations

import torch

from engine.decode.cpu_step import LeanStep, fits
from engine.decode.cuda_step import StaticStep
from engine.decode.speculative import Drafted


def make_lean(model, kind: str = "float32") -> None:
    """Prepares the fastest step with weights of this kind for a model that is only read; else leaves it as it is.

    On a GPU bfloat16 is that of all weights. Raises ValueError where another kind than float32 cannot be had.
    """
    if fits(model.config) and model.device.type == "cpu":
        step = LeanStep(model, kind, replaces=True)
        model.lean_step = step if step.screen is None else Drafted(step)
    elif fits(model.config) and model.device.type == "cuda" and kind != "int8":
        if kind == "bfloat16":
            round_weights(model)
        model.lean_step = StaticStep(model)
    elif kind != "float32":
        where = "on a CPU" if kind == "int8" else "on a CPU or a CUDA GPU"
        raise ValueError(f"{kind} products are for Llamas with rotary positions and SwiGLU, {where}")


def round_weights(model) -> None:
    """Rounds the parameters to bfloat16; the tables of positions stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
