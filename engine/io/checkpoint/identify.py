"""What a file is that cannot be read as a checkpoint, and what to do about it.

    python -c "from engine.io.checkpoint.identify import what_it_is; print(what_it_is('README.md'))"
"""

from __future__ import annotations

import os

GGUF_MAGIC = b"GGUF"
SIGNATURES = {  # first bytes -> what the file is
    b"version https://git-lfs": "it is a Git LFS pointer: run git lfs pull for the file itself",
    b"<!DOCTYPE": "it is an HTML page: the download did not return the file",
    b"<html": "it is an HTML page: the download did not return the file",
    GGUF_MAGIC: "it is a GGUF file, not a checkpoint of torch",
    b"{": "it is JSON, not a checkpoint",
}


def what_it_is(path: str | os.PathLike) -> str:
    """What a file that torch cannot read really is, from its first bytes, and what to do."""
    if (known := known_signature(path)) is not None:
        return known
    with open(path, "rb") as file:
        head = file.read(9)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file: name the folder that holds it together with its config.json"
    return "it is not a checkpoint, or it is cut short"


def known_signature(path: str | os.PathLike) -> str | None:
    """The description of the signature that the file begins with; None if it is none of `SIGNATURES`."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip()
    return next((description for start, description in SIGNATURES.items() if head.startswith(start)), None)


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether the file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def is_zip(path: str | os.PathLike) -> bool:
    """Whether the file is a zip archive, as torch writes since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
