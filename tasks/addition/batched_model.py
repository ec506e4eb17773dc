"""Fast training of tiny adders: all seeds in one batched model, batch-last layout, one compiled step.

The arithmetic is the shared `Llama`'s (`tests/test_addition_fast.py` compares logits, gradients and trained weights),
laid out for problems `a+b=c`. Activations are (seeds, features, positions, batch), so that a vector register holds one
feature of many problems. A product with a small matrix is a sum over features that the compiler fuses with its
neighbours. The last layer has queries only at the answer's positions.

    python addition_run.py train --seeds 6
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from llama import Llama
from tasks.addition.problems import EQUALS

POSITIONS = 16  # 0, a, +, b, = and five digits of c
FIRST = 10  # the position of `=`, which predicts the first digit of the answer
ANSWER = POSITIONS - FIRST  # at most five digits and the end
SMALL = 128  # largest number of weights for which a sum beats a matrix product


class SideBySide(nn.Module):
    """Several models of one configuration in one module; each seed's parameters are one flat vector.

    `forward` takes operands a and b, each (batch,) int64, and returns teacher-forced logits at the answer's positions:
    (seeds, vocab_size, 6, batch). Raises ValueError for a configuration that the layout does not support.
    """

    def __init__(self, models: list[Llama]):
        super().__init__()
        self.config = models[0].config
        check_config(self.config)
        self.shapes = parameter_shapes(self.config)
        states = [model.state_dict() for model in models]
        flat = [torch.cat([state[name].detach().flatten() for name in self.shapes]) for state in states]
        self.seeds = nn.ParameterList(nn.Parameter(vector.clone()) for vector in flat)
        for name in ("rope_cos", "rope_sin"):  # (max_seq_len, pairs) -> (pairs, positions, 1)
            table = getattr(models[0], name)[:POSITIONS].T[:, :, None].clone()
            self.register_buffer(name, table.to(flat[0].dtype), persistent=False)

    def state_of(self, seed: int) -> dict[str, Tensor]:
        """The parameters of one seed under the shared model's names, with its tied output."""
        parts = self.seeds[seed].detach().split([math.prod(shape) for shape in self.shapes.values()])
        state = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return state | {"output.weight": state.get("output.weight", state["tok_embeddings.weight"])}

    def model_of(self, seed: int) -> Llama:
        """One seed as a shared `Llama` in evaluation mode, on the same device."""
        model = Llama(self.config).to(self.seeds[seed])
        model.load_state_dict(self.state_of(seed))
        return model.eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits (seeds, vocab_size, 6, batch)."""
        return self.logits(torch.stack(list(self.seeds)), problem_tokens(a, b))

    def logits(self, flat: Tensor, tokens: Tensor) -> Tensor:
        """Runs the layers over tokens (16, batch) with parameters flat (seeds, parameters)."""
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        weights = {
            name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        embedding = weights["tok_embeddings.weight"].mT  # (seeds, dim, vocab)
        x = mix(embedding, one_hot(tokens, self.config.vocab_size, flat.dtype)[None])
        for index in range(self.config.n_layers):
            first = FIRST if index == self.config.n_layers - 1 else 0
            x = self._layer(weights, f"layers.{index}.", x, first)
        return mix(weights.get("output.weight", weights["tok_embeddings.weight"]), self._norm(weights, "norm.", x))

    def _layer(self, weights: dict[str, Tensor], layer: str, x: Tensor, first: int) -> Tensor:
        """One block on (seeds, dim, 16, batch); returns the positions from `first` on."""
        narrow = self._norm(weights, f"{layer}attention_norm.", x)
        x = x[:, :, first:] + self._attention(weights, f"{layer}attention.", narrow, first)
        wide = self._norm(weights, f"{layer}ffn_norm.", x)
        gate, up = (mix(weights[f"{layer}feed_forward.{name}.weight"], wide) for name in ("w1", "w3"))
        return x + mix(weights[f"{layer}feed_forward.w2.weight"], nn.functional.silu(gate) * up)

    def _norm(self, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        gain = weights[f"{name}weight"][:, :, None, None]
        eps = self.config.layer_norm_eps
        if self.config.norm_type == "rmsnorm":
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps) * gain
        centred = x - x.mean(dim=1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + eps)
        return centred * scale * gain + weights[f"{name}bias"][:, :, None, None]

    def _attention(self, weights: dict[str, Tensor], name: str, x: Tensor, first: int) -> Tensor:
        config = self.config
        kv_heads, group, size = config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim
        query = mix(weights[f"{name}compute_query.weight"], x[:, :, first:])
        query = query.unflatten(1, (kv_heads, group, size // 2, 2))  # (seeds, kv_heads, group, pairs, 2, asked, batch)
        key = mix(weights[f"{name}compute_key.weight"], x).unflatten(1, (kv_heads, 1, size // 2, 2))
        value = mix(weights[f"{name}compute_value.weight"], x).unflatten(1, (kv_heads, 1, size))
        query, key = self._rotate(query, first), self._rotate(key, 0)
        products = (q[..., :, None, :] * k[..., None, :, :] for q, k in zip(query, key, strict=True))
        scores = sum(product.sum(dim=3) for product in products) / math.sqrt(size)  # (..., asked, 16, batch)
        future = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool, device=x.device).triu(1)[first:, :, None]
        shares = scores.masked_fill(future, -torch.inf).softmax(dim=-2)
        attended = (shares[:, :, :, None] * value[:, :, :, :, None]).sum(dim=-2)  # (..., group, size, asked, batch)
        return mix(weights[f"{name}compute_output.weight"], attended.flatten(1, 3))

    def _rotate(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Rotated even and odd features; x is (seeds, kv_heads, group, pairs, 2, positions, batch)."""
        even, odd, cos, sin = x[:, :, :, :, 0], x[:, :, :, :, 1], self.rope_cos[:, first:], self.rope_sin[:, first:]
        return even * cos - odd * sin, even * sin + odd * cos


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """weight (seeds, out, in) times the features of x (seeds or 1, in, positions, batch)."""
    if weight.shape[1] * weight.shape[2] <= SMALL:
        return (weight[:, :, :, None, None] * x[:, None]).sum(dim=2)
    return torch.einsum("soi,sitb->sotb", weight, x.expand(len(weight), -1, -1, -1))


def problem_tokens(a: Tensor, b: Tensor) -> Tensor:
    """The token ids of problems, (16, batch): 0, the text `a+b=c`, and a 0 if c has four digits."""
    c = a + b
    zero = torch.zeros_like(a)
    long = c >= 10000
    places = [torch.where(long, c // 10**place % 10, c // 10 ** max(place - 1, 0) % 10) + 2 for place in (4, 3, 2, 1)]
    last = torch.where(long, c % 10 + 2, zero)
    first, second = ([number // 10**place % 10 + 2 for place in (3, 2, 1, 0)] for number in (a, b))
    return torch.stack([zero, *first, zero + 1, *second, zero + EQUALS, *places, last])


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """−log softmax at the answer's targets, (seeds, 6, batch); 0 past the end of a four-digit answer."""
    targets = answer_targets(tokens)
    chosen = one_hot(targets, logits.shape[1], logits.dtype)
    nll = torch.logsumexp(logits, dim=1) - (logits * chosen).sum(dim=1)
    return nll * counted(tokens)


def answer_targets(tokens: Tensor) -> Tensor:
    """Target of each answer position, (6, batch)."""
    return torch.cat([tokens[FIRST + 1 :], torch.zeros_like(tokens[:1])])


def counted(tokens: Tensor) -> Tensor:
    """True if an answer position has a target, (6, batch): all except the last of a four-digit answer."""
    return torch.cat([torch.ones_like(tokens[FIRST + 1 :]), tokens[-1:]]) > 0


def one_hot(ids: Tensor, vocab: int, dtype: torch.dtype) -> Tensor:
    """(vocab, *ids.shape): 1 if the id equals the row, else 0."""
    rows = torch.arange(vocab, device=ids.device).view(-1, *[1] * ids.dim())
    return (ids == rows).to(dtype)


def check_config(config: LlamaConfig) -> None:
    """Raises ValueError for a configuration that this layout does not support."""
    if config.dropout or not config.causal or config.max_seq_len < POSITIONS or not config.plain_attention:
        raise ValueError("the fast path trains causal models with plain attention, no dropout and 16 or more positions")
