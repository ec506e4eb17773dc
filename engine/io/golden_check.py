"""Golden values, and the common part of the three course checks.

Our values come from `tests/golden/make_golden.py` in float64 NumPy; the course's files are compared too if present.

    python sanity_check.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of `tests/golden/NAME.npz`."""
    with np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def agree(what: str, actual: Tensor, expected: Tensor | np.ndarray, atol: float = 1e-5, rtol: float = 1e-3) -> None:
    """Raises ValueError, with the largest difference, unless |actual − expected| ≤ atol + rtol·|expected|.

    The tolerances are the course's.
    """
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    if actual.shape != expected.shape:
        raise ValueError(f"{what} have shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if not torch.allclose(actual, expected, atol=atol, rtol=rtol):
        raise ValueError(f"{what} differ by up to {(actual - expected).abs().max().item():.2e}")


def run_check(sentence: str, ours: Callable[[], None], course: Callable[[], None], course_files: list[str]) -> int:
    """Runs our check, and the course's if its files are present; prints `sentence` and returns 0 on success, else 1."""
    missing = [name for name in course_files if not (ROOT / name).is_file()]
    try:
        ours()
        if missing:
            print(f"{', '.join(missing)} not found: compared with our own golden values only")
        else:
            course()
    except ValueError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    print(sentence)
    return 0
