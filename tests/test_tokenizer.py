"""Text survives both tokenizers, and llama2.c's merges give what SentencePiece gives."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import TOKENIZER, stories
from tokenizer import BinTokenizer, Tokenizer, load_tokenizer, train_tokenizer

SHIPPED = Tokenizer(tokenizer_model=str(TOKENIZER))
TEXTS = ["Once upon a time", " two  spaces and\na newline", "Zoë 🐉 naïve café", "it didn't disappoint.", "", "  "]


def write_bin(path: Path, tokenizer: Tokenizer) -> Path:
    """The SentencePiece model in llama2.c's layout, as its own exporter writes it."""
    pieces = []
    for index in range(tokenizer.n_words):
        piece = tokenizer.sp_model.id_to_piece(index).replace("▁", " ")
        if index in (tokenizer.bos_id, tokenizer.eos_id):
            piece = {tokenizer.bos_id: "\n<s>\n", tokenizer.eos_id: "\n</s>\n"}[index]
        pieces.append((tokenizer.sp_model.get_score(index), piece.encode("utf-8")))
    content = struct.pack("<i", max(len(raw) for _, raw in pieces))
    path.write_bytes(content + b"".join(struct.pack("<fi", score, len(raw)) + raw for score, raw in pieces))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> BinTokenizer:
    return load_tokenizer(write_bin(tmp_path_factory.mktemp("bin") / "tokenizer.bin", SHIPPED))


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0▁"), max_size=60))
def test_any_text_comes_back(text):
    assert SHIPPED.decode(SHIPPED.encode(text, bos=True, eos=True)) == text


@settings(max_examples=60)
@given(st.one_of(st.sampled_from(stories()), st.sampled_from(TEXTS), st.text("abc de'\n.é🐉", max_size=30)))
def test_llama2c_merges_equal_sentencepiece(exported, text):
    ids = exported.encode(text, bos=True, eos=False)
    assert ids == SHIPPED.encode(text, bos=True, eos=False)
    assert exported.decode(ids) == text


def test_both_have_the_course_interface(exported):
    for tokenizer in (SHIPPED, exported):
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, 3, 4096)
        ids = tokenizer.encode("hello", bos=True, eos=True)
        assert ids[0] == 1 and ids[-1] == 2
        assert tokenizer.encode("hello", bos=False, eos=False) == ids[1:-1]


def test_max_len_cuts_pieces_before_bos_and_eos(exported):
    whole = SHIPPED.encode("a little red hat", bos=False, eos=False)
    for kind in (Tokenizer(3, str(TOKENIZER)), BinTokenizer(3, exported.model_path)):
        assert kind.encode("a little red hat", bos=True, eos=True) == [1, *whole[:3], 2]


def test_files_that_are_no_tokenizers_are_refused(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer(tokenizer_model=str(tmp_path / "none.model"))
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none.bin")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "text.model")
    whole = Path(exported.model_path).read_bytes()
    for content in (whole[:-3], whole[:5000], b"", b"\0" * 100):
        (tmp_path / "cut.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"not a llama2\.c tokenizer"):
            load_tokenizer(tmp_path / "cut.bin")


def test_a_trained_tokenizer_has_llamas_special_ids(tmp_path):
    (tmp_path / "own.model").write_bytes(train_tokenizer(stories(), 320))
    tokenizer = load_tokenizer(tmp_path / "own.model")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, 3, 320)
    assert tokenizer.decode(tokenizer.encode("  Ünï 🐉\n\n12", bos=True, eos=True)) == "  Ünï 🐉\n\n12"
    digits = tokenizer.encode("1234", bos=False, eos=False)
    assert [tokenizer.decode([token]).strip() for token in digits if tokenizer.decode([token]).strip()] == list("1234")
    with pytest.raises(ValueError, match="no tokenizer of 30000 pieces"):
        train_tokenizer(["too little"], 30000)
