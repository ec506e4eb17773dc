"""The training step of tiny adders as C++, compiled for one shape; `bench.addition` compares it with torch's step.

An adder of a few hundred parameters has no product worth a matrix kernel; what counts is that every loop is unrolled
and that nothing leaves the processor's first caches. `native_step.cpp` does that for the course's configuration on a
CPU; anything else (RMSNorm, a GPU, no C++ compiler) keeps the torch path.

    python addition_run.py train --seeds 6
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from engine.train.muon import COEFFICIENTS
from tasks.addition.batched_model import POSITIONS, SideBySide

SOURCE = Path(__file__).with_name("native_step.cpp")
# -ffast-math would also link code that flushes denormals in the whole process; these are the parts that vectorise
MATH = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-ffinite-math-only")
FLAGS = ("-O3", "-march=native", *MATH, "-freciprocal-math", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
LARGEST = 64  # features up to which unrolled loops stay small
PART = 256  # problems of a batch that one thread sums, whatever the number of threads


def compiler() -> str | None:
    """The C++ compiler: the environment's CXX, or g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def supported(config: LlamaConfig, device: torch.device) -> bool:
    """Whether the C++ step computes this configuration here."""
    kinds = (config.norm_type, config.norm_position, config.ffn_type, config.position_embedding_type)
    plain = config.plain_attention and kinds == ("layernorm", "pre", "swiglu", "rotary")
    small = max(config.dim, config.ffn_dim, config.n_heads * config.head_dim) <= LARGEST
    usual = plain and small and config.tie_embeddings and config.causal and not config.dropout
    built = compiler() is not None and SOURCE.is_file()
    return device.type == "cpu" and usual and built and config.vocab_size == 13


def tensor_names(config: LlamaConfig) -> list[str]:
    """The parameters in the order in which `adder_setup` takes their offsets."""
    names = ["tok_embeddings.weight"]
    for layer in range(config.n_layers):
        parts = ["attention_norm.weight", "attention_norm.bias"]
        parts += [f"attention.compute_{part}.weight" for part in ("query", "key", "value", "output")]
        parts += ["ffn_norm.weight", "ffn_norm.bias", *(f"feed_forward.w{index}.weight" for index in (1, 2, 3))]
        names += [f"layers.{layer}.{part}" for part in parts]
    return [*names, "norm.weight", "norm.bias"]


class NativeStep:
    """The compiled step of one configuration. Raises RuntimeError where it cannot be compiled or loaded."""

    def __init__(self, model: SideBySide):
        config = model.config
        shape = {
            "DIM": config.dim, "LAYERS": config.n_layers, "HEADS": config.n_heads, "KVHEADS": config.n_kv_heads,
            "HEADDIM": config.head_dim, "FFN": config.ffn_dim,
        }  # fmt: skip
        self.library = _built([f"-D{name}={value}" for name, value in shape.items()])
        offsets, size = {}, 0
        for name, dims in parameter_shapes(config).items():
            offsets[name], size = size, size + math.prod(dims)
        order = torch.tensor([offsets[name] for name in tensor_names(config)], dtype=torch.int32)
        tables = [table[:, :, 0].T.contiguous().float() for table in (model.rope_cos, model.rope_sin)]
        eps = ctypes.c_float(config.layer_norm_eps)
        built_for = self.library.adder_setup(_pointer(order), *map(_pointer, tables), eps)
        if built_for != size or len(tables[0]) != POSITIONS:
            raise RuntimeError("the C++ step was compiled for another number of parameters")
        self.size = size
        self.coefficients = torch.tensor(COEFFICIENTS)
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(self.threads)  # the library releases the GIL

    def run(
        self, flat: Tensor, a: Tensor, b: Tensor, weights: Tensor, margins: Tensor | None = None
    ) -> tuple[float, float]:
        """Weighted sums of losses and right answers of one model, flat (parameters,), on problems a + b, each (n,).

        Fills `margins` (n,), float32, if they are given.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        tensors = flat.detach(), a.long(), b.long(), weights.float()
        tensors = [tensor.contiguous() for tensor in tensors]
        self.library.adder_step(*map(_pointer, tensors), ctypes.c_int(len(a)), _pointer(sums), None, _pointer(margins))
        return tuple(sums.tolist())

    def losses(self, model: SideBySide, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        """As `workload.summed_losses`: (seeds,), with the seeds' gradients."""
        return _Losses.apply(self, a, b, weights, *model.seeds)

    def measured(self, model: SideBySide, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `workload.measured`: summed losses and right answers, each (seeds,)."""
        sums = self.pool.map(lambda seed: self.run(seed, a, b, weights), model.seeds)
        losses, right = torch.tensor(list(sums), dtype=torch.float64).T
        return losses, right

    def margins(self, model: SideBySide, a: Tensor, b: Tensor) -> Tensor:
        """As `workload.smallest_margins`, of the first seed: (batch,)."""
        margins = torch.empty(len(a))
        parts = zip(*(row.chunk(self.threads) for row in (a, b, torch.ones(len(a)), margins)), strict=True)
        list(self.pool.map(lambda part: self.run(model.seeds[0], *part[:3], margins=part[3]), parts))
        return margins

    def gradients(self, models: Sequence[Tensor], batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Weighted losses (models,), float64, and gradients (models, P) of flat parameters (P,) each.

        A batch is a and b, (n,) int64, and weights (n,), float32. Threads share the models and the parts of a batch
        longer than `PART`; the sums are the same for any number of threads.
        """
        arguments, gradients, losses = self._arguments(models, len(models), batch)
        self.library.adder_gradients(arguments[0], ctypes.c_int(1), *arguments[1:])
        return losses, gradients[:, 0]

    def updates(self, models: Sequence[tuple[Tensor, ...]], batch: tuple[Tensor, ...], rates: Tensor) -> list[float]:
        """One update of every model with Muon; returns their weighted losses.

        A model is its parameters, AdamW's two moments and Muon's momentum, each (P,); the batch is as in `gradients`.
        `move` in the C++ file lists the rates.
        """
        arguments, _, losses = self._arguments(list(itertools.chain(*models)), len(models), batch)
        self.library.adder_updates(*arguments, _pointer(rates), _pointer(self.coefficients))
        return losses.tolist()

    def _arguments(self, tensors: Sequence[Tensor], models: int, batch: tuple[Tensor, ...]) -> tuple:
        """What both functions of several models take, and the gradients and losses that they fill."""
        n, losses = len(batch[0]), torch.empty(models, dtype=torch.float64)
        gradients = torch.empty(models, -(-n // PART), self.size)
        addresses = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        numbers = [ctypes.c_int(number) for number in (n, PART, self.threads)]
        filled = _pointer(gradients), _pointer(losses)
        return [addresses, ctypes.c_int(models), *map(_pointer, batch), *numbers, *filled], gradients, losses


class _Losses(torch.autograd.Function):
    """Losses whose gradients are computed with them."""

    @staticmethod
    def forward(ctx, native: NativeStep, a: Tensor, b: Tensor, weights: Tensor, *seeds: Tensor) -> Tensor:
        batch = a.long().contiguous(), b.long().contiguous(), weights.float().contiguous()
        losses, gradients = native.gradients([seed.detach() for seed in seeds], batch)
        ctx.gradients = list(gradients)
        return losses.float()

    @staticmethod
    def backward(ctx, outer: Tensor):
        scaled = [row * factor for row, factor in zip(ctx.gradients, outer.tolist(), strict=True)]
        return None, None, None, None, *scaled


def _built(defines: list[str]) -> ctypes.CDLL:
    """Compiles the source into a file of its own, so that two shapes never share one library."""
    folder = Path(tempfile.mkdtemp(prefix="adder-"))
    try:
        target = folder / "step.so"
        command = [compiler() or "g++", *FLAGS, *defines, "-o", str(target), str(SOURCE)]
        for threads in (["-fopenmp"], []):  # a compiler without OpenMP ignores its pragmas
            done = subprocess.run([*command, *threads], capture_output=True, text=True, check=False)
            if not done.returncode:
                break
        else:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[:200]}")
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise RuntimeError(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
