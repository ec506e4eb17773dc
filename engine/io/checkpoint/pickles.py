"""Torch files in and out: tensors, plain types and a few data classes, never pickled code.

    python -c "from engine.io.checkpoint import load_plain; print(load_plain('models/stories.pt')['config'])"
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import struct
import types
from pathlib import Path

import numpy as np
import torch

from engine.io.checkpoint.contents import CheckpointError
from engine.io.checkpoint.identify import is_zip, what_it_is
from engine.io.files import atomic_path, check_readable

SAFE = [  # classes that are data and may be unpickled, beside torch's own list
    argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, np._core.multiarray._reconstruct,
    np._core.multiarray.scalar, *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
]  # fmt: skip


def save_plain(content: dict, path: str | os.PathLike) -> None:
    """`torch.save` through a temporary file: an interrupted write leaves the previous file."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_plain(path: str | os.PathLike, mapped: bool = True) -> dict:
    """`torch.load` of tensors, plain types and the data classes in `SAFE`, without running pickled code.

    Memory-mapped if the file allows it and `mapped` is set. Raises CheckpointError for a file that is cut short, is not
    a torch file, or contains any other class.
    """
    path = check_readable(path)
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} was not loaded: {_why_refused(path, str(error))}") from None
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, AttributeError, TypeError, struct.error):
        raise CheckpointError(f"{path} was not loaded: {what_it_is(path)}") from None


def _why_refused(path: Path, message: str) -> str:
    """The class that the restricted reader refused, with the way to save the file otherwise; or what the file is."""
    if (match := re.search(r"GLOBAL ([\w.]+)", message)) is None:
        return what_it_is(path)
    return f"it contains {match[1]}, not only tensors and plain types; save model.state_dict() and plain values instead"
