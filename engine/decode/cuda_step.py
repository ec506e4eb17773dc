"""One decoding step in which nothing changes its shape or place as the text grows: what a CUDA graph can replay.

A step of a small model on a GPU takes longer to launch than to compute: a captured graph launches it all at once. For
that, attention runs over the whole cache, of which a mask says what is there yet, and where the new key goes is a
number on the device. The layers are the model's own; without a GPU the same step runs uncaptured, which is its test.

    python run_llama.py --option generate --use_gpu --dtype bfloat16
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.model.kv_cache import KVCache


class _Whole:
    """A layer's view of a cache: a new key goes where a tensor says, and all of the cache is attended to."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor):
        self.keys, self.values, self.place = keys, values, place

    def update(self, layer_id: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes key and value (batch, n_kv_heads, 1, head_dim); returns the layer's, up to the capacity."""
        self.keys[layer_id].index_copy_(2, self.place, key)
        self.values[layer_id].index_copy_(2, self.place, value)
        return self.keys[layer_id], self.values[layer_id]


class _Program:
    """The step over one cache: its inputs and its result have fixed places, and so has all between them."""

    def __init__(self, model, cache: KVCache):
        self.model, self.keys, self.values = model, cache.keys, cache.values
        batch, device = cache.keys.shape[1], cache.keys.device
        self.tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.seen = torch.zeros(batch, 1, 1, cache.capacity, dtype=torch.bool, device=device)
        self.logits = torch.empty(batch, 1, model.config.vocab_size, device=device, dtype=torch.float32)
        self.run: Callable[[], None] = self.compute

    def compute(self) -> None:
        """Logits (batch, 1, vocab_size) from the inputs as they stand."""
        model, cache = self.model, _Whole(self.keys, self.values, self.place)
        rotation = model.rope_cos[self.positions][..., None, :], model.rope_sin[self.positions][..., None, :]
        x = model.tok_embeddings(self.tokens)
        for layer in model.layers:
            x = layer(x, rotation, self.seen, cache)
        self.logits.copy_(model.output(model.norm(x)))

    def fill(self, tokens: Tensor, place: int, padding_mask: Tensor | None) -> None:
        """Writes the inputs for a token a row at column `place`; `padding_mask` is (batch, place + 1)."""
        self.tokens.copy_(tokens)
        self.place.fill_(place)
        self.seen[..., place + 1 :] = False
        if padding_mask is None:
            self.positions.fill_(place)
            self.seen[..., : place + 1] = True
        else:
            self.positions.copy_(padding_mask.sum(dim=1, keepdim=True) - 1)
            self.seen[..., : place + 1] = padding_mask[:, None, None]


class StaticStep:
    """Steps a rotary model by one token a row; on a GPU the step is captured once for every cache it meets."""

    def __init__(self, model):
        self.model = model
        self.program: _Program | None = None

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None, greedy: bool = False
    ) -> Tensor:
        """Logits (batch, 1, vocab_size), float32, after tokens (batch, 1), valid until the next call; see `Llama.step`.

        Raises ValueError when the cache is full.
        """
        if cache.length >= cache.capacity:
            raise ValueError(f"the cache holds {cache.capacity} tokens; {cache.length + 1} were asked for")
        fresh = self.program is None or self.program.keys is not cache.keys
        if fresh:
            self.program = _Program(self.model, cache)
        self.program.fill(tokens, cache.length, padding_mask)
        if fresh and self.model.device.type == "cuda":
            self.program.run = captured(self.program.compute)
        self.program.run()
        cache.advance(1)
        return self.program.logits


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """What replays `work`, which must do the same each time, as one CUDA graph; runs it to warm up."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
