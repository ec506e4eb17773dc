"""Chunked next-token cross-entropy: the logits of a whole batch never exist at once.

The logits of 8,192 tokens over 4,096 pieces take 134 MB, written and read several times; a chunk of them stays in the
CPU's cache. `plain_cross_entropy` is the oracle.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
CHUNK = 512
GPU_CHUNK = 8192  # a GPU needs large products


def perplexity(loss: float) -> float:
    """exp(loss) of a loss in nats per token; infinity where float64 cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of −log softmax(hidden · weightᵀ)[target]; see `cross_entropy` for the arguments."""
    return F.cross_entropy((hidden @ weight.T).float(), targets, ignore_index=IGNORED, reduction="sum")


def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target (n,), from hidden (n, dim) and weight (vocab, dim); no gradient.

    It is 0 for an ignored target.
    """
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    nll = [F.cross_entropy((h @ weight.T).float(), t, ignore_index=IGNORED, reduction="none") for h, t in chunks]
    return torch.cat(nll)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, chunk by chunk, and scales them in the backward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        chunk = CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            target = targets[rows]
            counts = target != IGNORED
            index = target.clamp(min=0)[:, None]
            log_probs = (hidden[rows] @ weight.T).float().log_softmax(dim=-1)  # (chunk, vocab)
            total -= (log_probs.gather(1, index)[:, 0] * counts).sum()
            residual = log_probs.exp_()  # the gradient with respect to the logits: softmax − one-hot
            residual.scatter_add_(1, index, torch.full_like(index, -1.0, dtype=residual.dtype))
            residual *= counts[:, None]
            hidden_grad[rows] = residual @ weight
            weight_grad += residual.T @ hidden[rows]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad_output, (weight_grad * grad_output).to(ctx.weight_dtype), None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats of targets (n,), from hidden (n, dim) and the output weight (vocab, dim).

    Targets equal to `IGNORED` do not count. Respects autocast.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets)
