"""Addition problems `a+b=c` with four-digit operands: numbering, sampling and text. Pure functions.

    python -c "from tasks.addition.problems import *; print(problem_text(*sample_problems(3, seed=0)).decode())"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.io.files import decode_text

CHARS = list("+0123456789=")  # token ids 1 to 12; 0 starts, ends and pads
EQUALS = 12
IGNORED = -1  # a target that does not count
MAX_WORD_LENGTH = 15  # `9999+9999=19998`
LOW, HIGH = 1000, 9999
OPERANDS = HIGH - LOW + 1  # 9,000
PAIRS = OPERANDS * (OPERANDS + 1) // 2  # 40,504,500 unordered pairs, equal operands included


def pair_number(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number of the unordered pair {a, b}, from 0 to PAIRS − 1: row by row of the lower triangle."""
    large, small = np.maximum(a, b) - LOW, np.minimum(a, b) - LOW
    return (large * (large + 1) >> 1) + small


def pair_of(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair (a ≥ b) of a number: the inverse of `pair_number`."""
    large = ((np.sqrt(8.0 * number + 1.0) - 1.0) / 2.0).astype(np.int64)
    return large + LOW, number - (large * (large + 1) >> 1) + LOW


def sample_problems(n: int, seed: int, excluded: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """n distinct unordered pairs in random order, operands in either order: a and b, each (n,) int64.

    `excluded` holds pair numbers to leave out. Raises ValueError if fewer than n problems are left.
    """
    excluded = np.unique(excluded) if excluded is not None else np.empty(0, dtype=np.int64)
    left = PAIRS - len(excluded)
    if n < 0 or n > left:
        without = f" once {len(excluded):,} are excluded" if len(excluded) else ""
        raise ValueError(f"{n:,} problems were asked for, but only {left:,} different ones exist{without}")
    random = np.random.default_rng(seed)
    ranks = random.choice(left, size=n, replace=False)
    large, small = pair_of(_skip(ranks, excluded))
    swapped = random.random(n) < 0.5
    return np.where(swapped, small, large), np.where(swapped, large, small)


def _skip(ranks: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """The numbers at these ranks among those not in the sorted `excluded`."""
    return ranks + np.searchsorted(excluded - np.arange(len(excluded)), ranks, side="right")


def problem_text(a: np.ndarray, b: np.ndarray) -> bytes:
    """The lines `a+b=c` of all problems, without a newline at the end."""
    c = a + b
    rows = np.empty((len(a), 16), dtype=np.uint8)
    for column, (number, places) in {0: (a, 4), 5: (b, 4), 10: (c, 5)}.items():
        for place in range(places):
            rows[:, column + place] = number // 10 ** (places - 1 - place) % 10 + ord("0")
    rows[:, [4, 9, 15]] = np.frombuffer(b"+=\n", dtype=np.uint8)
    kept = np.ones(rows.shape, dtype=bool)
    kept[:, 10] = c >= 10000  # a four-digit sum has no leading zero
    return rows[kept].tobytes()[:-1]


def read_problems(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The operands of a file of problems, each (lines,) int64; blank lines are skipped.

    Raises OSError, or ValueError naming the line that is not `a+b=c` with four-digit operands and the right c.
    """
    data = Path(path).read_bytes()
    operands = _operands_of_clean_text(data.rstrip(b"\n"))
    if operands is not None:
        return operands
    lines = enumerate(decode_text(data, path).split("\n"), 1)
    parsed = [_parsed(line.strip(), f"{path}, line {number}") for number, line in lines if line.strip()]
    if not parsed:
        raise ValueError(f"{path} holds no problem")
    a, b = np.asarray(parsed, dtype=np.int64).T
    return a, b


def _operands_of_clean_text(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads all lines at once; None unless the text is exactly what `problem_text` writes for the operands."""
    data = np.frombuffer(text, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1])
    if not len(data) or starts[-1] + 9 > len(data):
        return None
    columns = np.asarray([[0, 1, 2, 3], [5, 6, 7, 8]])[:, :, None]  # of a's and b's digits in a line
    digits = data[starts + columns].astype(np.int64) - ord("0")  # (2, 4, lines)
    a, b = np.einsum("ijk,j->ik", digits, 10 ** np.arange(3, -1, -1))
    inside = (a >= LOW) & (a <= HIGH) & (b >= LOW) & (b <= HIGH)
    return (a, b) if inside.all() and problem_text(a, b) == text else None


def _parsed(line: str, place: str) -> tuple[int, int]:
    left, equals, answer = line.partition("=")
    first, plus, second = left.partition("+")
    if not (equals and plus and all(part.isascii() and part.isdigit() for part in (first, second, answer))):
        raise ValueError(f"{place}: not a problem of the form a+b=c: {line[:40]!r}")
    if len(first) != 4 or len(second) != 4 or "0" in (first[0], second[0]):
        raise ValueError(f"{place}: operands must be from {LOW} to {HIGH}: {line[:40]!r}")
    if answer.lstrip("0") != str(int(first) + int(second)):
        raise ValueError(f"{place}: the sum is wrong: {line[:40]!r}")
    return int(first), int(second)


def encode_problems(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows x and y of all problems at once, each (n, 16) uint8 and int8, as `addition_lib.CharDataset` has them."""
    c = a + b
    x = np.zeros((len(a), MAX_WORD_LENGTH + 1), dtype=np.uint8)
    for place in range(4):
        x[:, 1 + place] = a // 10 ** (3 - place) % 10 + 2
        x[:, 6 + place] = b // 10 ** (3 - place) % 10 + 2
    x[:, 5], x[:, 10] = 1, EQUALS
    five = c >= 10000
    digits = np.stack([c // 10 ** (4 - place) % 10 for place in range(5)], axis=1) + 2
    x[:, 11:16] = np.where(five[:, None], digits, np.roll(digits, -1, axis=1))
    x[~five, 15] = 0
    y = np.zeros_like(x, dtype=np.int8)
    y[:, :-1] = x[:, 1:]
    y[~five, 15] = IGNORED
    return torch.from_numpy(x), torch.from_numpy(y)
