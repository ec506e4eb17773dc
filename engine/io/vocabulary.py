"""A byte-pair tokenizer as plain data: pieces, scores and types, read from the SentencePiece model file.

    python -c "from engine.io.vocabulary import *; print(read_vocabulary(Tokenizer(None, 'models/stories.model')))"

The file is a protocol buffer (sentencepiece_model.proto). Three of its messages are needed, so a reader of fifteen
lines stands here in place of the protobuf package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from tokenizer import AnyTokenizer, BinTokenizer, Tokenizer, packed

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
WORD_START = "\u2581"  # SentencePiece's visible space


def read_vocabulary(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """Pieces, scores, types and special ids. Raises ValueError for a tokenizer of another kind."""
    if isinstance(tokenizer, BinTokenizer):
        return _from_bin(tokenizer)
    if isinstance(tokenizer, Tokenizer):
        return _from_sentencepiece(tokenizer)
    raise ValueError(f"{tokenizer.model_path} must be a SentencePiece model or llama2.c's tokenizer.bin for this")


def _from_sentencepiece(tokenizer: Tokenizer) -> dict[str, Any]:
    model = list(_fields(tokenizer.sp_model.serialized_model_proto()))
    pieces = [dict(_fields(value)) for number, value in model if number == 1]
    trainer = dict(_fields(next((value for number, value in model if number == 2), b"")))
    normalizer = dict(_fields(next((value for number, value in model if number == 3), b"")))
    types = [piece.get(3, NORMAL) for piece in pieces]
    refusals = {
        "is not a byte-pair encoding": trainer.get(3, 1) != BPE,
        "has no byte fallback": not trainer.get(35, 0),
        "normalises its text": bool(normalizer.get(2)),
        "removes extra spaces": bool(normalizer.get(4, 1)),
        "has user-defined or unused pieces": bool(set(types) - {NORMAL, UNKNOWN, CONTROL, BYTE}),
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"the tokenizer {tokenizer.model_path} {reason}, which this cannot hold")
    return {
        "pieces": [piece[1].decode("utf-8") for piece in pieces],
        "scores": [struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces],
        "types": types,
        "prefix": bool(normalizer.get(3, 1)),
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
    }


def _from_bin(tokenizer: BinTokenizer) -> dict[str, Any]:
    types = [NORMAL] * tokenizer.n_words
    types[:3] = [UNKNOWN, CONTROL, CONTROL]
    types[3:259] = [BYTE] * 256
    pieces = [piece.decode("utf-8", errors="replace").replace(" ", WORD_START) for piece in tokenizer.pieces]
    pieces[3:259] = [f"<0x{byte:02X}>" for byte in range(256)]
    special = {"prefix": True, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    return {"pieces": pieces, "scores": tokenizer.scores, "types": types} | special


def bin_file(vocabulary: dict[str, Any]) -> bytes:
    """llama2.c's `tokenizer.bin` of a vocabulary (see `tokenizer.BinTokenizer` for the file's layout).

    Raises ValueError if BOS, EOS and the bytes do not have the ids that llama2.c expects.
    """
    types, pieces = vocabulary["types"], list(vocabulary["pieces"])
    if (vocabulary["bos"], vocabulary["eos"]) != (1, 2) or types[3:259] != [BYTE] * 256 or not vocabulary["prefix"]:
        raise ValueError("llama2.c needs BOS 1, EOS 2, the bytes as ids 3 to 258, and a space before every text")
    pieces[1], pieces[2] = "\n<s>\n", "\n</s>\n"  # as llama2.c's own converter writes them
    raw = [piece.replace(WORD_START, " ").encode("utf-8") for piece in pieces]
    return packed(raw, vocabulary["scores"])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int for a varint, bytes for anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
