"""Decoding rules as pure functions of logits (batch, vocab): each returns logits with excluded tokens at −inf.

    python run_llama.py --option generate --temperature 0.8 --top_p 0.9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-30  # logits divided by less would overflow float32; the distribution has long been one-hot


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k most likely tokens (Fan et al. 2018); ties keep the lower ids."""
    kept = logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return logits.masked_fill(~_marked(logits, kept), -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1).

    Tokens are added in descending order of probability, ties by id, until the sum is at least p.
    """
    sorted_logits, order = logits.sort(dim=-1, descending=True, stable=True)
    return _keep_first(logits, order, sorted_logits.double().softmax(dim=-1), p)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keeps tokens with at least `min_p` times the highest probability (Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=-1)
    floor = min_p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < floor, -torch.inf)


def keep_epsilon(logits: Tensor, epsilon: float) -> Tensor:
    """Keeps tokens of probability at least `epsilon` (Hewitt et al. 2022, section 4), and the most likely one."""
    refused = logits.softmax(dim=-1) < epsilon
    refused &= logits < logits.amax(dim=-1, keepdim=True)
    return logits.masked_fill(refused, -torch.inf)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """Locally typical sampling (Meister et al. 2023, eq. 10): tokens whose surprise is closest to the entropy.

    Tokens are added in ascending order of |−log p − H|, ties by id, until their probability reaches `mass`.
    """
    log_probs = logits.double().log_softmax(dim=-1)
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1, keepdim=True)
    order = (-log_probs - entropy).abs().sort(dim=-1, stable=True).indices
    return _keep_first(logits, order, log_probs.exp().gather(-1, order), mass)


def penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Makes the tokens that ids (batch, n) holds less likely (Keskar et al. 2019, section 4.1): logits (batch, vocab).

    Positive logits are divided by `penalty` and negative ones multiplied by it, as in transformers, since the paper's
    division alone would make tokens of negative logits more likely.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def _keep_first(logits: Tensor, order: Tensor, probabilities: Tensor, mass: float) -> Tensor:
    """Keeps tokens in this order, of these probabilities, until their sum is at least `mass`; the first always."""
    refused = probabilities.cumsum(dim=-1) - probabilities >= mass
    refused[..., 0] = False
    return logits.masked_fill(refused.scatter(-1, order, refused), -torch.inf)


def _marked(logits: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, True)


@dataclass(frozen=True)
class Sampler:
    """A decoding rule: greedy at temperature 0, else sampling from the tempered, truncated distribution.

    Truncations apply in the order top-k, top-p, min-p, epsilon, typical, after the temperature. The repetition penalty
    needs the tokens so far: the loop applies it first, by `penalised`.
    Raises ValueError for a value outside its range.
    """

    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    epsilon: float | None = None
    typical: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature must not be negative, but is {self.temperature}")
        for name in ("top_p", "typical"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], not {value}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        for name in ("min_p", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        if self.repetition_penalty is not None and not self.repetition_penalty >= 1.0:
            raise ValueError(f"repetition_penalty must be at least 1, not {self.repetition_penalty}")

    def penalised(self, logits: Tensor, ids: Tensor) -> Tensor:
        """The logits (batch, vocab) after the repetition penalty, if any, for the tokens so far: ids (batch, n)."""
        if self.repetition_penalty is None:
            return logits
        return penalise_repetition(logits, ids, self.repetition_penalty)

    def logits(self, logits: Tensor) -> Tensor:
        """The tempered and truncated logits to sample from."""
        logits = logits.float() / max(self.temperature, COLDEST)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1.0:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        if self.epsilon is not None:
            logits = keep_epsilon(logits, self.epsilon)
        return logits if self.typical is None else keep_typical(logits, self.typical)

    def choose(
        self, logits: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """One token for each row of logits (batch, vocab): (batch,); one generator for all rows, or one for each."""
        if self.temperature == 0.0:
            return logits.max(dim=-1).indices  # argmax takes three times as long
        probabilities = self.logits(logits).softmax(dim=-1)
        if not isinstance(generator, Sequence):
            return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        rows = zip(probabilities, generator, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=own) for row, own in rows])
