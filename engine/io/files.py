"""Atomic writes, text reading, and path checks before any work is done.

    python -c "from engine.io import files; files.write_text('hello.txt', 'hello')"
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.io import locks

BYTE_ORDER_MARKS = {  # UTF-32's first: its little-endian mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be", codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
NO_MARK = (b"", "utf-8")
HALF_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is valid only in a pair


class FileError(ValueError):
    """A file that cannot be used; the message names it, the reason and what to do."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder and, if the block succeeds, renames it to `path`.

    An interrupted or failing block leaves the previous file, and no temporary one; what a killed process left of an
    earlier attempt is removed. Raises OSError, which names `path`, if the disk is full.
    """
    path, handle, name = Path(path), None, ""
    try:
        handle, name = _new_temporary(path)
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and _is_about(error, path):
            raise type(error)(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _new_temporary(path: Path) -> tuple[int, str]:
    """A temporary file for `path`, locked while it is written: an open handle and its name."""
    locks.remove_abandoned(path.parent, f".{path.name}.")
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        if locks.lock(handle) is not False and os.path.exists(name):
            return handle, name
        os.close(handle)  # another process took it for an abandoned one


def _is_about(error: OSError, path: Path) -> bool:
    """Whether the system's error names no file, or the temporary one of `path`."""
    named = error.filename
    return error.errno is not None and (named is None or Path(str(named)).name.startswith(f".{path.name}."))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 with Unix line endings, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes `content` as indented JSON, atomically."""
    write_text(path, json_text(content, indent) + "\n")


def json_text(content: Any, indent: int | None = None) -> str:
    """`content` as JSON; a number that is not finite, which JSON cannot hold, becomes null at any depth."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def as_written(path: str | os.PathLike) -> Iterator[None]:
    """Turns the error of a missing or odd field within the block into a FileError that names the file."""
    try:
        yield
    except FileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(f"{path} is not as this program writes it ({reason}): make it again") from None


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file in hexadecimal; for a folder, the SHA-256 of the names and digests of its files."""
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).iterdir() if file.is_file())
        return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: str | os.PathLike) -> Path:
    """The file beside `path` that holds its checksum, in the format of the command sha256sum."""
    return Path(f"{path}.sha256")


def write_sidecar(path: str | os.PathLike) -> None:
    """Writes the checksum of a file whose format has none beside it."""
    write_text(sidecar(path), f"{sha256_of(path)}  {Path(path).name}\n")


def check_sidecar(path: str | os.PathLike) -> None:
    """Raises ValueError if a checksum lies beside the file and does not fit it."""
    if not sidecar(path).is_file() or not Path(path).is_file():
        return
    expected = sidecar(path).read_bytes()[:64].decode("ascii", "replace").lower()
    if expected != sha256_of(path):
        raise ValueError(
            f"{path} is damaged: {sidecar(path).name} beside it has another checksum; copy or download it again "
            f"(or delete {sidecar(path).name}, if you replaced the file)"
        )


@contextmanager
def appended(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields a function that appends texts to `path`.partial, which is removed if the block succeeds.

    Without a path nothing is written.
    """
    if path is None:
        yield lambda text: None
        return
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "a", encoding="utf-8", newline="\n") as file:
        if locks.lock(file.fileno()) is False:
            raise BlockingIOError(f"another run writes {path} now: wait for it, or name another file")
        file.truncate(0)

        def keep(text: str) -> None:
            file.write(text)
            file.flush()

        yield keep
        partial.unlink()


def decode_text(data: bytes, name: str | os.PathLike) -> str:
    """The text of a file's bytes: UTF-8, or the encoding that a byte-order mark names; every line ends with `\\n`.

    The mark is dropped. Lines end at `\\n`, `\\r\\n` and `\\r` only, not at U+0085, U+2028 and the like.
    Raises ValueError, with `name` and the first bad byte, for bytes that are not text.
    """
    mark, encoding = next(((mark, code) for mark, code in BYTE_ORDER_MARKS.items() if data.startswith(mark)), NO_MARK)
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        start, name_of_it = len(mark) + error.start, encoding.upper().removesuffix("-LE").removesuffix("-BE")
        raise FileError(f"{name} is not {name_of_it} text: byte {start} is 0x{data[start]:02x}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, as `decode_text` has it. Raises ValueError for another file, OSError if it cannot be read."""
    return decode_text(Path(path).read_bytes(), path)


def parse_json(text: str, name: str | os.PathLike) -> Any:
    """The value of a JSON text. Raises ValueError, with `name`, for a text that is not JSON or holds no valid text."""
    try:
        value = json.loads(text)
        if HALF_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise FileError(f"{name} is not usable JSON: it is nested too deeply") from None
    except UnicodeEncodeError:
        raise FileError(f"{name} is not usable JSON: a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise FileError(f"{name} is not JSON: {error}") from None
    except ValueError:  # Python refuses to convert very long numbers
        raise FileError(f"{name} is not usable JSON: a number has too many digits") from None
    return value


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file. Raises ValueError or OSError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), path)


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for any other content, OSError if the file cannot be read."""
    content = read_json(check_readable(path))
    if not isinstance(content, dict):
        raise FileError(f"{path} is not a JSON object")
    return content


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
