"""Tokenizers of the library `tokenizers`: a `tokenizer.json`, with the special tokens that the files beside it name.

    python run_llama.py --option generate --pretrained-model-path FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.io.files import read_json_object, read_text
from engine.io.packages import needed

SIBLINGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
USUAL = {  # names to try where no file beside the tokenizer says which token it is
    "bos": ("<s>", "<|begin_of_text|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "<0x00>"),
}


class JsonTokenizer:
    """The interface of `tokenizer.Tokenizer` over a `tokenizer.json`.

    BOS is put before a text if the tokenizer itself does so (GPT-2's byte-level ones do not), before an empty text, and
    before a document that also ends with EOS, because its first token needs a context. `max_len` limits a text's tokens
    before BOS and EOS are added. Raises OSError or ValueError for a file that is missing, damaged or without EOS.
    """

    def __init__(self, max_len: int | None = None, tokenizer_model: str = "tokenizer.json"):
        self.model_path, self.max_len = str(tokenizer_model), max_len
        path = Path(self.model_path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}")
        self._set_up(_from_text(path), _special_tokens(path.parent))

    def _set_up(self, inner: Any, special: dict[str, Any]) -> None:
        """Takes a `tokenizers.Tokenizer` and the special tokens, by text or id, that its surroundings name."""
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        self.n_words: int = inner.get_vocab_size(with_added_tokens=True)
        eos = _special_id(self, special, "eos")
        if eos is None:
            raise ValueError(f"{self.model_path} names no end-of-text token, nor do the files beside it")
        self.eos_id: int = eos
        bos, pad = _special_id(self, special, "bos"), _special_id(self, special, "pad")
        self.bos_id: int = eos if bos is None else bos
        self.pad_id: int = eos if pad is None else pad
        added = special.get("add_bos_token")
        self.adds_bos: bool = puts_bos_first(inner, self.bos_id) if added is None else bool(added)

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """The ids of `s`, cut to `max_len` tokens, with BOS (see the class) and EOS on request."""
        ids = self.inner.encode(s, add_special_tokens=False).ids[: self.max_len]
        return [self.bos_id] * (bos and (self.adds_bos or eos or not ids)) + ids + [self.eos_id] * eos

    def decode(self, t: list[int]) -> str:
        """The text of the ids, without special tokens."""
        return self.inner.decode(t, skip_special_tokens=True)


def is_tokenizer_json(path: str | Path) -> bool:
    """Whether a JSON file begins as the library `tokenizers` writes it (a word vocabulary begins otherwise)."""
    try:
        with open(path, encoding="utf-8") as file:
            return '"version"' in file.read(64)
    except (OSError, UnicodeDecodeError):
        return False


def tokenizers_library() -> Any:
    """The package `tokenizers`; ValueError where it is not installed."""
    return needed("tokenizers", "tokenizers in JSON")


def _from_text(path: Path) -> Any:
    try:
        return tokenizers_library().Tokenizer.from_str(read_text(path))
    except (ValueError, OSError):
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer, or it is cut short: {error}") from None


def _special_tokens(folder: Path) -> dict[str, Any]:
    """`bos_token`, `eos_token_id` and the like from the files beside a tokenizer; the first file that has one wins."""
    entries: dict[str, Any] = {}
    for name in SIBLINGS:
        if (folder / name).is_file():
            content = read_json_object(folder / name)
            entries = {key: value for key, value in content.items() if value is not None} | entries
    return entries


def _special_id(tokenizer: JsonTokenizer, special: dict[str, Any], name: str) -> int | None:
    """The id of BOS, EOS or padding: by its text, else its id, else a usual name; None if there is none."""
    token, number = special.get(f"{name}_token"), special.get(f"{name}_token_id")
    text = token.get("content") if isinstance(token, dict) else token
    number = number[0] if isinstance(number, list) and number else number
    ids = [tokenizer.inner.token_to_id(text)] if isinstance(text, str) else []
    ids += [number] if isinstance(number, int) and 0 <= number < tokenizer.n_words else []
    ids += [tokenizer.inner.token_to_id(usual) for usual in USUAL[name]]
    return next((index for index in ids if index is not None), None)


def puts_bos_first(inner: Any, bos_id: int) -> bool:
    """Whether the tokenizer's own post-processor puts BOS before a text."""
    return inner.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
