"""Words as tokens: a vocabulary counted on the training text, kept as JSON beside the model.

    python run_llama.py --option tokenizer --corpus TEXT --tokenizer models/words.json --vocab_size 8000
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
FORMAT = "min-llama-words"
TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|\S")
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "`": "'", "«": "“", "»": "”", "„": "“", "–": "-", "—": "-", "…": "."})
OPENING_QUOTE = re.compile(r'(?:(?<=\s)|(?<=^)|(?<=[(\[-]))"(?=\S)')
TO_THE_LEFT = frozenset(".,!?;:)]}%”'")  # stands right behind the word before it
TO_THE_RIGHT = frozenset("([{“$#")  # the next word stands right behind it


def split_words(text: str, lower: bool) -> list[str]:
    """Words (an apostrophe inside belongs to one), numbers, and every other mark alone; white space is lost.

    Straight double quotes are told apart into opening and closing ones, so that joining needs no counting.
    """
    text = text.translate(STRAIGHT)
    text = OPENING_QUOTE.sub("“", text).replace('"', "”")
    return TOKEN.findall(text.lower() if lower else text)


def join_words(words: Iterable[str]) -> str:
    """Words as readable text: marks stand where they belong, quotes are straight again."""
    pieces, glued = [], True
    for word in words:
        pieces.append(word if glued or word in TO_THE_LEFT else f" {word}")
        glued = word in TO_THE_RIGHT
    return "".join(pieces).replace("“", '"').replace("”", '"')


class WordTokenizer:
    """The interface of `tokenizer.Tokenizer` over whole words; `<pad> <sos> <eos> <unk>` are ids 0 to 3.

    `max_len` cuts a text's words, before BOS and EOS are added. Words outside the vocabulary become `<unk>`; line
    breaks, and capitals where `lower` is set, are lost. Raises OSError or ValueError for a file that is missing or no
    word vocabulary.
    """

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, max_len: int | None = None, tokenizer_model: str = "words.json"):
        self.model_path, self.max_len = str(tokenizer_model), max_len
        self.words, self.lower = _read(Path(self.model_path))
        self.n_words = len(self.words)
        self.ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """The ids of `s`, cut to `max_len` words, with BOS before and EOS behind if asked."""
        words = split_words(s, self.lower)[: self.max_len]
        ids = [self.ids.get(word, self.unk_id) for word in words]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, t: list[int]) -> str:
        """The text of the ids; padding, BOS and EOS vanish, an unknown word is `<unk>`."""
        return join_words(self.words[token] for token in t if token == self.unk_id or token >= len(SPECIAL))


def word_vocabulary(texts: Iterable[str], size: int, lower: bool = True) -> str:
    """The JSON of a vocabulary of at most `size` entries: the special ones, then words by falling frequency.

    Words of like frequency stand in alphabetical order, so that the file is a function of the texts. Raises
    ValueError where no word fits.
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
        content = json.loads(path.read_text(encoding="utf-8"))
        words, lower, form = content["words"], content["lower"], content["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a word vocabulary, or it is cut short") from None
    if form != FORMAT or tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
        raise ValueError(f"{path} is not a word vocabulary: it starts with {' '.join(SPECIAL)}, each word once")
    return words, bool(lower)
