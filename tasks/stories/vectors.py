"""`--option vectors`: FastText vectors for a vocabulary, trained on a text.

    python run_llama.py --option vectors --corpus TEXT --tokenizer models/words.json --embeddings models/words.vec
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from engine.io.files import atomic_path, check_writable, write_text
from engine.io.word_tokenizer import SPECIAL, WordTokenizer, split_words
from tasks.stories.data import read_documents
from tasks.stories.fasttext import require_gensim, train_vectors, vec_text
from tasks.stories.flags import VectorSettings
from tokenizer import load_tokenizer


def prepare(settings: VectorSettings) -> Callable[[], None]:
    """Checks everything; returns the work. Raises ValueError or OSError before any work is done."""
    require_gensim()
    path = check_writable(settings.embeddings)
    if path.suffix not in (".vec", ".bin"):
        raise ValueError(f"--embeddings must end in .vec or .bin, not {path.name}")
    tokenizer = load_tokenizer(settings.tokenizer)
    if not isinstance(tokenizer, WordTokenizer):
        raise ValueError(f"vectors need a vocabulary of words (.json); {settings.tokenizer} is none")
    documents = [document for corpus in settings.corpus for document in read_documents(corpus)]

    def work() -> None:
        started = time.perf_counter()
        sentences = [split_words(document, tokenizer.lower) for document in documents]
        model = train_vectors(sentences, settings.dim, settings.epochs, settings.seed, settings.threads or 1)
        _write(model, tokenizer.words[len(SPECIAL) :], path)
        count, seconds = sum(map(len, sentences)), time.perf_counter() - started
        print(f"{settings.epochs} epochs over {count:,} words in {seconds:.0f} s; wrote {path}")

    return work


def _write(model, words: list[str], path: Path) -> None:
    """The vocabulary's vectors as text, or the whole model with its n-grams in Facebook's format."""
    if path.suffix == ".vec":
        write_text(path, vec_text(model, words))
        return
    from gensim.models.fasttext import save_facebook_model

    with atomic_path(path) as temporary:
        save_facebook_model(model, str(temporary))
