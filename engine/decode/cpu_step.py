"""Fast single-token decode on a CPU: fused QKV and gate projections, preallocated buffers, optional bfloat16 or int8.

The plain path (`Llama.forward` with a cache) is the oracle.

    python run_llama.py --option generate --quantize int8
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import LlamaConfig
from engine.decode.packed_linear import Dense, Packed, PackedLinear, SplitDense, bfloat16, int8
from engine.model.kv_cache import KVCache

PACKERS = {"bfloat16": bfloat16, "int8": int8}
PRECISIONS = ("float32", *PACKERS)
LARGE = 16_000_000  # parameters beyond which the weights (64 MB in float32) do not stay in the processor's cache


def supports(config: LlamaConfig) -> bool:
    """True for rotary positions, SwiGLU and pre-norm, with LayerNorm or RMSNorm and perhaps a sliding window."""
    plain = dataclasses.replace(config, sliding_window=None).plain_attention and config.norm_position == "pre"
    return plain and config.position_embedding_type == "rotary" and config.ffn_type == "swiglu"


def fused_weight(linears: Sequence[nn.Linear]) -> Tensor:
    """The layers' weights side by side, (in, out1 + out2 + …); the layers become views of it, so nothing is copied."""
    fused = torch.cat([linear.weight.detach().T for linear in linears], dim=1).contiguous()
    for linear, weight in zip(linears, fused.split([linear.out_features for linear in linears], dim=1), strict=True):
        linear.weight = nn.Parameter(weight.T, requires_grad=False)
    return fused


def norm_function(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm in as few operations as possible: (rows, dim) -> (rows, dim)."""
    weight, eps = norm.weight.detach(), float(norm.eps)
    if hasattr(norm, "bias"):
        shape, bias = weight.shape, norm.bias.detach()
        return lambda x: F.layer_norm(x, shape, weight, bias, eps)
    root = len(weight) ** 0.5  # x / √(‖x‖²/dim + eps) · weight = x / hypot(‖x‖, √(dim · eps)) · √dim · weight
    gain, floor = weight * root, torch.tensor(root * eps**0.5, dtype=weight.dtype)
    return lambda x: x.div(torch.linalg.vector_norm(x, dim=1, keepdim=True).hypot_(floor)).mul_(gain)


def attention_bias(padding_mask: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """Bias for `attend`, (batch * kv_heads, 1, keys): −∞ where padding_mask (batch, keys) is False."""
    bias = torch.zeros(padding_mask.shape, dtype=dtype).masked_fill_(~padding_mask, -torch.inf)
    return bias.repeat_interleave(kv_heads, dim=0)[:, None]


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of one position per row: query (rows, kv_heads, group, head_dim) -> (rows, heads * head_dim).

    Keys and values are (rows, kv_heads, keys, head_dim). For several rows, two batched products are faster than torch's
    fused kernel, which pays where there are many query positions.
    """
    rows, kv_heads, _, size = query.shape
    if rows == 1:
        mask = None if bias is None else bias.view(1, -1, 1, keys.shape[2])
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).view(1, -1)
    query = query.reshape(rows * kv_heads, -1, size)  # (rows * kv_heads, group, head_dim)
    bias = query.new_zeros(1, 1) if bias is None else bias
    scores = torch.baddbmm(bias, query, keys.flatten(0, 1).mT, alpha=size**-0.5)  # (rows * kv_heads, group, keys)
    return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)).reshape(rows, -1)


class FusedProjection:
    """Queries, keys and values of the plain model from one packed product; replaces `Attention.project`."""

    def __init__(self, product: Packed, sizes: Sequence[int]):
        self.product, self.sizes = PackedLinear(product), list(sizes)

    def __call__(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, seqlen, dim); queries only at one column per row, columns (batch,), if given."""
        query, key, value = self.product(x).split(self.sizes, dim=-1)
        if columns is not None:
            query = query[torch.arange(len(x)), columns][:, None]
        return query, key, value


class FusedGate:
    """The SwiGLU of the plain model from one packed product; replaces `FeedForward.SwiGLU`."""

    def __init__(self, product: Packed):
        self.product = PackedLinear(product)

    def __call__(self, x: Tensor) -> Tensor:
        """silu(x·W1) ⊙ (x·W3): (..., dim) -> (..., ffn_dim)."""
        gate, up = self.product(x).chunk(2, dim=-1)
        return F.silu(gate) * up


class Buffers:
    """Preallocated results of the fused products for a batch size, with views of their parts."""

    def __init__(self, config: LlamaConfig, batch: int, dtype: torch.dtype):
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = torch.empty(batch, (heads + 2 * kv_heads) * size, dtype=dtype)
        rows = self.qkv.view(batch, heads + 2 * kv_heads, size)
        self.rotated = torch.view_as_complex(rows[:, : heads + kv_heads].unflatten(2, (-1, 2)))
        self.query = rows[:, :heads].unflatten(1, (kv_heads, -1))  # (batch, kv_heads, group, head_dim)
        self.key, self.value = rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
        self.gate_up = torch.empty(batch, 2 * config.ffn_dim, dtype=dtype)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)


class CpuStep:
    """Decodes one token per row. The model may only be read afterwards: its weights are laid out anew, in place.

    With `replace`, packed weights take the place of the model's own, so that the plain path (the prompt) uses them too
    and the memory of the originals is freed.
    """

    def __init__(self, model, dtype: str = "float32", replace: bool = False):
        if dtype not in PRECISIONS or not supports(model.config):
            raise ValueError(f"no fused decode step in {dtype} for this configuration")
        self.config: LlamaConfig = model.config
        self.model, self.dtype, self.replace = model, dtype, replace
        self.dense = SplitDense if sum(weight.numel() for weight in model.parameters()) > LARGE else Dense
        self.layers = [self._layer(layer) for layer in model.layers]
        self.output = self._product(model.output)
        if dtype == "float32" and model.config.tie_embeddings:
            model.tok_embeddings.weight = model.output.weight  # now a view of the transposed layout
        if replace and dtype in PACKERS:
            model.output = PackedLinear(self.output)
        self.norm = norm_function(model.norm)
        self.rotation = torch.complex(model.rope_cos, model.rope_sin)  # (max_seq_len, head_dim / 2)
        self.buffers: Buffers | None = None

    def _layer(self, layer) -> tuple:
        """Norms and products of a layer, in the order in which `_run_layer` takes them."""
        attention, feed_forward = layer.attention, layer.feed_forward
        projections = (attention.compute_query, attention.compute_key, attention.compute_value)
        qkv, out = self._product(*projections), self._product(attention.compute_output)
        gate_up, down = self._product(feed_forward.w1, feed_forward.w3), self._product(feed_forward.w2)
        if self.replace and self.dtype in PACKERS:
            attention.project = FusedProjection(qkv, [linear.out_features for linear in projections])
            attention.compute_query = attention.compute_key = attention.compute_value = None
            attention.compute_output = PackedLinear(out)
            feed_forward.SwiGLU = FusedGate(gate_up)
            feed_forward.w1 = feed_forward.w3 = None
            feed_forward.w2 = PackedLinear(down)
        return norm_function(layer.attention_norm), norm_function(layer.ffn_norm), qkv, out, gate_up, down

    def _product(self, *linears: nn.Linear) -> Dense | Packed:
        """One product for the weights of several layers."""
        if self.dtype in PACKERS:
            weights = [linear.weight.detach() for linear in linears]
            return PACKERS[self.dtype](torch.cat(weights) if len(weights) > 1 else weights[0])
        return self.dense(fused_weight(linears))

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None) -> Tensor:
        """Logits (batch, 1, vocab_size) after tokens (batch, 1) that continue the cache.

        `padding_mask` (batch, cached + 1) is True on real tokens. Raises ValueError when the cache is full.
        """
        window = self.config.sliding_window
        slots = cache.slots(window)
        if padding_mask is None:
            rotation, bias = self.rotation[cache.length], None
        else:
            rotation = self.rotation[padding_mask.sum(dim=1) - 1][:, None]  # (batch, 1, head_dim / 2)
            seen = padding_mask if window is None else padding_mask[:, -window:]
            bias = attention_bias(seen, self.config.n_kv_heads, self.model.dtype)
        if self.buffers is None or len(self.buffers.qkv) != len(tokens):
            self.buffers = Buffers(self.config, len(tokens), self.model.dtype)
        x = F.embedding(tokens[:, 0], self.model.tok_embeddings.weight)  # (batch, dim)
        for layer, slot in zip(self.layers, slots, strict=True):
            self._run_layer(layer, x, rotation, bias, slot)
        cache.advance(1)
        return self.output(self.norm(x))[:, None]

    def _run_layer(self, layer: tuple, x: Tensor, rotation: Tensor, bias: Tensor | None, slot: tuple) -> None:
        """Adds one layer to x (batch, dim); `slot` is one element of `KVCache.slots`."""
        attention_norm, ffn_norm, qkv, out, gate_up, down = layer
        buffers, (key, value, keys, values) = self.buffers, slot
        qkv.write(buffers.qkv, attention_norm(x))
        buffers.rotated.mul_(rotation)
        key.copy_(buffers.key)
        value.copy_(buffers.value)
        out.add(x, attend(buffers.query, keys, values, bias))
        gate_up.write(buffers.gate_up, ffn_norm(x))
        down.add(x, F.silu(buffers.gate, inplace=True).mul_(buffers.up))
