"""Labelled sentences in the course's format, tokenised once, and batched by length.

A data file has one example a line, `label ||| sentence`; a label mapping is a JSON list of names, label 0 first.

    python -c "from tasks.sentiment.data import *; print(len(read_examples('data/reviews-dev.txt', num_labels=2)))"
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.io.files import check_readable, read_text
from tokenizer import AnyTokenizer
from utils import pad

SEPARATOR = "|||"
UNLABELLED = -1  # what the course's README calls a placeholder; its files hold 0
PLACEHOLDER_COUNT = 20  # so many equal labels are no accident
LENGTH_NOISE = (1.5, 0.05)  # before sorting, lengths grow by up to 1.5 + a twentieth: neighbours change
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, section 5


@dataclass
class Examples:
    """A data file as read: labels (UNLABELLED where there are none), sentences, and ids once they are tokenised."""

    path: Path
    labels: list[int]
    sentences: list[str]
    ids: list[list[int]] = field(default_factory=list)
    cut: int = 0  # sentences cut to the limit

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def placeholder(self) -> bool:
        """Whether the labels say nothing: all are UNLABELLED, or many and all the same."""
        return set(self.labels) == {UNLABELLED} or (len(self) >= PLACEHOLDER_COUNT and len(set(self.labels)) == 1)


def read_label_names(path: str | Path) -> list[str]:
    """The names of the labels 0, 1, … from a JSON list of at least two different strings.

    Raises OSError for a file that cannot be read and ValueError for anything else in it.
    """
    try:
        names = json.loads(read_text(check_readable(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f'{path} is not a label mapping: a JSON list of names is wanted, such as ["bad", "good"]')
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{path} is not a label mapping: it needs at least two names, all different")
    return names


def read_examples(path: str | Path, num_labels: int) -> Examples:
    """Reads a data file. Blank lines are skipped.

    Raises OSError for a file that cannot be read, and ValueError, naming file and line, for a line without the
    separator, an empty sentence or a label that is none of 0 … num_labels − 1 (but a file may say −1 throughout).
    """
    lines = read_text(check_readable(path)).removeprefix("\ufeff").split("\n")  # a BOM, as Windows editors write it
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no example")
    parsed = [_parse(f"{path}, line {number}", line) for number, line in numbered]
    labels, sentences = (list(column) for column in zip(*parsed, strict=True))
    if set(labels) != {UNLABELLED}:
        for (number, _), label in zip(numbered, labels, strict=True):
            if not 0 <= label < num_labels:
                raise ValueError(f"{path}, line {number}: label {label} is not in the mapping (0 to {num_labels - 1})")
    return Examples(Path(path), labels, sentences)


def _parse(where: str, line: str) -> tuple[int, str]:
    label, separator, sentence = line.partition(SEPARATOR)
    if not separator:
        raise ValueError(f"{where}: no '{SEPARATOR}' between label and sentence")
    if not sentence.strip():
        raise ValueError(f"{where}: the sentence is empty")
    try:
        return int(label), sentence.strip()
    except ValueError:
        raise ValueError(f"{where}: the label {label.strip()!r} is not a whole number") from None


def prompt_suffix(label_names: Sequence[str]) -> str:
    """The course's question, with the space it ends in: `Is this movie bad or good? This movie is `."""
    if len(label_names) == 2:
        listed = " or ".join(label_names)
    else:
        listed = ", ".join(label_names[:-1]) + f", or {label_names[-1]}"
    return f"Is this movie {listed}? This movie is "


def tokenise(
    examples: Examples, tokenizer: AnyTokenizer, limit: int, max_len: int | None = None, suffix: str = ""
) -> Examples:
    """Fills in the ids of every sentence, framed by BOS alone and followed by `suffix`, if one is given.

    Of a sentence that has more than `max_len` pieces or, with its frame, more than `limit`, the end is cut off; the
    suffix always stays whole.
    """
    behind = tokenizer.encode(suffix, bos=False, eos=False) if suffix else []
    room = limit - 1 - len(behind)
    room = room if max_len is None else min(room, max_len)
    if room < 1:
        raise ValueError(f"{limit} positions are too few for a sentence and the {len(behind)} pieces of the question")
    examples.ids, examples.cut = [], 0
    for sentence in examples.sentences:
        ids = tokenizer.encode(f"{sentence} {suffix}" if suffix else sentence, bos=True, eos=False)
        if len(ids) > room + 1 + len(behind):
            own = tokenizer.encode(sentence, bos=True, eos=False)
            ids = own[: room + 1] + behind
            examples.cut += len(own) > room + 1
        examples.ids.append(ids)
    return examples


def content_free_ids(tokenizer: AnyTokenizer, suffix: str) -> list[list[int]]:
    """Prompts that ask the question of nothing (Zhao et al. 2021, section 5)."""
    return [tokenizer.encode(f"{text} {suffix}".lstrip(), bos=True, eos=False) for text in CONTENT_FREE]


class SentenceBatches:
    """Batches of `batch_size` examples of like length, padded right to their own longest.

    An epoch's order depends on (seed, epoch) alone: lengths grow a little at random, sorted, cut into batches, and
    the batches shuffled. So neighbours and batches change, but hardly any padding is computed.
    """

    def __init__(self, examples: Examples, batch_size: int, pad_id: int, seed: int = 0):
        self.examples, self.batch_size, self.pad_id, self.seed = examples, batch_size, pad_id, seed
        self.lengths = np.asarray([len(ids) for ids in examples.ids])

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The example numbers of each batch of an epoch."""
        random = np.random.default_rng((self.seed, epoch))
        stretched = self.lengths + random.uniform(0.0, LENGTH_NOISE[0] + LENGTH_NOISE[1] * self.lengths)
        batches = self._cut(np.argsort(stretched, kind="stable"))
        return [batches[place] for place in random.permutation(len(batches))]

    def in_order(self) -> list[np.ndarray]:
        """Batches from the longest example to the shortest, for measuring: what does not fit fails at once."""
        return self._cut(np.argsort(-self.lengths, kind="stable"))

    def as_filed(self) -> list[np.ndarray]:
        """Batches in the file's own order, for a reading that depends on the batch (`--pooling last_column`)."""
        return self._cut(np.arange(len(self.lengths)))

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def tensors(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Ids (rows, longest), padded by `pad_id`, and labels (rows,) of a batch."""
        rows = [self.examples.ids[number] for number in batch]
        return pad(rows, self.pad_id), torch.tensor([self.examples.labels[number] for number in batch])
