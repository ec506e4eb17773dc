"""What a file is that cannot be read as a checkpoint, and what to do about it.

    python -c "from engine.io.checkpoint.identify import what_it_is; print(what_it_is('README.md'))"
"""

from __future__ import annotations

import os

SIGNATURES = {  # first bytes -> what the file is
    b"version https://git-lfs": "it is a Git LFS pointer: run git lfs pull for the file itself",
    b"<!DOCTYPE": "it is an HTML page: the download did not return the file",
    b"<html": "it is an HTML page: the download did not return the file",
    b"GGUF": "it is a GGUF file, which is not supported",
    b"{": "it is JSON, not a checkpoint",
}


def what_it_is(path: str | os.PathLike) -> str:
    """What a file that torch cannot read really is, from its first bytes, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    for start, description in SIGNATURES.items():
        if head.lstrip().startswith(start):
            return description
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file, which is not supported"
    return "it is not a checkpoint, or it is cut short"


def is_zip(path: str | os.PathLike) -> bool:
    """Whether the file is a zip archive, as torch writes since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
