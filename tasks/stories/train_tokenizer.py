"""`--option tokenizer`: trains a SentencePiece model on a corpus, or counts the words of a vocabulary.

    python run_llama.py --option tokenizer --corpus TEXT --tokenizer runs/mine.model --vocab_size 4096
"""

from __future__ import annotations

from engine.io.files import atomic_path, check_writable, write_sidecar
from engine.io.word_tokenizer import WordTokenizer, word_vocabulary
from tasks.cli import Work
from tasks.shipped import check_not_shipped
from tasks.stories.data import read_documents
from tasks.stories.flags import TokenizerSettings
from tokenizer import load_tokenizer, train_tokenizer


def prepare(settings: TokenizerSettings) -> Work:
    """Trains the tokenizer in memory, which takes seconds; returns the work that writes it.

    A name ending in `.json` makes a vocabulary of words, any other a SentencePiece model. Raises ValueError or OSError.
    """
    path = check_writable(settings.tokenizer)
    check_not_shipped(path, settings.overwrite, "--tokenizer")
    documents = [document for corpus in settings.corpus for document in read_documents(corpus)]
    if path.suffix == ".json":
        model = word_vocabulary(documents, settings.vocab_size, lower=not settings.keep_case).encode("utf-8")
    else:
        model = train_tokenizer(documents, settings.vocab_size)

    def work() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(model)
        write_sidecar(path)
        tokenizer = load_tokenizer(path)
        rows = [tokenizer.encode(document, bos=False, eos=False) for document in documents]
        pieces = sum(len(ids) for ids in rows)
        size = sum(len(document.encode("utf-8")) for document in documents)
        print(f"{tokenizer.n_words} pieces, {size / pieces:.2f} bytes a piece; wrote {path}")
        if isinstance(tokenizer, WordTokenizer):
            unknown = sum(ids.count(tokenizer.unk_id) for ids in rows)
            print(f"{pieces:,} words, <unk> {unknown / pieces:.2%}")

    return work
