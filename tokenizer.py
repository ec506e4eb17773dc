"""Tokenizers: SentencePiece models, llama2.c's `tokenizer.bin`, `tokenizer.json` of Hugging Face, word vocabularies.

    python run_llama.py --option tokenizer --corpus TEXT --tokenizer runs/mine.model --vocab_size 4096
"""

from __future__ import annotations

import hashlib
import heapq
import io
import math
import re
import struct
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from engine.io.files import atomic_path, check_sidecar
from engine.io.json_tokenizer import JsonTokenizer, is_tokenizer_json
from engine.io.word_tokenizer import WordTokenizer

TOKENIZER_MODEL = "tokenizer.model"  # the Llama 2 tokenizer at the course's path
BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")


class Tokenizer:
    """The course's tokenizer over a SentencePiece model (default `tokenizer.model`).

    `max_len` limits a text's pieces before BOS and EOS are added. `pad_id` is the piece of the zero byte, as in the
    course (SentencePiece's own is −1, which has no embedding). Raises OSError or ValueError for a file that is missing
    or not a SentencePiece model.
    """

    def __init__(self, max_len: int | None = None, tokenizer_model: str | None = None):
        self.model_path = str(tokenizer_model or TOKENIZER_MODEL)
        if not Path(self.model_path).is_file():
            raise FileNotFoundError(f"no tokenizer at {self.model_path}")
        try:
            self.sp_model = SentencePieceProcessor(model_file=self.model_path)
        except RuntimeError:
            raise ValueError(f"{self.model_path} is not a SentencePiece model") from None
        self.max_len = max_len
        self.n_words: int = self.sp_model.vocab_size()
        self.bos_id: int = self.sp_model.bos_id()
        self.eos_id: int = self.sp_model.eos_id()
        self.pad_id: int = self.sp_model.piece_to_id("<0x00>")

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """The ids of `s`, cut to `max_len` pieces, with BOS and EOS on request."""
        return _framed(self.sp_model.encode(s), self, bos, eos)

    def decode(self, t: list[int]) -> str:
        """The text of the ids, without BOS, EOS and other control ids."""
        return self.sp_model.decode(t)

    def export(self) -> str:
        """Writes the pieces and their scores as llama2.c's `tokenizer.bin` beside the model; returns its path."""
        pieces = pieces_of(self)
        pieces[self.bos_id], pieces[self.eos_id] = b"\n<s>\n", b"\n</s>\n"
        path = Path(self.model_path).with_suffix(".bin")
        with atomic_path(path) as temporary:
            temporary.write_bytes(packed(pieces, [self.sp_model.get_score(index) for index in range(self.n_words)]))
        return str(path)


class BinTokenizer:
    """llama2.c's `tokenizer.bin`: byte-pair merges by score, with the same interface as `Tokenizer`.

    File: int32 longest piece, then for each piece float32 score, int32 length, bytes. Ids 0, 1, 2 are unknown, BOS
    and EOS; 3 to 258 are the single bytes. Raises ValueError for a file cut short.
    """

    bos_id, eos_id, pad_id = 1, 2, 3

    def __init__(self, max_len: int | None = None, tokenizer_model: str = "tokenizer.bin"):
        self.model_path, self.max_len = str(tokenizer_model), max_len
        self.pieces, self.scores = _read_bin(Path(self.model_path))
        self.n_words = len(self.pieces)
        self.ids = {piece: index for index, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """The ids of `s`: characters (or their bytes), merged in pairs by descending score."""
        text = " " + s if s else s
        ids = []
        for character in text:
            raw = character.encode("utf-8")
            ids += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        return _framed(self._merged(ids), self, bos, eos)

    def _merged(self, ids: list[int]) -> list[int]:
        """Merges the pair with the highest score, the leftmost of equals, until no pair merges: O(n log n) with a heap.

        A merged pair keeps the left place; the right one becomes −1. A heap entry counts while its two ids stand.
        """
        slots = list(ids)
        before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        heap: list[tuple[float, int, int, int, int]] = []  # (−score, left place, left id, right id, merged id)

        def offer(left: int) -> None:
            if left < 0 or after[left] >= len(ids):
                return
            pair = slots[left], slots[after[left]]
            merged = self.ids.get(self.pieces[pair[0]] + self.pieces[pair[1]])
            if merged is not None and self.scores[merged] > -math.inf:
                heapq.heappush(heap, (-self.scores[merged], left, *pair, merged))

        for left in range(len(ids) - 1):
            offer(left)
        while heap:
            _, left, first, second, merged = heapq.heappop(heap)
            right = after[left]
            if right >= len(ids) or (slots[left], slots[right]) != (first, second):
                continue  # one of the two has been merged since
            slots[left], slots[right], after[left] = merged, -1, after[right]
            if after[right] < len(ids):
                before[after[right]] = left
            offer(before[left])
            offer(left)
        return [piece for piece in slots if piece >= 0]

    def decode(self, t: list[int]) -> str:
        """The text of the ids, without the space that `encode` put before it; broken UTF-8 is replaced."""
        raw = b"".join(self._bytes_of(token) for token in t if token not in (self.bos_id, self.eos_id))
        return raw.decode("utf-8", errors="replace").removeprefix(" ")

    def _bytes_of(self, token: int) -> bytes:
        piece = self.pieces[token]
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece


AnyTokenizer = Tokenizer | BinTokenizer | WordTokenizer | JsonTokenizer


def load_tokenizer(path: str | Path, max_len: int | None = None) -> AnyTokenizer:
    """A tokenizer from a SentencePiece `.model`, llama2.c's `.bin`, a `tokenizer.json`, words `.json` or a `.gguf`.

    Raises ValueError or OSError; also if a checksum beside the file (see `write_sidecar`) does not fit it.
    """
    check_sidecar(path)
    if Path(path).suffix == ".gguf":
        return import_module("engine.io.gguf").GgufTokenizer(max_len, str(path))  # imports its package only here
    if Path(path).name == "tokenizer.json" or is_tokenizer_json(path):
        return JsonTokenizer(max_len, str(path))
    if Path(path).suffix == ".json":
        return WordTokenizer(max_len, str(path))
    if Path(path).suffix == ".bin":
        return BinTokenizer(max_len, str(path))
    return Tokenizer(max_len, str(path))


def pieces_of(tokenizer: AnyTokenizer) -> list[bytes]:
    """The text of every piece in the order of the ids, with a space for SentencePiece's mark of one."""
    if isinstance(tokenizer, BinTokenizer):
        return list(tokenizer.pieces)
    if isinstance(tokenizer, WordTokenizer):
        return [word.encode("utf-8") for word in tokenizer.words]
    if isinstance(tokenizer, JsonTokenizer):
        tokens = [tokenizer.inner.id_to_token(index) or "" for index in range(tokenizer.n_words)]
        return [token.replace("▁", " ").encode() for token in tokens]
    return [tokenizer.sp_model.id_to_piece(index).replace("▁", " ").encode() for index in range(tokenizer.n_words)]


def packed(pieces: Sequence[bytes], scores: Sequence[float]) -> bytes:
    """llama2.c's `tokenizer.bin`: the longest piece's length, then each piece's score, length and bytes."""
    entries = [struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(pieces, scores, strict=True)]
    return struct.pack("<i", max(map(len, pieces))) + b"".join(entries)


def vocabulary_digest(tokenizer: AnyTokenizer) -> str:
    """SHA-256 of all pieces but the first three (unknown, BOS, EOS), which formats spell differently.

    A SentencePiece model and its export to llama2.c's format have the same digest.
    """
    return hashlib.sha256(b"\0".join(pieces_of(tokenizer)[3:])).hexdigest()


def train_tokenizer(texts: list[str], vocab_size: int) -> bytes:
    """Trains a byte-pair-encoding SentencePiece model with Llama's special ids and byte fallback; returns its file.

    Ids 0, 1 and 2 are unknown, BOS and EOS, then come the 256 bytes; digits are split, newlines and spaces are kept.
    Raises ValueError if the texts are too short for this many pieces.
    """
    options = {"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.9999, "split_digits": True}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": True}
    options |= {"max_sentence_length": 1 << 20, "minloglevel": 2, "num_threads": 2}
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, **options)
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1]
        raise ValueError(f"no tokenizer of {vocab_size} pieces can be trained on this text: {reason}") from None
    return model.getvalue()


def _framed(ids: list[int], tokenizer: Tokenizer | BinTokenizer, bos: bool, eos: bool) -> list[int]:
    ids = ids if tokenizer.max_len is None else ids[: tokenizer.max_len]
    return [tokenizer.bos_id] * bos + ids + [tokenizer.eos_id] * eos


def _read_bin(path: Path) -> tuple[list[bytes], list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    data, place = path.read_bytes(), 4
    pieces, scores = [], []
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError(f"{path} is not a llama2.c tokenizer, or it is cut short")
        score, length = struct.unpack_from("<fi", data, place)
        if length < 0 or place + 8 + length > len(data):
            raise ValueError(f"{path} is not a llama2.c tokenizer, or it is cut short")
        pieces.append(data[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    if len(pieces) < 259:
        raise ValueError(f"{path} is not a llama2.c tokenizer: {len(pieces)} pieces, but the bytes need 259")
    return pieces, scores
