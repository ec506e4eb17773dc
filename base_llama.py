"""What every model here shares: its configuration, how fresh weights are drawn, and where they live.

`llama.Llama` derives from `LlamaPreTrainedModel`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from config import LlamaConfig

RESIDUAL_PROJECTIONS = ("compute_output.weight", "w2.weight")


class Undrawn(TorchFunctionMode):
    """Within it weights are left as they are where they would be drawn: for a model whose weights come from a file.

    On torch's meta device a draw from a normal distribution would import the compiler: a second, and 70 MB.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Calls anything but the draws that modules make of their own accord."""
        if func in (nn.init.normal_, Tensor.normal_, nn.init.kaiming_uniform_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class LlamaPreTrainedModel(nn.Module):
    """Base class: holds the config and initialises weights as GPT-2 does (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config

    def init_weights(self, std: float = 0.02) -> None:
        """Draws matrices from N(0, std²); the projections that feed the residual stream from N(0, std²/(2·layers)).

        The sum of 2·n_layers residual branches then has the variance of one. Norms keep their ones and zeros.
        """
        residual_std = std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith(RESIDUAL_PROJECTIONS) else std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.parameters()).dtype

    def parameter_count(self) -> int:
        """Number of parameters, a tied one counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
