"""Checks the rotary positions: rotated queries and keys against golden values, and the course's if present.

    python rope_test.py
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys

import torch

from engine.io import golden_check
from engine.io.checkpoint import load_plain
from rope import apply_rotary_emb

COURSE_FILES = ["rotary_embedding_actual.data"]


def ours() -> None:
    """Queries and keys rotated as complex numbers in float64 NumPy."""
    expected = golden_check.load("rope")
    query, key = torch.from_numpy(expected["query"]).float(), torch.from_numpy(expected["key"]).float()
    turned = apply_rotary_emb(query, key, query.shape[-1], max_seq_len=20, theta=float(expected["theta"]))
    for name, actual in zip(("query", "key"), turned, strict=True):
        golden_check.agree(f"the turned {name} values", actual, expected[f"turned_{name}"], atol=1e-6, rtol=1e-6)


def course() -> None:
    """The course's constant query and key of two positions and two heads."""
    expected = load_plain(golden_check.ROOT / COURSE_FILES[0])
    turned = apply_rotary_emb(torch.full((1, 2, 2, 4), 2.0), torch.full((1, 2, 2, 4), 3.0), 4, 20)
    for name, actual, wanted in zip(("query", "key"), turned, expected, strict=True):
        golden_check.agree(f"the course's turned {name} values", actual, wanted, atol=1e-8, rtol=1e-5)


if __name__ == "__main__":
    sys.exit(golden_check.run_check("Rotary embedding test passed!", ours, course, COURSE_FILES))
