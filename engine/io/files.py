"""Atomic writes, text reading, and path checks before any work is done.

    python -c "from engine.io import files; files.write_text('hello.txt', 'hello')"
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder and, if the block succeeds, renames it to `path`.

    An interrupted or failing block leaves the previous file, and no temporary one.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 with Unix line endings, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, content: Any, indent: int = 2) -> None:
    """Writes `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, read in blocks, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def appended(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields a function that appends texts to `path`.partial, which is removed if the block succeeds.

    Without a path nothing is written.
    """
    if path is None:
        yield lambda text: None
        return
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:

        def keep(text: str) -> None:
            file.write(text)
            file.flush()

        yield keep
    partial.unlink()


def read_text(path: str | os.PathLike) -> str:
    """Reads UTF-8 text; ValueError names the byte that is not UTF-8, OSError a file that cannot be read."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None


def check_readable(path: str | os.PathLike) -> Path:
    """The path, if it is a file that can be read; otherwise an OSError that says what is wrong."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"no permission to read {path}")
    return path


def check_writable(path: str | os.PathLike) -> Path:
    """The path, if a file can be written there; otherwise an OSError that says what is wrong. Nothing is created."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(f"cannot write {path}: no permission")
    return path
