"""The base class of the model: its configuration, initialisation of weights, device and dtype.

`llama.Llama` derives from `LlamaPreTrainedModel`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from config import LlamaConfig

RESIDUAL_PROJECTIONS = ("compute_output.weight", "w2.weight")


class SkipInit(TorchFunctionMode):
    """Context manager that skips random initialisation (the weights are loaded next).

    On torch's meta device a draw from a normal distribution would import the compiler, which takes a second and 70 MB.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Calls every function except random initialisations."""
        if func in (nn.init.normal_, Tensor.normal_, nn.init.kaiming_uniform_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class LlamaPreTrainedModel(nn.Module):
    """Base class: holds the config and initialises weights as GPT-2 does (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config

    def init_weights(self, std: float = 0.02) -> None:
        """Draws matrices from N(0, std²), and the projections into the residual stream from N(0, std²/(2·n_layers)).

        The sum of the 2·n_layers residual branches then has the variance of one branch. Norms keep ones and zeros.
        """
        residual_std = std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith(RESIDUAL_PROJECTIONS) else std)

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.parameters()).dtype

    def parameter_count(self) -> int:
        """Number of parameters; a tied one counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
