"""Text for language modelling: documents read, tokenised once into a memory-mapped file, and batched.

    python run_llama.py --option pretrain --corpus TEXT --tokenizer models/stories.model --save_dir runs/mine
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.io.files import atomic_path, check_readable, parse_json, read_text
from engine.train.losses import IGNORED
from tokenizer import AnyTokenizer

SEPARATOR = "<|endoftext|>"
LABELLED = re.compile(r"-?\d+ *\|\|\| *")  # the start of each line of a labelled file
WIDTH_STEP = 16  # widths are multiples of this, because kernels are built and cached for each new shape


def read_documents(path: str | Path) -> list[str]:
    """The documents of a text file (divided by lines `<|endoftext|>`) or of a `.jsonl` file (field "text").

    If all lines of a file are `label ||| sentence`, each sentence is a document. Blank documents are dropped.
    Raises OSError or ValueError for a file that cannot be read or holds no document.
    """
    text = read_text(check_readable(path))
    json_lines = Path(path).suffix == ".jsonl"
    documents = _json_lines(path, text) if json_lines else _sentences(text) or text.split(SEPARATOR)
    documents = [document.strip("\n") for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text")
    return documents


def _sentences(text: str) -> list[str]:
    """The sentences of labelled lines; an empty list unless every line is labelled."""
    if not LABELLED.match(text):
        return []
    lines = [line for line in text.split("\n") if line.strip()]
    found = [LABELLED.match(line) for line in lines]
    return [match.string[match.end() :].strip() for match in found] if all(found) else []


def _json_lines(path: str | Path, text: str) -> list[str]:
    """The field "text" of each line's object; blank lines are skipped."""
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        entry = parse_json(line, f"{path}, line {number}")
        if not isinstance(entry, dict) or "text" not in entry:
            raise ValueError(f'{path}, line {number}: not a JSON object with a field "text"')
        if not isinstance(entry["text"], str):
            raise ValueError(f'{path}, line {number}: the field "text" is {_named(entry["text"])}, not a string')
        documents.append(entry["text"])
    return documents


def _named(value: object) -> str:
    """JSON's name for the type of a value that is not a string."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "an object")


@dataclass(frozen=True)
class TokenFile:
    """Documents as one row of ids, each with BOS and EOS; document i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: np.ndarray  # (total,) uint16 or uint32
    offsets: np.ndarray  # (documents + 1,) int64
    digest: str = ""  # of the texts and the tokenizer

    def __len__(self) -> int:
        return len(self.offsets) - 1


def tokenise(paths: list[str], tokenizer: AnyTokenizer, cache: Path) -> TokenFile:
    """Tokenises the files' documents into `cache` (a folder) and maps the result into memory.

    The file names contain a digest of the texts and the tokenizer, so nothing is tokenised twice.
    """
    hashed = hashlib.sha256(Path(tokenizer.model_path).read_bytes())
    for path in paths:
        hashed.update(check_readable(path).read_bytes())
    digest = hashed.hexdigest()[:16]
    stem = cache / digest
    tokens, offsets = stem.with_suffix(".tokens.npy"), stem.with_suffix(".offsets.npy")
    if (cached := _cached(tokens, offsets, digest)) is not None:
        return cached
    cache.mkdir(parents=True, exist_ok=True)
    data = encode_documents([document for path in paths for document in read_documents(path)], tokenizer)
    _save(tokens, data.tokens)
    _save(offsets, data.offsets)
    return TokenFile(np.load(tokens, mmap_mode="r"), np.load(offsets, mmap_mode="r"), digest)


def _cached(tokens: Path, offsets: Path, digest: str) -> TokenFile | None:
    """The documents that an earlier run tokenised; None if a file is missing or damaged."""
    try:
        data = TokenFile(np.load(tokens, mmap_mode="r"), np.load(offsets, mmap_mode="r"), digest)
        return data if data.tokens.ndim == 1 and len(data.tokens) == data.offsets[-1] else None
    except (OSError, ValueError, EOFError, LookupError, SyntaxError):
        return None


def encode_documents(documents: list[str], tokenizer: AnyTokenizer) -> TokenFile:
    """Tokenises documents in memory, each with BOS and EOS."""
    rows = [tokenizer.encode(document, bos=True, eos=True) for document in documents]
    dtype = np.uint16 if tokenizer.n_words <= 1 << 16 else np.uint32
    tokens = np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
    return TokenFile(tokens, np.cumsum([0] + [len(row) for row in rows], dtype=np.int64))


def _save(path: Path, array: np.ndarray) -> None:
    """Writes what `np.save` writes, which does not notice that the disk is full when the file is closed."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def split_documents(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training documents and of the held-out ones (a share, at least one), drawn from the seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    kept_back = max(1, round(count * held_out))
    return np.sort(order[kept_back:]), np.sort(order[:kept_back])


def split_tokens(data: TokenFile, held_out: float) -> TokenFile:
    """A single document as two: its last tokens, a share of at least two, are the document that is held out.

    Raises ValueError if it is too short for two parts with a target each.
    """
    total = len(data.tokens)
    kept_back = max(2, round(total * held_out))
    if total < kept_back + 2:
        raise ValueError(f"the corpus is one document of {total} tokens: too short to hold a part of it out")
    return TokenFile(data.tokens, np.asarray([0, total - kept_back, total], dtype=np.int64), data.digest)


class StoryBatches:
    """Batches of documents of similar length, right-padded, with about `tokens_per_batch` tokens each.

    A document longer than `max_seq_len` is cut into rows that overlap by one token, so that every token except the
    first is a target exactly once. A row holds one document (`packing` puts several into a row). An epoch's order
    depends only on (seed, epoch). With a `stride` below `max_seq_len` windows overlap, and each target counts once, in
    the first window that contains it.
    """

    def __init__(
        self, data: TokenFile, documents: np.ndarray, max_seq_len: int, tokens_per_batch: int, seed: int,
        stride: int | None = None,
    ):  # fmt: skip
        self.data, self.tokens_per_batch, self.seed = data, tokens_per_batch, seed
        self.max_seq_len = max_seq_len
        stride, rows = stride or max_seq_len, []
        for document in documents:
            start, end = int(data.offsets[document]), int(data.offsets[document + 1])
            cuts = range(start, max(start, end - 1 - max_seq_len + stride - 1) + 1, stride)
            rows += [(cut, min(cut + max_seq_len + 1, end), (max_seq_len - stride) * (cut > start)) for cut in cuts]
        self.rows = np.asarray(rows, dtype=np.int64)  # (rows, 3): start and end in data.tokens, targets to skip

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The row indices of each batch of an epoch: random order, rows of similar length together."""
        random = np.random.default_rng((self.seed, epoch))
        lengths = self.rows[:, 1] - self.rows[:, 0]
        order = np.argsort(lengths * random.uniform(1.0, 1.05, len(lengths)), kind="stable")
        batches = self._cut(order, lengths[order])
        return [batches[index] for index in random.permutation(len(batches))]

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch; it differs between epochs, because it depends on their order."""
        return len(self.epoch(epoch))

    def in_order(self) -> list[np.ndarray]:
        """Batches from the shortest row to the longest, for evaluation."""
        lengths = self.rows[:, 1] - self.rows[:, 0]
        order = np.argsort(lengths, kind="stable")
        return self._cut(order, lengths[order])

    def _cut(self, order: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Cuts ordered rows into batches whose padded size is within the budget, or of a single row."""
        batches, start, widest = [], 0, 0
        for place, length in enumerate(lengths):
            widest = max(widest, self._width(int(length)))
            if place > start and widest * (place - start + 1) > self.tokens_per_batch:
                batches.append(order[start:place])
                start, widest = place, self._width(int(length))
        batches.append(order[start:])
        return batches

    def contents(self, batch: np.ndarray) -> list[np.ndarray]:
        """For each row of a batch, its pieces as rows of `rows`: here a single one."""
        return list(self.rows[batch][:, None])  # each (1, 3)

    def documents(self, batch: np.ndarray) -> Tensor | None:
        """Document ids of packed rows (see `packing`); None here, because a row holds one document."""
        return None

    def count(self, batch: np.ndarray) -> int:
        """Number of targets in a batch."""
        pieces = np.concatenate(self.contents(batch))
        return int((pieces[:, 1] - pieces[:, 0] - 1 - pieces[:, 2]).sum())

    def tensors(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens and next-token targets of a batch, each (rows, width); targets of padding are `IGNORED`."""
        contents = self.contents(batch)
        width = self.width(contents)
        tokens = np.zeros((len(contents), width), dtype=np.int64)
        targets = np.full((len(contents), width), IGNORED, dtype=np.int64)
        for row, pieces in enumerate(contents):
            place = 0
            for start, end, skipped in pieces:
                ids = self.data.tokens[start:end].astype(np.int64)
                after = place + len(ids) - 1
                tokens[row, place:after] = ids[:-1]
                targets[row, place + skipped : after] = ids[1 + skipped :]
                place = after
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def width(self, contents: list[np.ndarray]) -> int:
        """The padded width of a batch with these contents."""
        return self._width(1 + max(int((pieces[:, 1] - pieces[:, 0] - 1).sum()) for pieces in contents))

    def _width(self, length: int) -> int:
        """Width of a batch whose longest row has `length` tokens, where the last one is only a target."""
        return min(-(-(length - 1) // WIDTH_STEP) * WIDTH_STEP, self.max_seq_len)
