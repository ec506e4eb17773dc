"""Tokenizers of the library `tokenizers` from plain vocabularies: SentencePiece's byte-pair encoding and GPT-2's.

    python run_llama.py --option export --format huggingface --out runs/folder
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.io.json_tokenizer import tokenizers_library
from engine.io.vocabulary import CONTROL, NORMAL, UNKNOWN, WORD_START

USER_DEFINED = 4  # ModelProto.SentencePiece.Type, which GGUF numbers likewise
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentencepiece_tokenizer(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool, bos: str | None = None
) -> Any:
    """A `tokenizers.Tokenizer` with the ids of a SentencePiece byte-pair encoding with byte fallback.

    `prefix`: a text starts with a word boundary. `bos` is put before a text if special tokens are asked for. Control
    pieces are special tokens: unlike SentencePiece, the library also finds them in a text.
    """
    library = tokenizers_library()
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    unknown = next(piece for piece, type_ in zip(pieces, types, strict=True) if type_ == UNKNOWN)
    merges = _merges(pieces, scores, types, vocabulary)
    inner = library.Tokenizer(
        library.models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps = [library.normalizers.Prepend(WORD_START)] if prefix else []
    inner.normalizer = library.normalizers.Sequence([*steps, library.normalizers.Replace(" ", WORD_START)])
    decoders = library.decoders
    steps = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _add_special(inner, pieces, types, (UNKNOWN, CONTROL))
    if bos is not None:
        template = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B", "special_tokens": [(bos, vocabulary[bos])]}
        inner.post_processor = library.processors.TemplateProcessing(**template)
    return inner


def _merges(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, in the order in which SentencePiece merges: by descending score."""
    mergeable = {piece for piece, type_ in zip(pieces, types, strict=True) if type_ == NORMAL}
    pairs = []
    for index, piece in enumerate(pieces):
        if piece not in mergeable:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in mergeable and right in mergeable:
                pairs.append((-scores[index], index, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(pairs)]


def byte_level_tokenizer(
    tokens: Sequence[str], merges: Sequence[tuple[str, ...]], types: Sequence[int], splitting: str
) -> Any:
    """A `tokenizers.Tokenizer` of GPT-2's kind; `splitting` is llama.cpp's name of the rule for words.

    Raises ValueError for a rule that is not known.
    """
    library = tokenizers_library()
    steps = library.pre_tokenizers
    gpt2 = steps.ByteLevel(add_prefix_space=False)
    rules = {
        "gpt-2": gpt2,
        "smollm": steps.Sequence([steps.Digits(individual_digits=True), gpt2]),
        "llama-bpe": steps.Sequence(
            [
                steps.Split(library.Regex(LLAMA3_WORDS), "isolated"),
                steps.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }
    if splitting not in rules:
        raise ValueError(f"tokenizer.ggml.pre {splitting!r} is not one of {', '.join(rules)}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    inner = library.Tokenizer(library.models.BPE(vocabulary, list(merges), ignore_merges=splitting == "llama-bpe"))
    inner.pre_tokenizer = rules[splitting]
    inner.decoder = library.decoders.ByteLevel()
    _add_special(inner, tokens, types, (CONTROL,))
    return inner


def _add_special(inner: Any, tokens: Sequence[str], types: Sequence[int], special: tuple[int, ...]) -> None:
    """Marks tokens of the types `special` as special, and user-defined ones as never to be split."""
    library = tokenizers_library()
    marked = [(token, type_) for token, type_ in zip(tokens, types, strict=True) if type_ in (*special, USER_DEFINED)]
    added = [library.AddedToken(token, special=type_ in special, normalized=False) for token, type_ in marked]
    inner.add_tokens(added)
