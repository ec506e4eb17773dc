"""FastText vectors (Bojanowski et al. 2017): read for a vocabulary, or trained on a text with gensim.

    python run_llama.py --option vectors --corpus TEXT --tokenizer models/words.json --embeddings models/words.vec
"""

from __future__ import annotations

import codecs
import importlib.util
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BUCKETS = 100_000  # buckets for hashed n-grams; fastText's two million take 2 GB at 256 features
HEADER = re.compile(rb"(\d{1,18}) (\d{1,18})")  # the first line of a .vec file: count and width
OPTIONAL = "gensim is not installed: pip install -r requirements-ail861.txt"


def require_gensim() -> None:
    """Raises ValueError with the install command if gensim is missing."""
    if importlib.util.find_spec("gensim") is None:
        raise ValueError(OPTIONAL)


def read_vectors(path: str | Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors (dim,) of the words that the file contains.

    A `.vec` file (text) is streamed: only the wanted lines are parsed and kept. A `.bin` file (Facebook's
    fastText model, read by gensim) also gives unseen words a vector, composed of their n-grams. Raises ValueError
    or OSError for a file that is damaged or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    found = _read_bin(path, words) if path.suffix == ".bin" else dict(_read_vec(path, set(words)))
    if any(not np.isfinite(vector).all() for vector in found.values()):
        raise ValueError(f"{path} holds a vector that is not finite")
    return found


def _read_vec(path: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (word, vector) of the wanted words, a line at a time; the first line may say `count width`."""
    encoded = {word.encode("utf-8") for word in wanted}
    width, promised, number = None, None, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            word, _, rest = line.rstrip().partition(b" ")
            if number == 1 and (header := HEADER.fullmatch(line.removeprefix(codecs.BOM_UTF8).rstrip())):
                promised, width = int(header[1]), int(header[2])
            elif word in encoded:
                vector = _parsed(path, number, rest, width)
                width = len(vector)
                yield word.decode("utf-8"), vector
                encoded.discard(word)
                if not encoded:
                    return
    if promised is not None and number - 1 < promised:
        raise ValueError(f"{path} is cut short: {number - 1} of {promised} vectors")


def _parsed(path: Path, number: int, text: bytes, width: int | None) -> np.ndarray:
    try:
        vector = np.array(text.split(), dtype=np.float32)
    except ValueError:
        raise ValueError(f"{path}, line {number}: not a word and its numbers") from None
    if len(vector) == 0 or len(vector) != (width or len(vector)):
        raise ValueError(f"{path}, line {number}: {len(vector)} numbers, not {width or 'a vector'}")
    return vector


def _read_bin(path: Path, words: Collection[str]) -> dict[str, np.ndarray]:
    require_gensim()
    from gensim.models.fasttext import load_facebook_vectors

    try:
        vectors = load_facebook_vectors(str(path))
    except Exception as error:  # gensim raises many kinds of errors for a damaged file
        raise ValueError(f"{path} is not a fastText model, or it is cut short: {type(error).__name__}") from None
    return {word: np.asarray(vectors[word], dtype=np.float32) for word in words if word in vectors}


def fill_embeddings(weight: Tensor, words: Sequence[str], path: str | Path, special: int) -> int:
    """Overwrites rows of weight (words, dim) with the words' vectors; returns the number of words without one.

    The first `special` entries are not words and keep their rows, as unknown words do. One factor scales all vectors to
    the mean square of the rows they replace. Raises ValueError for
    vectors of another width.
    """
    found = read_vectors(path, words[special:])
    rows = [row for row, word in enumerate(words) if row >= special and word in found]
    if not rows:
        raise ValueError(f"{path} contains none of the {len(words) - special:,} words")
    vectors = torch.from_numpy(np.stack([found[words[row]] for row in rows]))
    if vectors.shape[1] != weight.shape[1]:
        raise ValueError(f"{path} holds vectors of width {vectors.shape[1]}, but the model is {weight.shape[1]} wide")
    with torch.no_grad():
        scale = (weight[rows].square().mean() / vectors.square().mean()).sqrt()
        weight[rows] = (vectors * scale).to(weight)
    return len(words) - special - len(rows)


def train_vectors(sentences: Sequence[Sequence[str]], dim: int, epochs: int, seed: int, threads: int):
    """A gensim `FastText` model: skip-grams, window 5, n-grams of 3 to 6 letters; deterministic with one thread.

    Raises ValueError if gensim is missing or the text is too short.
    """
    require_gensim()
    from gensim.models import FastText

    model = FastText(vector_size=dim, sg=1, window=5, min_count=2, bucket=BUCKETS, seed=seed % 2**32, workers=threads)
    try:
        model.build_vocab(corpus_iterable=sentences)
        model.train(corpus_iterable=sentences, total_examples=len(sentences), epochs=epochs)
    except RuntimeError as error:
        raise ValueError(f"no vectors can be trained on this text: {error}") from None
    return model


def vec_text(model, words: Sequence[str]) -> str:
    """The words' vectors in the `.vec` format; a word without a vector of its own is composed of its n-grams."""
    lines = [f"{len(words)} {model.vector_size}"]
    lines += [f"{word} {' '.join(f'{value:.5f}' for value in model.wv[word])}" for word in words]
    return "\n".join(lines) + "\n"
