"""Broken and malicious checkpoints, drawn by seed, are loaded or refused: no traceback, no code run, no 2 GB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(1000, 10_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_fuzzed_checkpoints_are_loaded_or_refused_in_one_line(count, seed):
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint_fuzz", str(count), "--seed", str(seed)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    assert outcomes["loaded"] + outcomes["refused"] == count and outcomes["loaded"] >= count // 50
    assert outcomes["refused"] >= count // 2 and outcomes["memory"] < 2 << 30
