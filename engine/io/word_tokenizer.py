"""Word-level tokenizer: a vocabulary counted on the training text, stored as JSON.

    python run_llama.py --option tokenizer --corpus TEXT --tokenizer runs/words.json --vocab_size 8000
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from engine.io.files import read_json

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
FORMAT = "min-llama-words"
TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|\S")
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "`": "'", "«": "“", "»": "”", "„": "“", "–": "-", "—": "-", "…": "."})
OPENING_QUOTE = re.compile(r'(?:(?<=\s)|(?<=^)|(?<=[(\[-]))"(?=\S)')
TO_THE_LEFT = frozenset(".,!?;:)]}%”'")  # no space before it
TO_THE_RIGHT = frozenset("([{“$#")  # no space after it


def split_words(text: str, lower: bool) -> list[str]:
    """Words (including inner apostrophes), numbers, and single marks; white space is dropped.

    Straight double quotes become opening or closing ones, so that `join_words` can place them.
    """
    text = text.translate(STRAIGHT)
    text = OPENING_QUOTE.sub("“", text).replace('"', "”")
    return TOKEN.findall(text.lower() if lower else text)


def join_words(words: Iterable[str]) -> str:
    """Words as readable text with the usual spacing and straight quotes."""
    pieces, glued = [], True
    for word in words:
        pieces.append(word if glued or word in TO_THE_LEFT else f" {word}")
        glued = word in TO_THE_RIGHT
    return "".join(pieces).replace("“", '"').replace("”", '"')


class WordTokenizer:
    """The interface of `tokenizer.Tokenizer` over whole words; `<pad> <sos> <eos> <unk>` are ids 0 to 3.

    `max_len` limits a text's words before BOS and EOS are added. Words outside the vocabulary become `<unk>`; line
    breaks, and capitals if `lower` is set, are lost. Raises OSError or ValueError for a file that is missing or not a
    word vocabulary.
    """

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, max_len: int | None = None, tokenizer_model: str = "words.json"):
        self.model_path, self.max_len = str(tokenizer_model), max_len
        self.words, self.lower = _read(Path(self.model_path))
        self.n_words = len(self.words)
        self.ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """The ids of `s`, cut to `max_len` words, with BOS and EOS on request."""
        words = split_words(s, self.lower)[: self.max_len]
        ids = [self.ids.get(word, self.unk_id) for word in words]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, t: list[int]) -> str:
        """The text of the ids, without padding, BOS and EOS; an unknown word is `<unk>`."""
        return join_words(self.words[token] for token in t if token == self.unk_id or token >= len(SPECIAL))


def word_vocabulary(texts: Iterable[str], size: int, lower: bool = True) -> str:
    """The JSON of a vocabulary of at most `size` entries: the special ones, then words by descending frequency.

    Ties are sorted alphabetically, so that the file depends only on the texts. Raises ValueError if no word fits.
    """
    if size <= len(SPECIAL):
        raise ValueError(f"a vocabulary of {size} holds no word beside {' '.join(SPECIAL)}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, lower))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: size - len(SPECIAL)]
    content = {"format": FORMAT, "lower": lower, "words": [*SPECIAL, *(word for word, _ in ranked)]}
    return json.dumps(content, ensure_ascii=False, indent=0) + "\n"


def _read(path: Path) -> tuple[list[str], bool]:
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; it is not a word vocabulary, or it is cut short") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("lower"), bool):
        raise ValueError(f"{path} is not a word vocabulary: it needs the format {FORMAT}, words, and lower")
    words = content.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path} is not a word vocabulary: words is not a list of strings")
    if tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
        raise ValueError(f"{path} is not a word vocabulary: it needs {' '.join(SPECIAL)} first and each word once")
    return words, content["lower"]
