"""What a file is that cannot be read as a checkpoint, and what to do about it.

    python -c "from engine.io.checkpoint.identify import what_it_is; print(what_it_is('README.md'))"
"""

from __future__ import annotations

import codecs
import os
import zipfile

GGUF_MAGIC = b"GGUF"
ZIP = b"PK\x03\x04"
PAGE = "it is an HTML page: the download did not return the file; download it again"
SIGNATURES = {  # first bytes, in lower case and after white space -> what the file is
    b"version https://git-lfs": "it is a Git LFS pointer: run git lfs pull for the file itself",
    b"<!doctype": PAGE,
    b"<html": PAGE,
    b"<?xml": "it is an XML page: the download did not return the file; download it again",
    GGUF_MAGIC.lower(): "it is a GGUF file, not a checkpoint of torch",
    b"{": "it is JSON, not a checkpoint: name the file of the weights",
    b"[": "it is JSON, not a checkpoint: name the file of the weights",
    b"\x0e\n\x05<unk>": "it is a SentencePiece tokenizer: name it with --tokenizer",
    b"\x1f\x8b": "it is compressed: unpack it with gunzip or tar",
    b"bzh": "it is compressed: unpack it with bunzip2 or tar",
    b"\xfd7zxz": "it is compressed: unpack it with unxz or tar",
    b"\x93numpy": "it is a NumPy array, not a checkpoint",
}
CUT = "it is not a checkpoint, or it is cut short"


def what_it_is(path: str | os.PathLike) -> str:
    """What a file that torch cannot read really is, from its first bytes, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty, so it is cut short: download or save it again"
    if head.startswith(ZIP):
        return _which_zip(path)
    if (known := known_signature(path)) is not None:
        return known
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file: name the folder that holds it together with its config.json"
    if _is_text(head):
        return "it is a text file, not a checkpoint"
    if head[:1] == b"\x80" and head[1] in range(2, 6):
        return "it is a pickle that torch did not write, or it is cut short: save it with torch.save"
    return f"{CUT} (it begins with the bytes {head[:8].hex(' ')}): download or save it again"


def known_signature(path: str | os.PathLike) -> str | None:
    """The description of the signature that the file begins with; None if it is none of `SIGNATURES`."""
    with open(path, "rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((description for start, description in SIGNATURES.items() if head.startswith(start)), None)


def _which_zip(path: str | os.PathLike) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"it is cut short: only {os.path.getsize(path):,} bytes of a torch file; copy or download it again"
    if "constants.pkl" in names:
        return "it is a TorchScript program: save model.state_dict() with torch.save instead"
    if "data.pkl" in names:
        return "it is damaged, or another program packed it again: download it again, or save it with torch.save"
    return "it is a zip archive, not a checkpoint: unpack it"


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether the file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def is_zip(path: str | os.PathLike) -> bool:
    """Whether the file is a zip archive, as torch writes since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == ZIP
