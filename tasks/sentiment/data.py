"""Labelled sentences in the course's format, tokenised once and batched by length.

A data file has one example per line, `label ||| sentence`; a label mapping is a JSON list of names, label 0 first.

    python -c "from tasks.sentiment.data import *; print(len(read_examples('data/reviews-dev.txt', num_labels=2)))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from engine.io.files import check_readable, read_json, read_text
from engine.train.batches import LengthBatches
from tokenizer import AnyTokenizer
from utils import pad

SEPARATOR = "|||"
REVIEW_QUESTION = "Is this movie {names}? This movie is "  # the course's
UNLABELLED = -1  # the placeholder that the course's README describes; its files contain 0
PLACEHOLDER_COUNT = 20  # this many labels that are all equal must be placeholders
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, section 5


@dataclass
class Examples:
    """The content of a data file: labels (UNLABELLED if there are none), sentences, and their ids once tokenised."""

    path: Path
    labels: list[int]
    sentences: list[str]
    ids: list[list[int]] = field(default_factory=list)
    truncated: int = 0  # number of sentences cut to the limit
    weights: list[float] = field(default_factory=list)  # in the training loss; empty: all weigh 1

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, indices: Sequence[int]) -> Examples:
        """The examples at `indices`, with their ids if they are tokenised."""
        columns = (self.labels, self.sentences, self.ids, self.weights)
        labels, sentences, ids, weights = ([column[index] for index in indices if column] for column in columns)
        return Examples(self.path, labels, sentences, ids, weights=weights)

    def extended(self, extra: Examples, weight: float) -> Examples:
        """These examples and `extra` ones, whose weight in the training loss is `weight`; not yet tokenised."""
        weights = [*(self.weights or [1.0] * len(self)), *[weight] * len(extra)]
        return Examples(self.path, self.labels + extra.labels, self.sentences + extra.sentences, weights=weights)

    @property
    def placeholder(self) -> bool:
        """True if the labels carry no information: all are UNLABELLED, or all of many are the same."""
        return set(self.labels) == {UNLABELLED} or (len(self) >= PLACEHOLDER_COUNT and len(set(self.labels)) == 1)


def balanced(labels: Sequence[int], size: int, seed: int) -> list[int]:
    """Indices, in ascending order, of `size` examples drawn by `seed` with as equal counts of all labels as can be.

    Labels take turns in a random order; one that has run out leaves its turn to the others. The draw for a smaller
    size with the same seed is part of the draw for a larger one.
    """
    random = Random(seed)
    order, turns = list(range(len(labels))), sorted(set(labels))
    random.shuffle(order)
    random.shuffle(turns)
    drawn = dict.fromkeys(turns, 0)
    keyed = []
    for index in order:
        label = labels[index]
        keyed.append((drawn[label], turns.index(label), index))
        drawn[label] += 1
    return sorted(index for *_, index in sorted(keyed)[:size])


def read_label_names(path: str | Path) -> list[str]:
    """The names of the labels 0, 1, … from a JSON list of at least two different strings.

    Raises OSError for a file that cannot be read and ValueError for other content.
    """
    names = read_json(check_readable(path))
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f'{path} is not a label mapping, which is a JSON list of names such as ["bad", "good"]')
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{path} is not a label mapping: it needs at least two names, all different")
    return names


def read_examples(path: str | Path, num_labels: int) -> Examples:
    """Reads a data file; see `parse_examples`. Raises OSError for a file that cannot be read."""
    return parse_examples(read_text(check_readable(path)), Path(path), num_labels)


def parse_examples(text: str, path: Path, num_labels: int) -> Examples:
    """The examples in `text`, which was read from `path`. Blank lines are skipped.

    Raises ValueError, with path and line number, for a line without the separator, an empty sentence, or a label
    outside 0 … num_labels − 1 (but all labels may be −1).
    """
    numbered = _numbered_lines(text, path)
    parsed = [_parse(f"{path}, line {number}", line) for number, line in numbered]
    labels, sentences = (list(column) for column in zip(*parsed, strict=True))
    if set(labels) != {UNLABELLED}:
        for (number, _), label in zip(numbered, labels, strict=True):
            if not 0 <= label < num_labels:
                raise ValueError(f"{path}, line {number}: label {label} is not in the mapping (0 to {num_labels - 1})")
    return Examples(path, labels, sentences)


def parse_sentences(text: str, path: Path, num_labels: int) -> Examples:
    """The sentences in `text`, one per line, labelled if the first line reads `label ||| sentence`.

    Raises ValueError as `parse_examples` does.
    """
    lines = _numbered_lines(text, path)
    label, separator, _ = lines[0][1].partition(SEPARATOR)
    if separator and label.strip().lstrip("-").isdecimal():
        return parse_examples(text, path, num_labels)
    return Examples(path, [UNLABELLED] * len(lines), [line.strip() for _, line in lines])


def _numbered_lines(text: str, path: Path) -> list[tuple[int, str]]:
    """(number, line) of all lines that are not blank. ValueError if there are none."""
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no example")
    return numbered


def _parse(position: str, line: str) -> tuple[int, str]:
    label, separator, sentence = line.partition(SEPARATOR)
    if not separator:
        raise ValueError(f"{position}: no '{SEPARATOR}' between label and sentence")
    if not sentence.strip():
        raise ValueError(f"{position}: the sentence is empty")
    try:
        return int(label), sentence.strip()
    except ValueError:
        raise ValueError(f"{position}: the label {label.strip()[:40]!r} is not a whole number") from None


def prompt_suffix(label_names: Sequence[str], question: str = REVIEW_QUESTION) -> str:
    """The course's question, with a space at its end: `Is this movie bad or good? This movie is `."""
    if len(label_names) == 2:
        listed = " or ".join(label_names)
    else:
        listed = ", ".join(label_names[:-1]) + f", or {label_names[-1]}"
    return question.replace("{names}", listed)


def tokenise(
    examples: Examples, tokenizer: AnyTokenizer, limit: int, max_len: int | None = None, suffix: str = ""
) -> Examples:
    """Fills in the ids of every sentence: BOS, the sentence, and `suffix` if one is given. Returns `examples`.

    A sentence is truncated to `max_len` tokens, and so that BOS, sentence and suffix have at most `limit` tokens.
    """
    suffix_ids = tokenizer.encode(suffix, bos=False, eos=False) if suffix else []
    longest = limit - 1 - len(suffix_ids)
    longest = longest if max_len is None else min(longest, max_len)
    if longest < 1:
        raise ValueError(f"{limit} positions are too few for a sentence and {len(suffix_ids)} tokens of the question")
    examples.ids, examples.truncated = [], 0
    for sentence in examples.sentences:
        ids = tokenizer.encode(f"{sentence} {suffix}" if suffix else sentence, bos=True, eos=False)
        if len(ids) > longest + 1 + len(suffix_ids):
            sentence_ids = tokenizer.encode(sentence, bos=True, eos=False)
            ids = sentence_ids[: longest + 1] + suffix_ids
            examples.truncated += len(sentence_ids) > longest + 1
        examples.ids.append(ids)
    return examples


def content_free_ids(tokenizer: AnyTokenizer, suffix: str) -> list[list[int]]:
    """The question after content-free inputs (Zhao et al. 2021, section 5), as ids."""
    return [tokenizer.encode(f"{text} {suffix}".lstrip(), bos=True, eos=False) for text in CONTENT_FREE]


class SentenceBatches(LengthBatches):
    """Batches of `batch_size` examples of similar length, right-padded to the longest of the batch."""

    def __init__(self, examples: Examples, batch_size: int, pad_id: int, seed: int = 0):
        super().__init__([len(ids) for ids in examples.ids], batch_size, seed)
        self.examples, self.pad_id = examples, pad_id

    def tensors(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Ids (rows, longest), padded with `pad_id`, and labels (rows,) of a batch."""
        rows = [self.examples.ids[number] for number in batch]
        return pad(rows, self.pad_id), torch.tensor([self.examples.labels[number] for number in batch])

    def weights(self, batch: np.ndarray) -> Tensor | None:
        """Weights (rows,) of a batch in the training loss, or None if all weigh 1."""
        if not self.examples.weights:
            return None
        return torch.tensor([self.examples.weights[number] for number in batch])
