"""What ships with the repository, and how commands avoid overwriting it.

    python run_llama.py --option tokenizer --corpus TEXT --tokenizer runs/mine.model
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "results", "addition_models", "docs", "recipes", "data")


def is_shipped(path: str | os.PathLike) -> bool:
    """True for an existing file in one of the folders that ship beside the code."""
    path = Path(path).resolve()
    return path.is_file() and any(path.is_relative_to(ROOT / name) for name in FOLDERS)


def is_tracked(path: str | os.PathLike) -> bool:
    """True for an existing file that git tracks; False without git, as in an unpacked zip."""
    path = Path(path).resolve()
    words = ["git", "ls-files", "--error-unmatch", path.name]
    try:
        asked = subprocess.run(words, cwd=path.parent, capture_output=True, check=False)
    except OSError:
        return False
    return path.is_file() and asked.returncode == 0


def check_not_shipped(path: str | os.PathLike, overwrite: bool, flag: str) -> None:
    """Raises ValueError if `path` would replace a shipped file and `overwrite` is not set."""
    if is_shipped(path) and not overwrite:
        raise ValueError(f"{flag} {path} ships with the project: write to runs/, or replace it with --overwrite")
