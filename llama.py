"""The one Llama: embeddings, layers of attention and feed-forward around a residual stream, and a tied output.

Read it from top to bottom: `LayerNorm`, `Attention`, `FeedForward`, `LlamaLayer`, `Llama`, `load_pretrained`.
Sources: Touvron et al. 2023 (Llama), Ainslie et al. 2023 (grouped-query attention), Shazeer 2020 (SwiGLU). Fields of
the config select other decoders: Vaswani et al. 2017 (sinusoids, ReLU, post-norm), Press et al. 2022 (ALiBi), and the
attention variants in `engine.model`.

    python sanity_check.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base_llama import LlamaPreTrainedModel, SkipInit
from config import LlamaConfig, ffn_width
from engine.decode import loop
from engine.decode.sampling import Sampler
from engine.io.checkpoint import Checkpoint, read_checkpoint
from engine.model.attention_variants import DifferentialAttention, HeadGate
from engine.model.gradient_checkpointing import run_recomputed
from engine.model.kv_cache import KVCache
from engine.model.masks import attention_mask, document_positions, mask_rows, padded_positions
from engine.model.norms import RMSNorm
from engine.model.positions import position_tables
from rope import rotate, rotation_table

Rotation = tuple[Tensor, Tensor]
Positions = slice | Tensor
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) over the last dimension, in float32 or wider, with gain and bias."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def _norm(self, x: Tensor) -> Tensor:
        """(x − mean) / √(variance + eps), with the biased variance; the oracle of `forward`."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) * torch.rsqrt(variance + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., dim) with torch's fused kernel; returns x's dtype."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), weight.shape, weight, bias, self.eps).type_as(x)


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention as two matrix products and a softmax; arguments as in `Attention.compute_query_key_value_scores`.

    Query heads that share a key become rows of one product, so no key is copied.
    """
    batch, heads, seqlen, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    rows = (query / math.sqrt(head_dim)).reshape(batch * kv_heads, -1, head_dim)  # (., heads / kv_heads * seqlen, .)
    bias = query.new_zeros(seqlen, keys)
    if causal:
        bias = bias.masked_fill(torch.ones_like(bias, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:  # (batch or 1, heads or 1, seqlen, keys)
        bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
        bias = bias.expand(batch, heads, seqlen, keys).reshape(batch * kv_heads, -1, keys)
    else:
        bias = bias.repeat(heads // kv_heads, 1)
    scores = torch.baddbmm(bias, rows, key.reshape(-1, keys, head_dim).mT)
    attended = torch.bmm(scores.softmax(dim=-1), value.reshape(-1, keys, value.shape[-1]))
    return attended.view(batch, heads, seqlen, -1)


def at(x: Tensor, columns: Tensor) -> Tensor:
    """x (batch, seqlen, ...) at one column per row, columns (batch,): (batch, 1, ...)."""
    return x[torch.arange(len(x), device=x.device), columns][:, None]


class Attention(nn.Module):
    """Grouped-query self-attention, with rotary positions if the config says so; `causal` overrides the config's.

    `layer_id` counts from 0; differential attention depends on it.
    """

    def __init__(self, config: LlamaConfig, causal: bool | None = None, layer_id: int = 0):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.max_seq_len, self.rope_theta = config.max_seq_len, config.rope_theta
        self.causal = config.causal if causal is None else causal
        self.rotary = config.position_embedding_type == "rotary"
        query_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.compute_query = nn.Linear(config.dim, query_dim, bias=False)
        self.compute_key = nn.Linear(config.dim, kv_dim, bias=False)
        self.compute_value = nn.Linear(config.dim, kv_dim, bias=False)
        self.compute_output = nn.Linear(query_dim, config.dim, bias=False)
        self.differential = DifferentialAttention(config, layer_id) if config.attention_type == "differential" else None
        self.gate = HeadGate(config) if config.gated_heads else None
        self.dropout = nn.Dropout(config.dropout)

    def compute_query_key_value_scores(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """softmax(query·keyᵀ / √head_dim + mask) · value, causal if the config says so (Vaswani et al. 2017, eq. 1).

        query is (batch, n_heads, seqlen, head_dim); key and value are (batch, n_kv_heads or n_heads, keys, head_dim),
        each shared by n_heads / n_kv_heads consecutive query heads. `mask`, broadcastable to
        (batch, n_heads, seqlen, keys), is boolean (True: attend) or added to the scores, and replaces the causal one.
        Returns (batch, n_heads, seqlen, head_dim).
        """
        batch, heads, seqlen, head_dim = query.shape
        kv_heads = key.shape[1]
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        if seqlen == 1 and kv_heads < heads:  # one position: grouped heads become rows, no key is copied
            folded = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)
            if mask is not None and mask.shape[1] > 1:
                mask = mask.reshape(len(mask), kv_heads, heads // kv_heads, -1)
            attended = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
            return attended.reshape(batch, heads, 1, -1)
        causal = False if seqlen == 1 else self.causal and mask is None  # seqlen is symbolic under torch.compile
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":  # twice as fast as the fused kernel
            return plain_attention(query, key, value, mask, causal)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=kv_heads < heads
        )

    def project(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, each (batch, seqlen, heads · head_dim); queries only at `columns` if given."""
        key, value = self.compute_key(x), self.compute_value(x)
        return self.compute_query(x if columns is None else at(x, columns)), key, value

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer_id: int = 0,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Attends over x (batch, seqlen, dim) and the cached tokens, if any; returns x's shape.

        With `columns` (batch,), only that position of each row is a query, and the result is (batch, 1, dim).
        """
        batch, seqlen, _ = x.shape
        query, key, value = self.project(x, columns)
        query = query.view(batch, -1, self.n_heads, self.head_dim)
        key = key.view(batch, seqlen, self.n_kv_heads, self.head_dim)
        value = value.view(batch, seqlen, self.n_kv_heads, self.head_dim)
        if self.rotary:
            cos, sin = rotation if rotation is not None else self._rotation_from_start(seqlen, x.device)
            key = rotate(key, cos, sin)
            if columns is not None:
                cos, sin = (at(table.expand(batch, *table.shape[-3:]), columns) for table in (cos, sin))
            query = rotate(query, cos, sin)
        # (batch, seqlen, heads, head_dim) -> (batch, heads, seqlen, head_dim)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(layer_id, key, value)
        attend = self.compute_query_key_value_scores
        if self.differential is None:
            attended = attend(query, key, value, mask)
        else:  # (batch, n_heads / 2, seqlen, 2 * head_dim)
            attended = self.differential(attend, query, key, value, mask)
        if self.gate is not None:
            attended = self.gate(attended, x if columns is None else at(x, columns))
        attended = attended.transpose(1, 2).flatten(2)  # (batch, seqlen, n_heads * head_dim)
        return self.dropout(self.compute_output(attended))

    def _rotation_from_start(self, seqlen: int, device: torch.device) -> Rotation:
        cos, sin = rotation_table(self.head_dim, self.max_seq_len, self.rope_theta)
        return cos[:seqlen, None].to(device), sin[:seqlen, None].to(device)


class FeedForward(nn.Module):
    """The position-wise feed-forward network: SwiGLU (Shazeer 2020, eq. 6), ReLU or GELU.

    `hidden_dim=None` is the width that `config.ffn_width` gives.
    """

    def __init__(
        self, dim: int, hidden_dim: int | None, multiple_of: int, dropout: float = 0.0, ffn_type: str = "swiglu"
    ):
        super().__init__()
        width = ffn_width(dim, hidden_dim, multiple_of, ffn_type)
        self.w1 = nn.Linear(dim, width, bias=False)
        self.w2 = nn.Linear(width, dim, bias=False)
        self.activation = ACTIVATIONS.get(ffn_type)  # None: SwiGLU, which has a third matrix
        if self.activation is None:
            self.w3 = nn.Linear(dim, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def SwiGLU(self, x: Tensor) -> Tensor:  # noqa: N802 (the course's name)
        """silu(x·W1) ⊙ (x·W3): (..., dim) -> (..., ffn_dim)."""
        return F.silu(self.w1(x)) * self.w3(x)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        inner = self.SwiGLU(x) if self.activation is None else self.activation(self.w1(x))
        return self.dropout(self.w2(inner))


class LlamaLayer(nn.Module):
    """One block: attention, then feed-forward, each on the normalised residual stream and added to it.

    With `norm_position="post"` each reads the stream itself, and the sum is normalised.
    """

    def __init__(self, layer_id: int, config: LlamaConfig):
        super().__init__()
        self.layer_id, self.norm_first = layer_id, config.norm_position == "pre"
        norm = NORMS[config.norm_type]
        self.attention = Attention(config, layer_id=layer_id)
        self.feed_forward = FeedForward(
            config.dim, config.hidden_dim, config.multiple_of, config.dropout, config.ffn_type
        )
        self.attention_norm = norm(config.dim, config.layer_norm_eps)
        self.ffn_norm = norm(config.dim, config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """(batch, seqlen, dim) -> (batch, seqlen, dim), or (batch, 1, dim) with `columns` (batch,) as queries."""
        normed = self.attention_norm(x) if self.norm_first else x
        attended = self.attention(normed, rotation, mask, cache, self.layer_id, columns)
        x = (x if columns is None else at(x, columns)) + attended
        if not self.norm_first:
            x = self.attention_norm(x)
            return self.ffn_norm(x + self.feed_forward(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(LlamaPreTrainedModel):
    """A decoder-only transformer; `output` shares its weight with `tok_embeddings` unless the config unties them."""

    rope_cos: Tensor  # position tables: buffers, as the config asks for them
    rope_sin: Tensor
    sinusoids: Tensor
    alibi_slopes: Tensor

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(LlamaLayer(layer_id, config) for layer_id in range(config.n_layers))
        final_norm = NORMS[config.norm_type] if config.norm_position == "pre" else nn.Identity
        self.norm = final_norm(config.dim, config.layer_norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        self.recompute = 0  # layers per gradient-checkpointing segment; 0 turns it off
        for name, table in position_tables(config).items():
            self.register_buffer(name, table, persistent=False)
        self.init_weights()

    @property
    def params(self) -> LlamaConfig:
        """The course's name for `config`."""
        return self.config

    def hidden_states(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        padding_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Runs the layers over tokens (batch, seqlen) and returns normalised hidden states (batch, seqlen, dim).

        With a cache the tokens continue the cached ones. `padding_mask` (batch, cached + seqlen) is True on real
        tokens, and positions count only them. `document_ids` number the documents of a packed row: attention and
        positions stay within a document. Raises ValueError beyond `max_seq_len`.
        """
        x, rotation, mask = self._begin(tokens, cache.length if cache is not None else 0, padding_mask, document_ids)
        if self.recompute and cache is None and torch.is_grad_enabled():
            return self.norm(run_recomputed(self.layers, x, self.recompute, rotation, mask))
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x)

    def hidden_states_at(self, tokens: Tensor, columns: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """`hidden_states` at one column per row: tokens (batch, seqlen), columns (batch,) -> (batch, dim).

        The last layer computes only those positions, which saves most of its work.
        """
        x, rotation, mask = self._begin(tokens, 0, padding_mask)
        for layer in self.layers[:-1]:
            x = layer(x, rotation, mask)
        mask = mask_rows(mask, columns, tokens.shape[1], self.config.causal)
        return self.norm(self.layers[-1](x, rotation, mask, columns=columns))[:, 0]

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns (logits, hidden_states) for tokens (batch, seqlen); see `hidden_states` for the other arguments.

        Logits are (batch, 1, vocab_size), of the last position only, if `targets is None`, else
        (batch, seqlen, vocab_size). Hidden states are (batch, seqlen, dim), after the final norm.
        """
        hidden = self.hidden_states(tokens, cache, padding_mask)
        logits = self.output(hidden[:, -1:] if targets is None else hidden)
        return logits, hidden

    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 0.95,
        epsilon: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continues idx (batch, seqlen) by `max_new_tokens`: greedily at temperature 0, else by top-p sampling.

        `epsilon` (Fall 2025) truncates by absolute probability instead of top-p. Returns (batch, seqlen + new).
        """
        sampler = Sampler(temperature, top_p=None if epsilon is not None else top_p, epsilon=epsilon)
        return loop.generate(self, idx, max_new_tokens, sampler, generator, use_cache=self.config.use_cache)

    def new_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` (default and limit `max_seq_len`) tokens."""
        capacity = min(capacity or self.config.max_seq_len, self.config.max_seq_len)
        return KVCache(self.config, batch, capacity, self.device, self.dtype)

    def _begin(
        self, tokens: Tensor, past: int, padding_mask: Tensor | None, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Rotation | None, Tensor | None]:
        """The first layer's input: embedded tokens (batch, seqlen, dim), rotation and mask."""
        end = past + tokens.shape[1]
        if end > self.config.max_seq_len:
            raise ValueError(f"{end} tokens are more than the model's {self.config.max_seq_len} positions")
        positions: Positions = slice(past, end)
        if document_ids is not None:
            positions = document_positions(document_ids)[:, past:]
        elif padding_mask is not None:
            positions = padded_positions(padding_mask)[:, past:]
        slopes = self.alibi_slopes if self.config.position_embedding_type == "alibi" else None
        causal, window = self.config.causal, self.config.sliding_window
        mask = attention_mask(tokens, past, causal, slopes, padding_mask, document_ids, window)
        return self.dropout(self._embedded(tokens, positions)), self._rotation(positions), mask

    def _embedded(self, tokens: Tensor, positions: Positions) -> Tensor:
        """Embeddings (batch, seqlen, dim); sinusoids are added to √dim · embedding (Vaswani et al. 2017, 3.4)."""
        embedded = self.tok_embeddings(tokens)
        if self.config.position_embedding_type != "sinusoidal":
            return embedded
        return math.sqrt(self.config.dim) * embedded + self.sinusoids[positions]

    def _rotation(self, positions: Positions) -> Rotation | None:
        if self.config.position_embedding_type != "rotary":
            return None
        return self.rope_cos[positions][..., None, :], self.rope_sin[positions][..., None, :]  # broadcast over heads


def load_pretrained(checkpoint: str, norm: str | None = None) -> Llama:
    """Reads any supported checkpoint (see `read_checkpoint`) and returns its model in evaluation mode.

    Prints the reader's notes, such as LayerNorm biases set to zero. Raises ValueError or OSError, saying why.
    """
    content = read_checkpoint(checkpoint, norm)
    for note in content.notes:
        print(note)
    return from_checkpoint(content)


def from_checkpoint(checkpoint: Checkpoint) -> Llama:
    """Builds the model of a checkpoint around its tensors, without a copy if they are memory-mapped."""
    with torch.device("meta"), SkipInit():
        model = Llama(checkpoint.config)
    state = dict(checkpoint.state_dict)
    if checkpoint.config.tie_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    model.load_state_dict(state, assign=True)
    if checkpoint.config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight
    return model.eval()
