"""Matrix products with constant weights, laid out once for single-row decoding: float32, bfloat16 and int8.

Each maps x (rows, in) to (rows, out): `write` stores the product in a buffer, `add` accumulates into one.

    python -m bench.fast_paths
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_PER_STEP = 1024  # rows quantized at a time, so that no second copy of a large weight exists
LARGEST_BFLOAT16 = 65_280.0  # the largest bfloat16 that float16 can hold
ROWS_PER_PACK = 8192  # rows packed together in float16
TINY = 1e-12  # smallest scale, for rows of zeros


class Dense:
    """x · weight for a weight (in, out): the transposed layout is the fastest for a single row."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (rows, out)."""
        return x @ self.weight

    def write(self, buffer: Tensor, x: Tensor) -> None:
        """buffer = x · weight."""
        torch.mm(x, self.weight, out=buffer)

    def add(self, buffer: Tensor, x: Tensor) -> None:
        """buffer += x · weight."""
        buffer.addmm_(x, self.weight)


class SplitDense(Dense):
    """`Dense` with the sum over `in` split into one part per thread, for weights that do not fit into the cache.

    A single row is bound by the memory. MKL's product of one row gains little from a second thread; one product of a
    batch of parts lets every thread read a stretch of the weight. `bench.real_model` measures it.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (rows, out)."""
        return self._partial_sums(x).sum(dim=0)

    def write(self, buffer: Tensor, x: Tensor) -> None:
        """buffer = x · weight."""
        self.add(buffer.zero_(), x)

    def add(self, buffer: Tensor, x: Tensor) -> None:
        """buffer += x · weight."""
        for part in self._partial_sums(x):  # two small additions are faster than `sum`
            buffer.add_(part)

    def _partial_sums(self, x: Tensor) -> Tensor:
        """The products of x (rows, in) with each part of the weight: (parts, rows, out)."""
        rows, size = x.shape
        parts = math.gcd(torch.get_num_threads(), size)
        split = x.view(rows, parts, -1).transpose(0, 1)  # (rows, in) -> (parts, rows, in / parts)
        return torch.bmm(split, self.weight.view(parts, size // parts, -1))


class Packed:
    """x · weightᵀ by a kernel that packed weight (out, in) in its own layout."""

    def __init__(self, product: Callable[[Tensor], Tensor]):
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (rows, out)."""
        return self.product(x)

    def write(self, buffer: Tensor, x: Tensor) -> None:
        """buffer = x · weightᵀ."""
        buffer.copy_(self.product(x))

    def add(self, buffer: Tensor, x: Tensor) -> None:
        """buffer += x · weightᵀ."""
        buffer.add_(self.product(x))


class PackedLinear(nn.Module):
    """A packed product as a layer of the plain model, for inputs of any shape (..., in)."""

    def __init__(self, product: Packed):
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def bfloat16(weight: Tensor) -> Packed:
    """Weight (out, in) rounded to bfloat16; activations and sums stay in float32.

    On x86 the rounded weights are stored in float16, which has the faster kernel and holds every bfloat16 between 6e-5
    and 65,280 exactly. Elsewhere, and for larger weights, torch's own bfloat16 product is used.
    """
    rounded = weight.bfloat16()
    x86 = torch.backends.quantized.engine in ("x86", "fbgemm")
    if not x86 or weight.abs().max() > LARGEST_BFLOAT16:
        return Packed(lambda x: F.linear(x.bfloat16(), rounded).float())
    product = torch.ops.quantized.linear_dynamic_fp16
    packs = [torch.ops.quantized.linear_prepack_fp16(part.float(), None) for part in rounded.split(ROWS_PER_PACK)]
    if len(packs) == 1:
        return Packed(lambda x: product(x, packs[0]))
    return Packed(lambda x: torch.cat([product(x, pack) for pack in packs], dim=1))


def int8(weight: Tensor) -> Packed:
    """Weight (out, in) in int8 with one scale per output; activations in 8 bits (7 without VNNI), one scale per row.

    The kernel takes one scale per call, from the extremes of its input. So every row is divided by its largest
    magnitude, and two constant columns, 1 and −1 with zero weights, fix the extremes: no row depends on another.
    """
    inner = weight.shape[1]
    packed = torch.ops.quantized.linear_prepack(_quantized(weight), None)
    reduce_range, buffers = saturates(), {}

    def product(x: Tensor) -> Tensor:
        buffer = buffers.get(len(x))
        if buffer is None:
            buffers.clear()
            buffer = buffers[len(x)] = torch.ones(len(x), inner + 2)
            buffer[:, -1] = -1.0
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=1, keepdim=True).clamp_(min=TINY)
        torch.div(x, largest, out=buffer[:, :inner])
        return torch.ops.quantized.linear_dynamic(buffer, packed, reduce_range).mul_(largest)

    return Packed(product)


def _quantized(weight: Tensor) -> Tensor:
    """The quantized tensor (out, in + 2), symmetric, with one scale per row and two columns of zeros."""
    scales = (torch.linalg.vector_norm(weight, ord=torch.inf, dim=1) / 127.0).clamp(min=TINY)
    whole_numbers = torch.zeros(len(weight), weight.shape[1] + 2, dtype=torch.int8)
    for start in range(0, len(weight), ROWS_PER_STEP):
        rows = slice(start, start + ROWS_PER_STEP)
        whole_numbers[rows, :-2] = (weight[rows].float() / scales[rows, None]).round_()
    with warnings.catch_warnings():  # torch intends to remove such tensors, but their kernels are its fastest
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        return torch._make_per_channel_quantized_tensor(whole_numbers, scales.double(), zeros, 0)


@cache
def saturates() -> bool:
    """True if the int8 kernel saturates on this CPU (no VNNI), so that activations must use 7 bits."""
    packed = torch.ops.quantized.linear_prepack(_quantized(torch.ones(16, 64)), None)
    x = torch.ones(1, 66)
    return bool((torch.ops.quantized.linear_dynamic(x, packed, False) - 64.0).abs().max() > 1.0)
