"""The norms of the residual stream: LayerNorm, as the course asks, and RMSNorm, as Llama has.

    python sanity_check.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) over the last dimension, in float32 at least, with gain and bias."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def _norm(self, x: Tensor) -> Tensor:
        """(x − mean) / √(variance + eps), variance biased, spelled out: the oracle of `forward`."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) * torch.rsqrt(variance + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., dim) by torch's fused kernel; returns x's dtype."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), weight.shape, weight, bias, self.eps).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich 2019), in float32 at least, with gain alone."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x: Tensor) -> Tensor:
        """x / √(mean(x²) + eps) · weight, spelled out: the oracle of `forward`."""
        inverse_rms = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * inverse_rms * self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., dim); returns x's dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        by_hand = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return (_RMSNorm.apply(wide, self.weight, self.eps) if by_hand else self._norm(wide)).type_as(x)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient by hand: half the passes over memory, and nothing kept but x and a number a row."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse_rms = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse_rms)
        return (x * inverse_rms).mul_(weight)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        """With n = x / rms and g the gradient: dx = (g·w − n · mean(g·w·n)) / rms, dw = Σ g·n."""
        x, weight, inverse_rms = ctx.saved_tensors
        normed = x * inverse_rms
        product = grad_output * normed
        weight_grad = product.flatten(0, -2).sum(dim=0)
        mean = (product @ weight).unsqueeze(-1) / x.shape[-1]
        x_grad = torch.mul(grad_output, weight, out=product).sub_(normed.mul_(mean)).mul_(inverse_rms)
        return x_grad, weight_grad, None
