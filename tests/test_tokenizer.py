"""Text survives both tokenizers, and llama2.c's merges give what SentencePiece gives."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import load_plain, read_checkpoint, save_plain
from tests.tiny import ROOT, TOKENIZER, stories, write_tiny_checkpoint
from tokenizer import BinTokenizer, Tokenizer, load_tokenizer, train_tokenizer, vocabulary_digest

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


def test_export_writes_llama2cs_file(tmp_path, exported):
    shutil.copyfile(TOKENIZER, tmp_path / "copy.model")
    written = Tokenizer(tokenizer_model=str(tmp_path / "copy.model")).export()
    assert Path(written).name == "copy.bin" and Path(written).read_bytes() == Path(exported.model_path).read_bytes()


@pytest.fixture
def trained(tmp_path) -> Path:
    """A model, its tokenizer `own.model` and another one of the same size, `other.model`."""
    (tmp_path / "own.model").write_bytes(train_tokenizer(stories(), 320))
    (tmp_path / "other.model").write_bytes(train_tokenizer([text.upper() for text in stories()], 320))
    config = LlamaConfig(vocab_size=320, dim=8, n_layers=1, n_heads=2, n_kv_heads=2, max_seq_len=64)
    write_tiny_checkpoint(tmp_path / "model.pt", config, tmp_path / "own.model")
    return tmp_path


def continue_with(model: Path, *flags: str) -> int:
    words = f"--option generate --prompt Ann --temperature 0 --max_new_tokens 2 --pretrained-model-path {model}"
    return run_llama.main([*words.split(), *flags])


def test_a_model_refuses_another_tokenizer_of_the_same_size(trained, capsys):
    assert continue_with(trained / "model.pt") == 0
    assert continue_with(trained / "model.pt", "--tokenizer", Tokenizer(None, str(trained / "own.model")).export()) == 0
    capsys.readouterr()
    assert continue_with(trained / "model.pt", "--tokenizer", str(trained / "other.model")) == 2
    shutil.copyfile(trained / "other.model", trained / "own.model")
    assert continue_with(trained / "model.pt") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("but other ones: name its own with --tokenizer" in line for line in lines)


def test_a_model_from_before_digests_loads_with_any_tokenizer_of_its_size(trained):
    content = load_plain(trained / "model.pt")
    del content["vocabulary"]
    save_plain(content, trained / "model.pt")
    assert continue_with(trained / "model.pt", "--tokenizer", str(trained / "other.model")) == 0


def test_the_shipped_model_knows_its_tokenizer():
    assert read_checkpoint(ROOT / "models" / "stories.pt").vocabulary == vocabulary_digest(SHIPPED)


def test_a_trained_tokenizer_has_llamas_special_ids(tmp_path):
    (tmp_path / "own.model").write_bytes(train_tokenizer(stories(), 320))
    tokenizer = load_tokenizer(tmp_path / "own.model")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, 3, 320)
    assert tokenizer.decode(tokenizer.encode("  Ünï 🐉\n\n12", bos=True, eos=True)) == "  Ünï 🐉\n\n12"
    digits = tokenizer.encode("1234", bos=False, eos=False)
    assert [tokenizer.decode([token]).strip() for token in digits if tokenizer.decode([token]).strip()] == list("1234")
    with pytest.raises(ValueError, match="no tokenizer of 30000 pieces"):
        train_tokenizer(["too little"], 30000)
