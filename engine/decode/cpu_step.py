"""One decoding step of the shared Llama with all that does not change computed once: for speed, on a CPU.

The plain path (`Llama.forward` with a cache) is the oracle. Here query, key and value are one product, and so are the
two of the gate; their results have a fixed place, whose parts are named once; weights are laid out for a single row,
in bfloat16 or int8 also with a half or a fourth of the bytes, which is what a token costs; and where only the
likeliest token is asked for, most logits are not computed at all.

    python run_llama.py --option generate --quantize int8
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import LlamaConfig
from engine.decode.packed_linear import Dense, Narrow, Packed, Screened, Upright, bfloat16, int8
from engine.model.kv_cache import KVCache

PACKED = {"bfloat16": bfloat16, "int8": int8}
KINDS = ("float32", *PACKED)
SCREENED = 2**22  # weights of an output matrix from which finding the likeliest token by int8 pays


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


def normaliser(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm in as few operations as torch has for it: (rows, dim) -> (rows, dim), new."""
    weight, eps = norm.weight.detach(), norm.eps
    if hasattr(norm, "bias"):
        shape, bias = weight.shape, norm.bias.detach()
        return lambda x: F.layer_norm(x, shape, weight, bias, eps)
    root = len(weight) ** 0.5  # x / √(‖x‖²/dim + eps) · weight = x / hypot(‖x‖, √(dim · eps)) · √dim · weight
    gain, least = weight * root, torch.tensor(root * eps**0.5, dtype=weight.dtype)
    return lambda x: x.div(torch.linalg.vector_norm(x, dim=1, keepdim=True).hypot_(least)).mul_(gain)


def masking(padding_mask: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """What `attended` adds to the scores, (batch * kv_heads, 1, keys): −∞ where padding_mask (batch, keys) is False."""
    bias = torch.zeros(padding_mask.shape, dtype=dtype).masked_fill_(~padding_mask, -torch.inf)
    return bias.repeat_interleave(kv_heads, dim=0)[:, None]


def attended(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of one position a row: query (rows, kv_heads, group, head_dim) -> (rows, heads * head_dim).

    Keys and values are (rows, kv_heads, keys, head_dim), or (1, ...) where the rows are positions of one text, and
    `bias` is then (rows * group, keys). For several rows two products of many small matrices are faster than torch's
    fused kernel, which pays where there are many positions.
    """
    rows, kv_heads, _, size = query.shape
    if rows == 1:
        mask = None if bias is None else bias.view(1, -1, 1, keys.shape[2])
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).view(1, -1)
    together = len(keys) < rows
    if together:
        query = query.transpose(0, 1)  # (kv_heads, rows, group, head_dim)
    query = query.reshape(len(keys) * kv_heads, -1, size)
    bias = query.new_zeros(1, 1) if bias is None else bias
    scores = torch.baddbmm(bias, query, keys.flatten(0, 1).mT, alpha=size**-0.5)  # (., ., keys)
    found = torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1))
    return (found.view(kv_heads, rows, -1).transpose(0, 1) if together else found).reshape(rows, -1)


class Part(nn.Module):
    """A linear layer without a weight of its own: some outputs of a packed product, which its parts run but once."""

    def __init__(self, whole: Whole, place: int):
        super().__init__()
        self.whole, self.place = whole, place

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.whole(x)[self.place]


class Whole:
    """A packed product for any number of rows, split by `sizes`; asked again with the same x, it gives what it has."""

    def __init__(self, product: Packed, sizes: Sequence[int]):
        self.product, self.sizes = product, list(sizes)
        self.asked: Tensor | None = None
        self.found: Sequence[Tensor] = ()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """x (..., in) -> a part (..., size) for each size; every row has a scale of its own, whatever the product's."""
        if self.asked is not x:
            rows = x.flatten(0, -2)
            largest = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12)
            found = self.product(rows / largest).mul_(largest).unflatten(0, x.shape[:-1])
            self.asked, self.found = x, found.split(self.sizes, dim=-1)
        return self.found


class Places:
    """Where a step's products go, for `batch` rows, and the parts of them that the step asks for by name."""

    def __init__(self, config: LlamaConfig, batch: int, dtype: torch.dtype):
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = torch.empty(batch, (heads + 2 * kv_heads) * size, dtype=dtype)
        rows = self.qkv.view(batch, heads + 2 * kv_heads, size)
        self.turning = torch.view_as_complex(rows[:, : heads + kv_heads].unflatten(2, (-1, 2)))
        self.query = rows[:, :heads].unflatten(1, (kv_heads, -1))  # (batch, kv_heads, group, head_dim)
        self.key, self.value = rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
        self.gate = torch.empty(batch, 2 * config.ffn_dim, dtype=dtype)
        self.opened, self.up = self.gate.chunk(2, dim=1)


class LeanStep:
    """Steps a model by one token a row. Made for a model that is read only: its weights are laid out anew in place.

    With `replaces`, weights of another kind take the place of the model's own, for the plain path too.
    """

    def __init__(
        self,
        model,
        kind: str = "float32",
        screened: int = SCREENED,
        output: Packed | None = None,
        replaces: bool = False,
    ):
        if kind not in KINDS or not fits(model.config):
            raise ValueError(f"no lean step in {kind} for this configuration")
        self.config: LlamaConfig = model.config
        self.model, self.kind, self.replaces = model, kind, replaces
        self.layers = [self._layer(layer) for layer in model.layers]
        self.screen = self._screen(model.output.weight.detach(), screened)
        if self.screen is not None:  # read in rows: as it is
            self.output = Upright(model.output.weight.detach())
        else:
            self.output = self._product(model, "output") if output is None else output
        if model.config.tie_embeddings and kind == "float32":
            model.tok_embeddings.weight = model.output.weight  # laid out anew, perhaps
        self.norm = normaliser(model.norm)
        self.turn = torch.complex(model.rope_cos, model.rope_sin)  # (max_seq_len, head_dim / 2)
        self.places: Places | None = None

    def _layer(self, layer) -> tuple:
        attention, gate = layer.attention, layer.feed_forward
        products = [
            self._product(attention, "compute_query", "compute_key", "compute_value"),
            self._product(attention, "compute_output"),
            self._product(gate, "w1", "w3"),
            self._product(gate, "w2"),
        ]
        return (normaliser(layer.attention_norm), normaliser(layer.ffn_norm), *products)

    def _product(self, owner: nn.Module, *names: str) -> Dense | Packed:
        """The product with the weights of the owner's layers of these names."""
        linears = [getattr(owner, name) for name in names]
        if self.kind in PACKED:
            weights = [linear.weight.detach() for linear in linears]
            product = PACKED[self.kind](torch.cat(weights) if len(weights) > 1 else weights[0])
            if self.replaces:
                whole = Whole(product, [linear.out_features for linear in linears])
                for place, name in enumerate(names):
                    setattr(owner, name, Part(whole, place))
            return product
        weight = joined(linears)
        return (Narrow if weight.shape[1] <= Narrow.WIDEST else Dense)(weight)

    def _screen(self, weight: Tensor, screened: int) -> Screened | None:
        """What finds the largest logit with few of the output's bytes, where that pays; weight is (vocab_size, dim)."""
        quantised = torch.backends.quantized.engine in ("x86", "fbgemm")
        if self.kind == "float32" and weight.dtype == torch.float32 and weight.numel() >= screened and quantised:
            return Screened(weight)
        return None

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None, greedy: bool = False
    ) -> Tensor:
        """Logits (batch, 1, vocab_size) after tokens (batch, 1) that continue the cache; see `Llama.step`.

        Raises ValueError when the cache is full.
        """
        place = cache.length
        slots = cache.slots(place)
        if padding_mask is None:
            turn, bias = self.turn[place], None
        else:
            turn = self.turn[padding_mask.sum(dim=1) - 1][:, None]  # (batch, 1, head_dim / 2)
            bias = masking(padding_mask, self.config.n_kv_heads, self.model.dtype)
        logits = self._logits(tokens[:, 0], turn, bias, slots, greedy)
        cache.advance(1)
        return logits[:, None]

    @torch.inference_mode()
    def several(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits (new, vocab_size) after each of the tokens (new,) that continue a cache of one row, as if `greedy`.

        Raises ValueError when they are too many for the cache.
        """
        place, new = cache.length, len(tokens)
        slots = cache.stretches(place, new)
        bias = torch.full((new, place + new), -torch.inf, dtype=self.model.dtype).triu_(place + 1)  # causal
        bias = bias.repeat_interleave(self.config.n_heads // self.config.n_kv_heads, dim=0)  # (new * group, keys)
        logits = self._logits(tokens, self.turn[place : place + new, None], bias, slots, greedy=True)
        cache.advance(new)
        return logits

    def _logits(self, tokens: Tensor, turn: Tensor, bias: Tensor | None, slots: Iterable, greedy: bool) -> Tensor:
        """(rows, vocab_size) of tokens (rows,)."""
        if self.places is None or len(self.places.qkv) != len(tokens):
            self.places = Places(self.config, len(tokens), self.model.dtype)
        x = F.embedding(tokens, self.model.tok_embeddings.weight)  # (rows, dim)
        for layer, cached in zip(self.layers, slots, strict=True):
            self._run(layer, x, turn, bias, *cached)
        x = self.norm(x)
        return self.screen(x, self.output) if greedy and self.screen else self.output(x)

    def _run(self, layer: tuple, x: Tensor, turn: Tensor, bias: Tensor | None, *cached: Tensor) -> None:
        """Adds one layer to x (batch, dim); `cached` is what `KVCache.slots` gives for the layer."""
        attention_norm, ffn_norm, qkv, out, gate, down = layer
        places, (key, value, keys, values) = self.places, cached
        qkv.into(places.qkv, attention_norm(x))
        places.turning.mul_(turn)
        key.copy_(places.key)
        value.copy_(places.value)
        out.onto(x, attended(places.query, keys, values, bias))
        gate.into(places.gate, ffn_norm(x))
        down.onto(x, F.silu(places.opened, inplace=True).mul_(places.up))
