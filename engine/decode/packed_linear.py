"""Matrix products whose weights never change, laid out once for the fewest bytes a row: float32, bfloat16 and int8.

Each maps x (rows, in) to (rows, out): `into` writes to a given place, `onto` adds to it. `Screened` finds the largest
of the products without computing all of them.

    python -m bench.generate
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 1024  # rows that are worked on at a time, so that no second copy of a large weight is ever there
LARGEST = 65_280.0  # the largest bfloat16 that float16 holds
LARGE = 8192  # rows that are packed at a time where each packing costs a call of its own


class Dense:
    """x · weight with weight (in, out) as it is: transposed, which a product with a single row reads fastest."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, out), new."""
        return x @ self.weight

    def into(self, place: Tensor, x: Tensor) -> None:
        """place = x · weight."""
        torch.mm(x, self.weight, out=place)

    def onto(self, place: Tensor, x: Tensor) -> None:
        """place += x · weight."""
        place.addmm_(x, self.weight)


class Upright:
    """x · weightᵀ with weight (out, in) as it is, in which each output, and each embedding, is read in one piece."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, out), new; a single row by the matrix-vector product, which reads twice as fast as `F.linear`."""
        return self.weight.mv(x[0])[None] if len(x) == 1 else F.linear(x, self.weight)


class Narrow(Dense):
    """`Dense` with few outputs: for one row on one thread it is an embedding bag, every row of the weight times x's.

    That kernel reads the weight from its first byte to its last, which memory likes almost twice as well as the
    matrix product's way of reading one whose rows are short.
    """

    WIDEST = 640  # outputs that the kernel keeps in registers

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.every, self.start = torch.arange(len(weight), dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def onto(self, place: Tensor, x: Tensor) -> None:
        """place += x · weight."""
        if len(x) > 1 or torch.get_num_threads() > 1:
            place.addmm_(x, self.weight)
        else:  # no scaling by frequency, mode 0: the sum, no sparse gradients
            place.add_(torch.embedding_bag(self.weight, self.every, self.start, False, 0, False, x[0])[0])


class Packed:
    """x · weightᵀ by a kernel that has packed weight (out, in) in its own way."""

    def __init__(self, product: Callable[[Tensor], Tensor]):
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, out), new."""
        return self.product(x)

    def into(self, place: Tensor, x: Tensor) -> None:
        """place = x · weightᵀ."""
        place.copy_(self.product(x))

    def onto(self, place: Tensor, x: Tensor) -> None:
        """place += x · weightᵀ."""
        place.add_(self.product(x))


def bfloat16(weight: Tensor) -> Packed:
    """Weight (out, in) rounded to bfloat16; x and the sums in float32.

    On x86 the rounded weights are kept in float16, whose kernel is the faster: it holds a bfloat16 of magnitude
    6e-5 to 65,280 exactly, and a smaller one to 3e-8. Elsewhere, and beyond that range, the product is torch's own.
    """
    if torch.backends.quantized.engine in ("x86", "fbgemm") and -weight.min() <= LARGEST >= weight.max():
        product = torch.ops.quantized.linear_dynamic_fp16
        parts = [torch.ops.quantized.linear_prepack_fp16(p.bfloat16().float(), None) for p in weight.split(LARGE)]
        if len(parts) == 1:
            return Packed(lambda x: product(x, parts[0]))
        return Packed(lambda x: torch.cat([product(x, part) for part in parts], dim=1))
    rounded = weight.bfloat16()
    return Packed(lambda x: F.linear(x.bfloat16(), rounded).float())


def int8(weight: Tensor) -> Packed:
    """Weight (out, in) in int8 with a scale for each output; x in 8 bits as it comes, with one scale a call."""
    packed, seven_bits = torch.ops.quantized.linear_prepack(_rounded(weight), None), saturates()
    return Packed(lambda x: torch.ops.quantized.linear_dynamic(x, packed, seven_bits))


def _scales(weight: Tensor) -> Tensor:
    """What 1 of each row's int8 stands for: (out,)."""
    return (torch.linalg.vector_norm(weight, ord=torch.inf, dim=1) / 127.0).clamp(min=1e-12)


def _rounded(weight: Tensor) -> Tensor:
    """The quantised tensor, symmetric, one scale a row."""
    scales, whole = _scales(weight), torch.empty(weight.shape, dtype=torch.int8)
    for some in range(0, len(weight), AT_ONCE):
        rows = slice(some, some + AT_ONCE)
        whole[rows] = (weight[rows].float() / scales[rows, None]).round_()
    with warnings.catch_warnings():  # torch means to drop such tensors; their kernels are its fastest
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        return torch._make_per_channel_quantized_tensor(whole, scales.double(), zeros, 0)


@cache
def saturates() -> bool:
    """Whether this processor's kernel overflows with 8 bits on both sides, so that x must have 7 (no VNNI)."""
    largest = _rounded(torch.ones(16, 64))
    packed = torch.ops.quantized.linear_prepack(largest, None)
    return bool((torch.ops.quantized.linear_dynamic(torch.ones(1, 64), packed, False) - 64.0).abs().max() > 1.0)


class Screened:
    """x · weightᵀ with weight (out, in) in float32, exact where a row's largest may stand and by int8 elsewhere.

    The largest of each row is therefore that of the whole product, at little more than the int8 bytes. With
    w = ŵ + Δw and x = x̂ + Δx, what int8 leaves out is w·x − ŵ·x̂ = Δw·x + ŵ·Δx, at most ‖Δw‖‖x‖ + ‖ŵ‖‖Δx‖
    (Cauchy-Schwarz): outputs that this could lift to the top are computed from the weights themselves.
    """

    SLACK = 1.001  # for the rounding of the bound itself
    MANY = 64  # one output in so many computed exactly: beyond that the whole product is no slower

    def __init__(self, weight: Tensor):
        self.screen, self.seven_bits = int8(weight), saturates()
        norms = []
        for part in weight.split(AT_ONCE):
            scales = _scales(part)[:, None]
            near = (part / scales).round_().mul_(scales)
            norms.append(torch.stack([(part - near).norm(dim=1), near.norm(dim=1)]))
        self.norms = torch.cat(norms, dim=1) * self.SLACK  # (2, out): ‖Δw‖, ‖ŵ‖

    def __call__(self, x: Tensor, whole: Upright) -> Tensor:
        """(rows, out), new; `whole` is the product itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            near = torch.quantize_per_tensor_dynamic(x, torch.quint8, self.seven_bits).dequantize()
        sizes = torch.stack([x.norm(dim=1), (x - near).norm(dim=1) + 1e-5 * x.norm(dim=1)], dim=1)
        found = self.screen(x)
        rows, places = self._close(found, sizes)
        if len(rows) * self.MANY > found.numel():
            return whole(x)
        found[rows, places] = (whole.weight[places] * x[rows]).sum(dim=1)
        return found

    def _close(self, found: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and places of the outputs that may be the largest: first by a bound for all, then by each one's own."""
        least = found.amax(dim=1) - 2.0 * (sizes @ self.norms.amax(dim=1))
        rows, places = torch.nonzero(found >= least[:, None], as_tuple=True)
        near, off = found[rows, places], (sizes[rows] * self.norms.T[places]).sum(dim=1)
        floor = near.new_full((len(found),), -torch.inf).scatter_reduce_(0, rows, near - off, "amax")
        kept = near + off >= floor[rows]
        return rows[kept], places[kept]
