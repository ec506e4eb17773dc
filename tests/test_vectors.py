"""FastText vectors: read as gensim reads them, streamed, and put where the model starts from."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import load_plain, read_checkpoint
from engine.train.muon import muon_groups
from llama import Llama
from optimizer import decay_groups
from tasks.stories.fasttext import fill_embeddings, read_vectors
from tests.tiny import TOKENIZER, write_corpus
from tokenizer import load_tokenizer

VEC = "3 4\nball 1 2 3 4\nżółw -0.5 0.25 1e-3 0\nkite 0 0 0 1\n"
MODEL = ["--dim", "16", "--n_layers", "1", "--n_heads", "4", "--n_kv_heads", "4", "--max_seq_len", "32"]


@pytest.fixture
def words(tmp_path):
    """A corpus and the vocabulary of its words."""
    corpus = write_corpus(tmp_path / "corpus.txt", 60)
    flags = ["--option", "tokenizer", "--corpus", str(corpus), "--tokenizer", str(tmp_path / "words.json")]
    assert run_llama.main([*flags, "--vocab_size", "300"]) == 0
    return corpus, tmp_path / "words.json"


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [VEC, VEC.split("\n", 1)[1]], ids=["with a header", "without"])
def test_a_vec_file_by_hand(tmp_path, text):
    found = read_vectors(write(tmp_path / "a.vec", text), ["żółw", "ball", "zebra"])
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "ball": [1, 2, 3, 4], "żółw": pytest.approx([-0.5, 0.25, 1e-3, 0]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (VEC.replace("3 4\nb", "9 4\nb"), "cut short: 3 of 9"),
        (VEC.replace("1 2 3 4", "1 2 3"), "line 2: 3 numbers, not 4"),
        (VEC.replace("1 2 3 4", "1 2 3 x"), "line 2: not a word and its numbers"),
        (VEC.replace("1 2 3 4", "1 2 3 nan"), "not finite"),
    ],
)
def test_damage_is_told(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        read_vectors(write(tmp_path / "a.vec", text), ["ball", "zebra"])


def test_a_large_file_is_not_held_in_memory(tmp_path):
    line = " ".join(["0.12345"] * 300)
    path = write(tmp_path / "large.vec", "".join(f"w{number} {line}\n" for number in range(4000)))
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    found = read_vectors(path, ["w7", "w3999"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2 and peak < 1e6


def test_rows_are_filled_and_their_size_kept(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(5, 4) * 0.02
    before = weight.clone()
    assert fill_embeddings(weight, ["<pad>", "kite", "zebra", "ball", "ant"], write(tmp_path / "a.vec", VEC), 1) == 2
    for row in (0, 2, 4):
        assert torch.equal(weight[row], before[row])
    assert (weight[3] / weight[1, 3]).tolist() == pytest.approx([1, 2, 3, 4], rel=1e-5)
    assert weight[[1, 3]].square().mean().item() == pytest.approx(before[[1, 3]].square().mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="width 4, but the model is 6 wide"):
        fill_embeddings(torch.zeros(2, 6), ["ball", "kite"], tmp_path / "a.vec", 0)
    with pytest.raises(ValueError, match="contains none of the 1 words"):
        fill_embeddings(torch.zeros(1, 4), ["zebra"], tmp_path / "a.vec", 0)


@pytest.mark.parametrize("suffix", ["vec", "bin"])
def test_trained_vectors_are_read_as_gensim_reads_them(words, tmp_path, suffix, capsys):
    keyed = pytest.importorskip("gensim.models.keyedvectors", reason="requirements-ail861.txt is not installed")
    from gensim.models.fasttext import load_facebook_vectors

    corpus, vocabulary = words
    target = tmp_path / f"words.{suffix}"
    flags = ["--option", "vectors", "--corpus", str(corpus), "--tokenizer", str(vocabulary), "--dim", "16"]
    assert run_llama.main([*flags, "--embeddings", str(target), "--epochs", "1"]) == 0
    known = load_tokenizer(vocabulary).words[4:]
    found = read_vectors(target, known)
    other = keyed.KeyedVectors.load_word2vec_format(target) if suffix == "vec" else load_facebook_vectors(str(target))
    assert set(found) == set(known)
    for word in known:
        np.testing.assert_allclose(found[word], other[word], atol=1e-6)
    if suffix == "bin":  # a word never seen is composed of its n-grams
        assert np.abs(read_vectors(target, ["ballkite"])["ballkite"]).sum() > 0
        with pytest.raises(ValueError, match="not a fastText model"):
            (tmp_path / "cut.bin").write_bytes(target.read_bytes()[:200])
            read_vectors(tmp_path / "cut.bin", known)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_starts_from_the_vectors(words, tmp_path, capsys, frozen):
    corpus, vocabulary = words
    known, random = load_tokenizer(vocabulary).words, np.random.default_rng(0)
    rows = [f"{word} {' '.join(map(str, random.normal(size=16)))}" for word in known[4:-2]]
    vectors = write(tmp_path / "words.vec", "\n".join(rows) + "\n")
    flags = ["--option", "pretrain", "--corpus", str(corpus), "--tokenizer", str(vocabulary), *MODEL, "--epochs", "1"]
    flags += ["--save_dir", str(tmp_path / "run"), "--embeddings", str(vectors), "--untied_output", "--lr", "0.01"]
    flags += ["--optimizer", "adamw", *(["--freeze_embeddings"] if frozen else [])]
    assert run_llama.main(flags) == 0
    assert f"{len(known) - 6} of {len(known) - 4} words" in capsys.readouterr().out
    trained = load_plain(tmp_path / "run" / "last.pt")["model"]["tok_embeddings.weight"][4:-2]
    ratio = trained / torch.tensor([[float(value) for value in row.split()[1:]] for row in rows])
    assert (ratio.std() / ratio.mean() < 1e-4) == frozen
    assert read_checkpoint(tmp_path / "run" / "best.pt").config.tie_embeddings is False


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--embeddings", "nothing.vec", "--untied_output"], "no such file"),
        (["--freeze_embeddings"], "--freeze_embeddings needs --untied_output"),
        (["--embeddings", "a.vec", "--tokenizer", str(TOKENIZER)], "vocabulary of words"),
    ],
)
def test_bad_input_is_refused(words, tmp_path, capsys, more, reason):
    corpus, vocabulary = words
    flags = ["--option", "pretrain", "--corpus", str(corpus), "--tokenizer", str(vocabulary), *MODEL]
    assert run_llama.main([*flags, "--save_dir", str(tmp_path / "run"), *more]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize("groups", [decay_groups, muon_groups])
def test_what_is_frozen_is_in_no_group(groups):
    model = Llama(LlamaConfig(vocab_size=9, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, tie_embeddings=False))
    model.tok_embeddings.weight.requires_grad_(False)
    grouped = {id(parameter) for group in groups(model, 0.1) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
