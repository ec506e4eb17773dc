"""A tokenizer's files in a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, and the original.

    python run_llama.py --option export --format huggingface --out runs/folder
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engine.io.files import read_json_object, write_json, write_text
from engine.io.json_tokenizer import JsonTokenizer, puts_bos_first
from engine.io.tokenizer_json import sentencepiece_tokenizer
from engine.io.vocabulary import read_vocabulary
from tokenizer import AnyTokenizer, Tokenizer

CONFIG = "tokenizer_config.json"


def write_tokenizer(folder: Path, tokenizer: AnyTokenizer, max_seq_len: int) -> None:
    """Writes a tokenizer that transformers' `AutoTokenizer` loads with the same ids.

    Raises ValueError for a vocabulary of words and for a SentencePiece model that is not a byte-pair encoding.
    """
    inner, names, known = described(tokenizer)
    fields: dict[str, Any] = known | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_seq_len}
    fields |= {f"{name}_token": text for name, text in names.items()} | {"clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, JsonTokenizer) and tokenizer.adds_bos != puts_bos_first(inner, tokenizer.bos_id):
        fields["add_bos_token"] = tokenizer.adds_bos
    write_text(folder / "tokenizer.json", inner.to_str(pretty=True))
    write_json(folder / CONFIG, fields)
    write_json(folder / "special_tokens_map.json", {f"{name}_token": text for name, text in names.items()})
    if isinstance(tokenizer, Tokenizer):
        shutil.copyfile(tokenizer.model_path, folder / "tokenizer.model")


def described(tokenizer: AnyTokenizer) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The `tokenizers.Tokenizer` with the same ids, its BOS, EOS and padding by text, and settings to keep."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if isinstance(tokenizer, JsonTokenizer):
        beside = Path(tokenizer.model_path).with_name(CONFIG)
        known = read_json_object(beside) if beside.is_file() and Path(tokenizer.model_path).suffix == ".json" else {}
        kept = {name: value for name, value in known.items() if name in ("chat_template", "add_bos_token", "unk_token")}
        return tokenizer.inner, {name: tokenizer.inner.id_to_token(index) for name, index in ids.items()}, kept
    vocabulary = read_vocabulary(tokenizer)
    pieces = vocabulary["pieces"]
    inner = sentencepiece_tokenizer(
        pieces, vocabulary["scores"], vocabulary["types"], vocabulary["prefix"], bos=pieces[tokenizer.bos_id]
    )
    return inner, {name: pieces[index] for name, index in (ids | {"unk": 0}).items()}, {}
