"""Packages that only some formats need: imported when they are used, and named where they are missing.

    python -c "from engine.io.packages import needed; print(needed('safetensors.torch', 'Hugging Face folders'))"
"""

from __future__ import annotations

import importlib
from typing import Any


def needed(name: str, purpose: str, install: str | None = None) -> Any:
    """The module `name`. Raises ValueError, with the purpose and how to install its package, where it is missing."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError:
        how = f"pip install {install or package}"
        raise ValueError(f"{purpose} need the package {package}: {how}") from None
