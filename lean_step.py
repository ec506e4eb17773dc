"""One decoding step of the shared Llama with all that does not change computed once: for speed, on a CPU.

The plain path (`Llama.forward` with a cache) is the oracle. Here query, key and value are one product, and so are the
two of the gate; weights are laid out transposed, which a product with a single row reads fastest; and in int8 each is
a fourth as many bytes, which is what a token costs.

    python run_llama.py --option generate --quantize int8
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import LlamaConfig
from kv_cache import KVCache

Product = Callable[[Tensor], Tensor]
KINDS = ("float32", "int8")


def make_lean(model, kind: str = "float32") -> None:
    """Lets a model on a CPU take single steps by `LeanStep`, if its configuration fits; else leaves it as it is.

    Raises ValueError where int8 is asked for and cannot be had.
    """
    if model.device.type == "cpu" and fits(model.config):
        model.lean_step = LeanStep(model, kind)
    elif kind != "float32":
        raise ValueError(f"{kind} products are for Llamas with rotary positions and SwiGLU, on a CPU")


def fits(config: LlamaConfig) -> bool:
    """Whether a model of this configuration can be stepped here: the Llama with LayerNorm or RMSNorm."""
    return config.position_embedding_type == "rotary" and config.ffn_type == "swiglu" and config.norm_position == "pre"


def joined(linears: Sequence[nn.Linear]) -> Tensor:
    """The layers' weights side by side, (in, out1 + out2 + …); the layers become views of it: nothing is doubled."""
    together = torch.cat([linear.weight.detach().T for linear in linears], dim=1).contiguous()
    parts = together.split([linear.out_features for linear in linears], dim=1)
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part.T, requires_grad=False)
    return together


def quantised(weight: Tensor) -> Product:
    """x · weightᵀ with weight (out, in) in int8, one scale a row, and x in int8 as it comes, one scale a call."""
    scales = (weight.abs().amax(dim=1).double() / 127.0).clamp(min=1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch means to drop this way of making one; the kernels stay the fastest it has
        warnings.simplefilter("ignore", UserWarning)
        small = torch.quantize_per_channel(weight.float().contiguous(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(small, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


class LeanStep:
    """Steps a model by one token a row. Made for a model that is read only: its weights are laid out anew in place."""

    def __init__(self, model, kind: str = "float32"):
        if kind not in KINDS or not fits(model.config):
            raise ValueError(f"no lean step in {kind} for this configuration")
        self.config: LlamaConfig = model.config
        self.model, self.kind = model, kind
        self.layers = [self._layer(layer) for layer in model.layers]
        self.norm = self._normaliser(model.norm)
        self.output = self._product([model.output], keep=model.config.tie_embeddings)
        self.turn = torch.complex(model.rope_cos, model.rope_sin)  # (max_seq_len, head_dim / 2)

    def _layer(self, layer) -> tuple:
        attention, gate = layer.attention, layer.feed_forward
        products = [
            self._product([attention.compute_query, attention.compute_key, attention.compute_value]),
            self._product([attention.compute_output]),
            self._product([gate.w1, gate.w3]),
            self._product([gate.w2]),
        ]
        return (self._normaliser(layer.attention_norm), self._normaliser(layer.ffn_norm), *products)

    def _product(self, linears: Sequence[nn.Linear], keep: bool = False) -> Product:
        """The product with these layers' weights; a tied output's rows stay as they are, for they are looked up."""
        if self.kind == "int8":
            return quantised(torch.cat([linear.weight.detach() for linear in linears]))
        weight = linears[0].weight.detach().T.contiguous() if keep else joined(linears)
        return lambda x: x @ weight

    def _normaliser(self, norm: nn.Module) -> Product:
        if self.config.norm_type == "rmsnorm":
            return norm
        shape, weight, bias, eps = norm.weight.shape, norm.weight.detach(), norm.bias.detach(), norm.eps
        return lambda x: F.layer_norm(x, shape, weight, bias, eps)

    def __call__(self, tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None) -> Tensor:
        """Logits (batch, 1, vocab_size) after tokens (batch, 1) that continue the cache; see `Llama.hidden_states`."""
        place, batch = cache.length, len(tokens)
        if padding_mask is None:
            turn, mask = self.turn[place], None
        else:
            turn = self.turn[padding_mask.sum(dim=1) - 1][:, None]  # (batch, 1, head_dim / 2)
            mask = padding_mask[:, None, None]
        x = F.embedding(tokens[:, 0], self.model.tok_embeddings.weight)  # (batch, dim)
        for index, (attention_norm, ffn_norm, qkv, out, gate, down) in enumerate(self.layers):
            attended = self._attend(qkv(attention_norm(x)), turn, mask, cache, index, place)
            x = x + out(attended.reshape(batch, -1))
            opened, up = gate(ffn_norm(x)).chunk(2, dim=1)
            x = x + down(F.silu(opened).mul_(up))
        cache.advance(1)
        return self.output(self.norm(x))[:, None]

    def _attend(
        self, qkv: Tensor, turn: Tensor, mask: Tensor | None, cache: KVCache, index: int, place: int
    ) -> Tensor:
        """Attention of one position: qkv (batch, heads + 2 · kv_heads, flat) -> (batch, kv_heads, group, head_dim)."""
        heads, kv_heads, size = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        rows = qkv.view(len(qkv), heads + 2 * kv_heads, size)
        turning = rows[:, : heads + kv_heads]
        turned = torch.view_as_real(torch.view_as_complex(turning.unflatten(2, (-1, 2))) * turn).flatten(2)
        cache.keys[index, :, :, place] = turned[:, heads:]
        cache.values[index, :, :, place] = rows[:, heads + kv_heads :]
        query = turned[:, :heads].unflatten(1, (kv_heads, -1))
        keys, values = cache.keys[index, :, :, : place + 1], cache.values[index, :, :, : place + 1]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
