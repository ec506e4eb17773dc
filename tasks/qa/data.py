"""Prompts and answers: JSON lines, tokenised once, and batches whose targets are the answers' tokens only.

A line is an object with the texts `prompt` and `answer`; its other fields are ignored.

    python -c "from tasks.qa.data import *; print(len(read_questions('data/qa-dev.jsonl')))"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.io.files import check_readable, parse_json, read_text
from engine.train.batches import LengthBatches
from engine.train.losses import IGNORED
from tokenizer import AnyTokenizer
from utils import pad


@dataclass
class Questions:
    """The content of a file: prompts, answers, the lines they stand on, and the ids of both once tokenised."""

    path: Path
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    prompt_ids: list[list[int]] = field(default_factory=list)  # with BOS
    answer_ids: list[list[int]] = field(default_factory=list)  # with EOS

    def __len__(self) -> int:
        return len(self.prompts)


def read_questions(path: str | Path) -> Questions:
    """The prompts and answers of a file of JSON lines, without white space at their ends; blank lines are skipped.

    Raises OSError for a file that cannot be read and ValueError, with the line, for one that is not as described.
    """
    questions = Questions(Path(path))
    for number, line in enumerate(read_text(check_readable(path)).split("\n"), start=1):
        if not line.strip():
            continue
        entry = parse_json(line, f"{path}, line {number}")
        if not isinstance(entry, dict):
            raise ValueError(f'{path}, line {number}: not a JSON object with the texts "prompt" and "answer"')
        for name, column in (("prompt", questions.prompts), ("answer", questions.answers)):
            text = entry.get(name)
            if not isinstance(text, str) or not text.strip():
                reason = "is missing" if name not in entry else "must be a text that is not empty"
                raise ValueError(f'{path}, line {number}: the field "{name}" {reason}')
            column.append(text.strip())
        questions.lines.append(number)
    if not questions.lines:
        raise ValueError(f"{path} holds no example")
    return questions


def tokenise(questions: Questions, tokenizer: AnyTokenizer, limit: int) -> Questions:
    """Fills in the ids: BOS and the prompt; then the answer as it continues the prompt after a space, and EOS.

    Raises ValueError, with the line, for a prompt and answer of more than `limit` tokens: an answer is never cut.
    """
    for number, prompt, answer in zip(questions.lines, questions.prompts, questions.answers, strict=True):
        prompt_ids = tokenizer.encode(prompt, bos=True, eos=False)
        ids = tokenizer.encode(f"{prompt} {answer}", bos=True, eos=True)
        if ids[: len(prompt_ids)] != prompt_ids:  # a piece spans the end of the prompt
            ids = prompt_ids + tokenizer.encode(answer, bos=False, eos=True)
        if len(ids) - 1 > limit:  # EOS is only a target
            raise ValueError(
                f"{questions.path}, line {number}: prompt and answer have {len(ids)} tokens, but the model has {limit} "
                "positions: shorten them, or take a model with a longer context"
            )
        questions.prompt_ids.append(prompt_ids)
        questions.answer_ids.append(ids[len(prompt_ids) :])
    return questions


class AnswerBatches(LengthBatches):
    """Batches of prompts followed by their answers, of similar length, right-padded."""

    def __init__(self, questions: Questions, batch_size: int, pad_id: int, seed: int = 0):
        self.questions, self.pad_id = questions, pad_id
        self.answer_lengths = np.asarray([len(ids) for ids in questions.answer_ids])
        prompts = np.asarray([len(ids) for ids in questions.prompt_ids])
        super().__init__(prompts + self.answer_lengths, batch_size, seed)

    def count(self, batch: np.ndarray) -> int:
        """Number of targets: the tokens of the answers, each with its EOS."""
        return int(self.answer_lengths[batch].sum())

    def tensors(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens and next-token targets, each (rows, longest); targets in prompts and padding are `IGNORED`."""
        pairs = [(self.questions.prompt_ids[number], self.questions.answer_ids[number]) for number in batch]
        tokens = pad([prompt + answer[:-1] for prompt, answer in pairs], self.pad_id)
        targets = torch.full_like(tokens, IGNORED)
        for row, (prompt, answer) in enumerate(pairs):
            start = len(prompt) - 1  # the prompt's last token predicts the answer's first
            targets[row, start : start + len(answer)] = torch.tensor(answer)
        return tokens, targets
