"""Contrastive search: likely tokens whose hidden state is unlike those before it (Su et al. 2022, section 3.2).

    python run_llama.py --option generate --contrastive 0.6 --top_k 5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.decode.loop import after_end, left_padded, padding_mask, window_start

CANDIDATES = 5  # Su et al. use 5 to 10


@torch.inference_mode()
def contrastive(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    alpha: float,
    k: int = CANDIDATES,
    eos_id: int | None = None,
    slide: int = 1,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (batch,), up to `max_new_tokens` times; ends and slides as `stream` does.

    Of the k most likely tokens it takes the one with the highest (1 − α)·p(v) − α·max_j cos(h_v, h_j) (eq. 5): h_v is
    the candidate's hidden state after the final norm, and h_j are those of the window before it. α = 0 or k = 1 is
    greedy. Every prompt has k rows of the cache, equal but for the candidate in the last column. Raises ValueError for
    an empty prompt or a number out of range.
    """
    limit = model.config.max_seq_len
    if not 0.0 <= alpha <= 1.0 or k < 1:
        raise ValueError(f"no contrastive search with α = {alpha} and {k} candidates")
    if limit < 2:
        raise ValueError("contrastive search compares tokens of one window: it needs a context of two or more")
    slide = slide if slide < limit else max(1, limit // 2)  # a candidate alone in its window has none to compare with
    k = min(k, model.config.vocab_size)
    rows, first, end = left_padded(prompts, max_new_tokens, model.device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    starts = [start + window_start(end - start, limit, slide) for start in first]
    window = _Window(model, rows, starts, end, k)
    logits = window.logits
    for column in range(end, end + max_new_tokens):
        previous, starts = starts, [start + window_start(column + 1 - start, limit, slide) for start in first]
        if starts != previous:
            window = _Window(model, rows, starts, column, k)
        chosen, logits = window.choose(logits, alpha)
        rows[:, column] = chosen = after_end(chosen, finished, eos_id)
        yield chosen
        if eos_id is not None and bool(finished.all()):
            return


class _Window:
    """The tokens before the next one: a cache with k equal rows for each prompt, and hidden states of unit length."""

    def __init__(self, model, rows: Tensor, starts: list[int], end: int, k: int):
        """Reads the windows rows[i, starts[i] : end]; `logits` (batch, vocab) are those after the last tokens."""
        self.model, self.k, left = model, k, min(starts)
        self.mask = padding_mask(starts, left, end, model.device)  # (batch, columns); None without padding
        self.cache = model.new_cache(len(rows), min(model.config.max_seq_len, rows.shape[1] - left))
        hidden = model.hidden_states(rows[:, left:end], self.cache, self.mask)  # (batch, columns, dim)
        self.logits = model.output(hidden[:, -1])
        self.states = F.normalize(hidden, dim=-1)
        self.cache.reorder(torch.arange(len(rows), device=model.device).repeat_interleave(k))

    def choose(self, logits: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """The chosen tokens (batch,), which join the window, and the logits after them (batch, vocab)."""
        top = logits.topk(self.k, dim=-1).indices  # (batch, k)
        before = self.mask
        self.mask = None if before is None else F.pad(before, (0, 1), value=True)
        mask = None if self.mask is None else self.mask.repeat_interleave(self.k, dim=0)
        hidden = self.model.hidden_states(top.view(-1, 1), self.cache, mask).view(*top.shape, -1)
        states = F.normalize(hidden, dim=-1)
        similarity = states @ self.states.mT  # (batch, k, columns)
        if before is not None:
            similarity = similarity.masked_fill(~before[:, None], -torch.inf)
        scores = (1.0 - alpha) * logits.softmax(dim=-1).gather(1, top) - alpha * similarity.amax(dim=-1)
        best = scores.argmax(dim=-1)
        each = torch.arange(len(top), device=top.device)
        self.cache.copy_last((each * self.k + best).repeat_interleave(self.k))
        self.states = torch.cat([self.states, states[each, best][:, None]], dim=1)
        return top[each, best], self.model.output(hidden[each, best])
