"""Greedy steps in float32 of which the next few are guessed in int8, and the guesses checked all at once.

A float32 step costs what its weights cost to read, and checking several tokens reads them no more often than one.
So int8, with a fourth of the bytes, continues the text for a few tokens; one pass in float32 over them gives the
logits that single steps would have given, and those up to the first wrong guess are used. (Leviathan et al. 2023,
algorithm 1 at temperature 0, with the model itself in fewer bits as the draft.) What is chosen is float32's choice.

    python run_llama.py --option generate --temperature 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.decode.cpu_step import LeanStep
from engine.model.kv_cache import KVCache

MOST = 6  # guesses at a time


class Drafted:
    """A `LeanStep` that looks ahead where one row asks for its likeliest token; the logits ahead wait in the cache."""

    def __init__(self, exact: LeanStep):
        self.exact = exact
        self.quick = LeanStep(exact.model, "int8", output=exact.screen.screen)
        self.guesses = 1

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, cache: KVCache, padding_mask: Tensor | None = None, greedy: bool = False
    ) -> Tensor:
        """What the exact step returns; see `Llama.step`."""
        if not greedy or len(tokens) > 1 or padding_mask is not None:
            return self.exact(tokens, cache, padding_mask, greedy)
        ahead, token = cache.ahead, int(tokens)
        if ahead and ahead[0][:2] == (cache.length, token):
            cache.advance(1)
            return ahead.pop(0)[2]
        if ahead:  # so many of the guesses were not wanted
            self.guesses = max(1, self.guesses - len(ahead))
        else:
            self.guesses = min(MOST, self.guesses + 1)
        return self._look_ahead(token, cache, min(self.guesses, cache.capacity - cache.length - 1))

    def _look_ahead(self, token: int, cache: KVCache, guesses: int) -> Tensor:
        """The logits after a token (1, 1, vocab_size), with those after as many guessed ones kept in the cache."""
        place, tokens = cache.length, torch.tensor([[token]])
        if guesses < 1:
            return self.exact(tokens, cache, greedy=True)
        for _ in range(guesses):
            found = self.quick(tokens[:, -1:], cache, greedy=True)[:, -1]
            tokens = torch.cat([tokens, found.max(dim=-1, keepdim=True).indices], dim=1)
        cache.length = place  # what int8 wrote there is written over
        logits = self.exact.several(tokens[0], cache)[:, None, None]  # (1 + guesses, 1, 1, vocab_size)
        cache.length = place + 1
        cache.ahead = [(place + at, int(tokens[0, at]), logits[at]) for at in range(1, guesses + 1)]
        return logits[0]
