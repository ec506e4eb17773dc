"""The data sets that `--task` names: their labels, their zero-shot question, and the columns of their tables.

    python run_llama.py --option prompt --task sst2 --dev dev.tsv --test test.tsv \\
        --dev_out sst2-dev-prompting-output.txt --test_out sst2-test-prompting-output.txt

`reviews` is the course's format, `label ||| sentence`; the other data sets are tables (.tsv or .csv).
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import check_readable, read_text
from tasks.sentiment.data import REVIEW_QUESTION, Examples, parse_examples

TABLES = (".tsv", ".csv")
ESCAPES = ((" #39;", "'"), ("#39;", "'"), ("quot;", '"'), ("#36;", "$"), ("&lt;", "<"), ("&gt;", ">"))
NEWS_QUESTION = "Is this news about {names}? This news is about "
NEWS_NAMES = ("world", "sports", "business", "technology")
NEWS_LABELS = ("World", "Sports", "Business", "Sci/Tech")  # as the files spell them


@dataclass(frozen=True)
class DataSet:
    """Labels, question and columns of a data set.

    `names` are the default label names (None: those of --label-names), and `spellings` the labels that may stand in a
    file besides their numbers, which start at `first`. `text_column` counts from the last column: 1 is the last.
    """

    question: str = REVIEW_QUESTION
    names: tuple[str, ...] | None = None
    spellings: tuple[str, ...] = ()
    first: int = 0
    text_column: int = 1


DATA_SETS = {
    "reviews": DataSet(),
    "sst2": DataSet(names=("bad", "good")),
    "agnews": DataSet(NEWS_QUESTION, NEWS_NAMES, NEWS_LABELS, first=1),
    "agnews_titles": DataSet(NEWS_QUESTION, NEWS_NAMES, NEWS_LABELS, first=1, text_column=2),
}


def read_data_set(path: str | Path, task: str, label_names: Sequence[str]) -> Examples:
    """Reads a file of a data set: a table if its name ends in .tsv or .csv, else lines `label ||| sentence`.

    Raises OSError for a file that cannot be read and ValueError, with the line, for content that does not fit.
    """
    path, text = Path(path), read_text(check_readable(path))
    if path.suffix not in TABLES:
        return parse_examples(text, path, len(label_names))
    return parse_table(text, path, DATA_SETS[task], len(label_names))


def parse_table(text: str, path: Path, data_set: DataSet, num_labels: int) -> Examples:
    """The examples of a table. A first row without a label is a header, and is skipped.

    Labels are numbers from `data_set.first`, or the spellings of the data set; their column is the one that holds most
    of them. Raises ValueError, with path and line, for a row that does not fit.
    """
    rows = list(_rows(text, path))
    if rows and all(_label(cell, data_set, num_labels) is None for cell in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} holds no example")
    width = len(rows[0][1])
    counts = [0] * width
    for _, cells in rows:
        for column, cell in enumerate(cells[:width]):
            counts[column] += _label(cell, data_set, num_labels) is not None
    label_column = counts.index(max(counts))
    text_columns = [column for column in range(width) if column != label_column]
    if len(text_columns) < data_set.text_column:
        raise ValueError(f"{path} has {width} columns, but needs a label and {data_set.text_column} columns of text")
    columns = label_column, text_columns[-data_set.text_column]
    parsed = [_example(f"{path}, line {line}", cells, width, columns, data_set, num_labels) for line, cells in rows]
    labels, sentences = (list(column) for column in zip(*parsed, strict=True))
    return Examples(path, labels, sentences)


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank; cells of a .csv file may be quoted."""
    source = io.StringIO(text.removeprefix("\ufeff"), newline="")
    quoting = csv.QUOTE_MINIMAL if path.suffix == ".csv" else csv.QUOTE_NONE
    reader = csv.reader(source, delimiter="," if path.suffix == ".csv" else "\t", quoting=quoting, strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _example(
    position: str, cells: list[str], width: int, columns: tuple[int, int], data_set: DataSet, num_labels: int
) -> tuple[int, str]:
    """Label and sentence of a row; `columns` are those of the label and the text."""
    if len(cells) != width:
        raise ValueError(f"{position}: {len(cells)} columns, not {width}")
    label, sentence = _label(cells[columns[0]], data_set, num_labels), clean(cells[columns[1]])
    if label is None:
        raise ValueError(f"{position}: {cells[columns[0]]!r} is not a label of this task")
    if not sentence:
        raise ValueError(f"{position}: the sentence is empty")
    return label, sentence


def _label(value: str, data_set: DataSet, num_labels: int) -> int | None:
    """The label number of a cell, or None if it is no label."""
    value = value.strip()
    if value in data_set.spellings:
        return data_set.spellings.index(value)
    if not (value.isascii() and value.isdecimal() and len(value) <= 3):
        return None
    label = int(value) - data_set.first
    return label if 0 <= label < num_labels else None


def clean(text: str) -> str:
    """Text without AG News' left-over escapes, on one line: `it #39;s` -> `it's`; a backslash is a line break."""
    for escape, character in ESCAPES:
        text = text.replace(escape, character)
    return " ".join(text.replace("\\", " ").split())


def letters_of(sentence: str) -> str:
    """Letters and digits in lower case: two sentences that agree in them count as the same."""
    return "".join(character for character in sentence.lower() if character.isalnum())


def without(examples: Examples, held_out: Iterable[Examples]) -> tuple[Examples, int]:
    """`examples` without the sentences that stand in `held_out`, and how many were left out."""
    known = {letters_of(sentence) for other in held_out for sentence in other.sentences}
    kept = [index for index, sentence in enumerate(examples.sentences) if letters_of(sentence) not in known]
    return examples.chosen(kept), len(examples) - len(kept)


def split_off(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """(training examples, dev examples): a random share of the examples, chosen by `seed`, becomes the dev set."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    count = max(1, round(share * len(examples)))
    return examples.chosen(sorted(order[count:])), examples.chosen(sorted(order[:count]))
