"""Torch files in and out: tensors, plain types and a few data classes, never pickled code.

    python -c "from engine.io.checkpoint import load_plain; print(load_plain('models/stories.pt')['config'])"
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.io.checkpoint.archive import check_archive
from engine.io.checkpoint.contents import CheckpointError
from engine.io.checkpoint.identify import is_zip, what_it_is
from engine.io.files import atomic_path, check_readable

SCALAR = re.compile(r"[<>|=]?[?biufcSU]\d{0,3}")  # codes of NumPy types that take little memory
GREEDY = re.compile(  # names on torch's own list that take memory or time without limit, and that no checkpoint needs
    rb"\n(bytearray|[A-Za-z]*Tensor|_rebuild_(?!tensor\n|tensor_v\d\n|parameter)\w+)\n"
)
CONFIG_CLASS = re.compile(r"[\w.]*(Config|Args|Arguments|Params)")  # classes that are read as their fields
MOST_CONFIG_CLASSES = 8
LONGEST_PICKLE = 1 << 26  # bytes


class _Fields(types.SimpleNamespace):
    """Stands for a configuration object of another program: its fields, without its code."""

    def __init__(self, *_arguments: Any):
        super().__init__()


class _Array(np.ndarray):
    """Stands for `numpy.ndarray` in a pickle: begins empty, so that no file can ask for memory it does not fill."""

    def __new__(cls, *_arguments: Any) -> _Array:
        return super().__new__(cls, (0,), "b")


def _empty_array(*_arguments: Any) -> _Array:
    return _Array()


def _scalar_type(code: str | bytes, *_arguments: Any) -> np.dtype:
    """Stands for `numpy.dtype`: types of plain numbers and short strings only."""
    text = code.decode("ascii") if isinstance(code, bytes) else code
    if not SCALAR.fullmatch(text):
        raise ValueError(f"NumPy type {text[:20]}")
    return np.dtype(text)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    if dtype.itemsize != len(data):
        raise ValueError("a NumPy scalar of another size than its type")
    return np._core.multiarray.scalar(dtype, data)


SAFE = [  # what may be unpickled, beside torch's own list: data only, and for NumPy under the names of 1.x and 2.x
    argparse.Namespace, types.SimpleNamespace, _Array, (_Array, "numpy.ndarray"), (_scalar_type, "numpy.dtype"),
    *((stand_in, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
      for name, stand_in in (("_reconstruct", _empty_array), ("scalar", _scalar))),
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
]  # fmt: skip


def save_plain(content: dict, path: str | os.PathLike) -> None:
    """`torch.save` through a temporary file: an interrupted write leaves the previous file. OSError on a full disk."""
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch's writer raises where a file cannot grow
            reason = str(error).strip().splitlines()[0]
            raise OSError(f"cannot write {path}: is the disk full? (torch: {reason})") from error


def load_plain(path: str | os.PathLike) -> Any:
    """`torch.load` of tensors, plain types and the data classes in `SAFE`, without running pickled code.

    Memory-mapped if the file allows it. Raises CheckpointError for a file that is cut short or damaged, is not a torch
    file, or contains any other class. Objects of a class named like a configuration are read as their fields.
    """
    path = check_readable(path)
    _check_calls(path, check_archive(path) if is_zip(path) else _beginning(path))
    configs: list[Any] = []
    while True:
        try:
            return _load(path, SAFE + configs)
        except pickle.UnpicklingError as error:
            name = _refused_class(str(error))
            if name is None or not CONFIG_CLASS.fullmatch(name) or len(configs) == MOST_CONFIG_CLASSES:
                raise CheckpointError(f"{path} was not loaded: {_why_refused(path, name)}") from None
            configs.append((_Fields, name))
        except Exception:  # a damaged pickle can raise anything, MemoryError and RecursionError included
            raise CheckpointError(f"{path} was not loaded: {what_it_is(path)}") from None


def _load(path: Path, safe: list[Any]) -> Any:
    with torch.serialization.safe_globals([_Fields, *safe]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: the result or the error says enough
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))


def _beginning(path: Path) -> bytes:
    """The first bytes of a file of torch's older format, which begins with its pickle."""
    with open(path, "rb") as file:
        return file.read(LONGEST_PICKLE)


def _check_calls(path: Path, pickled: bytes) -> None:
    """Refuses names that torch's restricted reader calls although they take memory or time without limit."""
    if (match := GREEDY.search(pickled)) is not None:
        raise CheckpointError(f"{path} was not loaded: {_why_refused(path, match[1].decode('ascii'))}")


def _refused_class(message: str) -> str | None:
    match = re.search(r"GLOBAL ([\w.]+)", message)
    return match[1] if match else None


def _why_refused(path: Path, name: str | None) -> str:
    """The class that the restricted reader refused, with the way to save the file otherwise; or what the file is."""
    if name is None:
        return what_it_is(path)
    only = "not only tensors and plain types; save model.state_dict() and plain values instead"
    return f"it contains {name[:100]}, {only}"
