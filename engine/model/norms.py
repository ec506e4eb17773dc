"""RMSNorm, the norm that Llama was trained with; the course's LayerNorm is in `llama.py`.

    python sanity_check.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich 2019), in float32 or wider, with a gain and no bias."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x: Tensor) -> Tensor:
        """x / √(mean(x²) + eps) · weight, the definition; the oracle of `forward`."""
        inverse_rms = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * inverse_rms * self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., dim); returns x's dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        fused = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return (_RMSNorm.apply(wide, self.weight, self.eps) if fused else self._norm(wide)).type_as(x)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with a hand-written gradient: half the memory passes, and only x and one number per row are stored."""

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
