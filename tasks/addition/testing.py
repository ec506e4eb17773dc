"""Tests of an adder: greedy answers, a breakdown of the mistakes, and all 81 million problems.

    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth --exhaustive
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.checkpoint import CheckpointError, read_checkpoint
from llama import Llama, from_checkpoint
from tasks.addition import native_step
from tasks.addition.batched_model import POSITIONS, SideBySide
from tasks.addition.problems import CHARS, HIGH, LOW, OPERANDS
from tasks.addition.workload import Problems, smallest_margins

END = 0
VOCABULARY = len(CHARS) + 1
PROMPT = re.compile(r"([1-9][0-9]{3})\+([1-9][0-9]{3})=?")
NEAR = 1e-3  # below this margin the plain model decides
CALL = 512  # problems per call in the exhaustive test; more would not fit in the CPU cache
NATIVE_CALL = 65536  # of the C++ step, which keeps eight problems in the cache and shares a call among the threads


def load_adder(path: str | Path, device: torch.device, **unsaid: Any) -> Llama:
    """The model of a checkpoint, in evaluation mode; `unsaid` as in `read_checkpoint`.

    Raises OSError, or ValueError if it is not an adder.
    """
    found = read_checkpoint(path, **unsaid)
    if found.config.vocab_size != VOCABULARY:
        raise CheckpointError(f"{path} has a vocabulary of {found.config.vocab_size}; an adder's is {VOCABULARY}")
    if found.config.max_seq_len < POSITIONS:
        raise CheckpointError(f"{path} has {found.config.max_seq_len} positions; an adder needs {POSITIONS}")
    return from_checkpoint(found).to(device)


def parse_prompt(text: str) -> tuple[int, int]:
    """The operands of `a+b=`. Raises ValueError for anything but two operands of four digits."""
    matched = PROMPT.fullmatch(text.replace(" ", ""))
    if matched is None:
        raise ValueError(f"not a question of the form 1234+5678=, operands from {LOW} to {HIGH}: {text[:40]!r}")
    return int(matched[1]), int(matched[2])


def answers(model: Llama, problems: Problems, max_new_tokens: int = 10, batch: int = 2500) -> list[str]:
    """Each problem with the model's greedy answer, `a+b=c`, without the end token. Shows a progress bar."""
    texts, itos = [], ["", *CHARS]
    bar = tqdm(total=len(problems), desc="answering", unit="problem", disable=len(problems) <= batch)
    for places in torch.arange(len(problems)).split(batch):
        questions = [f"{a}+{b}=" for a, b in zip(problems.a[places].tolist(), problems.b[places].tolist(), strict=True)]
        prompts = [[END, *(itos.index(char) for char in question)] for question in questions]
        steps = list(stream(model, prompts, max_new_tokens, Sampler(0.0), eos_id=END))
        for question, new in zip(questions, torch.stack(steps, dim=1).tolist(), strict=True):
            kept = new[: new.index(END)] if END in new else new
            texts.append(question + "".join(itos[token] for token in kept))
        bar.update(len(places))
    bar.close()
    return texts


def is_right(text: str) -> bool:
    """Whether `a+b=c` holds, c written without a leading zero and nothing after it."""
    question, _, answer = text.partition("=")
    a, b = question.split("+")
    return answer == str(int(a) + int(b))


def carries(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of columns with a carry, (n,)."""
    powers = 10 ** np.arange(1, 5)[:, None]
    return (a % powers + b % powers >= powers).sum(axis=0)


def breakdown(problems: Problems, right: list[bool]) -> dict[str, dict[str, str]]:
    """Right answers of all, by number of carries and by length of the answer."""
    a, b = problems.a.numpy().astype(np.int64), problems.b.numpy().astype(np.int64)
    kinds = {"carries": carries(a, b), "digits_of_the_answer": np.where(a + b >= 10000, 5, 4)}
    found = {}
    for name, values in kinds.items():
        asked = Counter(values.tolist())
        won = Counter(values[np.array(right, dtype=bool)].tolist())
        found[name] = {str(value): f"{won[value]:,} of {asked[value]:,}" for value in sorted(asked)}
    return found


@torch.no_grad()
def exhaustive(
    model: Llama, compile_forward: bool = True, part: range = range(OPERANDS**2), near: float = NEAR
) -> list[str]:
    """Tests all ordered problems, or the slice `part` of 1000+1000, 1000+1001, …; returns the wrong answers.

    Greedy decoding is right exactly if every teacher-forced argmax is right, so one pass decides a problem. If the
    right logit leads by less than `near`, the plain model's greedy answer decides. A wrong answer is `a+b=answer`.
    """
    fast = SideBySide([model])
    device = fast.rope_cos.device
    margins_of, size = _compiled(fast, device, len(part)) if compile_forward else (smallest_margins, CALL)
    doubtful = []
    with tqdm(total=len(part), desc="all problems", unit="problem", unit_scale=True, mininterval=2) as bar:
        for start in range(part.start, part.stop, size):
            a, b = ordered_problems(start, part.stop, device, size)
            doubt = margins_of(fast, a, b) < near
            if doubt.any():
                doubtful.append(torch.stack([a[doubt], b[doubt]]).cpu())
            bar.update(min(size, part.stop - start))
    if not doubtful:
        return []
    asked = Problems.of(*torch.cat(doubtful, dim=1).unique(dim=1).numpy())
    return [text for text in answers(model, asked) if not is_right(text)]


def ordered_problems(start: int, stop: int, device: torch.device, size: int = CALL) -> tuple[Tensor, Tensor]:
    """Operands of the problems numbered from `start`, each (size,) int64; past `stop` the last one is repeated."""
    number = torch.arange(start, start + size, device=device).clamp(max=stop - 1)
    return LOW + number // OPERANDS, LOW + number % OPERANDS


def _compiled(
    fast: SideBySide, device: torch.device, problems: int
) -> tuple[Callable[[SideBySide, Tensor, Tensor], Tensor], int]:
    """The fastest way to `smallest_margins` here, and the problems that it takes per call."""
    if native_step.supported(fast.config, device):
        with contextlib.suppress(RuntimeError):  # then torch compiles its own
            return native_step.NativeStep(fast).margins, min(NATIVE_CALL, problems)
    compiled = torch.compile(smallest_margins, dynamic=False)
    try:
        compiled(fast, *ordered_problems(0, CALL, device))
    except Exception as error:  # a machine without a compiler raises many kinds of errors
        print(f"the test is not compiled here and runs slower ({type(error).__name__})")
        return smallest_margins, CALL
    return compiled, CALL
