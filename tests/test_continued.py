"""Continued pretraining: a checkpoint of any format goes on with its own shape and tokenizer, on text or reviews."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import bin_order, read_checkpoint, save_checkpoint
from engine.train import run_log
from llama import Llama, from_checkpoint, load_pretrained
from tasks.stories import evaluate
from tasks.stories.data import read_documents, split_documents
from tests.tiny import ROOT, TOKENIZER, write_corpus, write_tiny_checkpoint
from tokenizer import load_tokenizer

FIELDS = {"vocab_size": 4096, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 40}


def write_model(path: Path) -> Path:
    """A random model in the project's format, the course's (.course.pt) or llama2.c's (.bin), tokenizer beside it."""
    torch.manual_seed(3)
    config = LlamaConfig(**FIELDS, norm_type="rmsnorm" if path.suffix == ".bin" else "layernorm")
    state = Llama(config).state_dict()
    shutil.copy(TOKENIZER, path.parent / "tokenizer.model")
    if path.suffix == ".bin":
        numbers = (config.dim, config.ffn_dim, 2, 4, 2, config.vocab_size, config.max_seq_len)
        order = [state[name] if name else torch.zeros(shape) for name, shape in bin_order(config)]
        path.write_bytes(struct.pack("<7i", *numbers) + b"".join(tensor.numpy().tobytes() for tensor in order))
    elif path.name == "model.course.pt":
        torch.save({"model": state, "model_args": FIELDS | {"multiple_of": 32, "dropout": 0.0}}, path)
    else:
        save_checkpoint(path, config, state, path.parent / "tokenizer.model")
    return path


def flags(corpus: Path, model: Path, *more: str) -> list[str]:
    places = ["--corpus", str(corpus), "--pretrained-model-path", str(model), "--save_dir", str(model.parent / "run")]
    return ["--option", "pretrain", *places, "--epochs", "1", "--threads", "1", *more]


@pytest.mark.parametrize("name", ["model.pt", "model.course.pt", "model.bin"])
def test_the_first_loss_is_what_the_checkpoint_is_evaluated_at(tmp_path, name):
    model, corpus = write_model(tmp_path / name), write_corpus(tmp_path / "corpus.txt", 50)
    more = ("--batch_tokens", "100000", "--norm", "rmsnorm") if name.endswith(".bin") else ("--batch_tokens", "100000")
    more += ("--tokenizer", str(TOKENIZER)) if name.endswith(".bin") else ()  # beside a .bin is its tokenizer.bin
    assert run_llama.main(flags(corpus, model, *more)) == 0
    documents = read_documents(corpus)
    trained_on, _ = split_documents(len(documents), 0.01, seed=1337)
    known = load_pretrained(str(model), norm="rmsnorm" if name.endswith(".bin") else None)
    measured = evaluate.measure(known, load_tokenizer(TOKENIZER), [documents[number] for number in trained_on])
    logged = run_log.read(tmp_path / "run" / "log.jsonl")[0]
    assert logged["step"] == 1
    assert logged["loss"] == pytest.approx(measured["loss_per_token"], abs=2e-4)
    best = read_checkpoint(tmp_path / "run" / "best.pt")
    assert best.config.dim == 32 and best.config.max_seq_len == 40
    assert not torch.equal(best.state_dict["norm.weight"], known.norm.weight)  # it was trained


def test_the_dropout_alone_may_change_and_a_run_goes_on_from_the_same_checkpoint_only(tmp_path, capsys):
    model, corpus = write_model(tmp_path / "model.pt"), write_corpus(tmp_path / "corpus.txt", 50)
    assert run_llama.main(flags(corpus, model, "--dropout", "0.25", "--dim", "32", "--hidden_dim", "96")) == 0
    assert read_checkpoint(tmp_path / "run" / "best.pt").config.dropout == 0.25
    assert from_checkpoint(read_checkpoint(tmp_path / "run" / "best.pt")).layers[0].attention.dropout.p == 0.25
    write_tiny_checkpoint(tmp_path / "model.pt", LlamaConfig(**FIELDS))
    assert run_llama.main(flags(corpus, model, "--dropout", "0.25", "--resume")) == 2
    assert "started with pretrained" in capsys.readouterr().err


def test_reviews_are_read_without_their_labels(tmp_path):
    reviews = ROOT / "data" / "reviews-train.txt"
    documents = read_documents(reviews)
    lines = reviews.read_text("utf-8").splitlines()
    assert documents == [line.split(" ||| ")[1] for line in lines] and len(documents) == 150
    (tmp_path / "mixed.txt").write_text("1 ||| good\nplain text\n", encoding="utf-8")
    assert read_documents(tmp_path / "mixed.txt") == ["1 ||| good\nplain text"]
    model = write_model(tmp_path / "model.pt")
    assert run_llama.main(flags(reviews, model, "--batch_tokens", "2000")) == 0
    ids = np.load(next((tmp_path / "run" / "cache").glob("*.tokens.npy")))
    assert "|||" not in load_tokenizer(TOKENIZER).decode(ids.tolist())


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--dim", "64"], "--dim 64: "),
        (["--max_seq_len", "64"], "has 40"),
        (["--position_embedding_type", "alibi"], "has rotary"),
        (["--untied_output"], "is tied"),
        (["--freeze_embeddings"], "must be trained"),
        (["--embeddings", "w.vec"], "has its own"),
        (["--tokenizer", "other.model"], "a vocabulary of 4096: name its tokenizer"),
        (["--pretrained-model-path", "nothing.pt"], "no such file"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(tmp_path, capsys, more, reason):
    model, corpus = write_model(tmp_path / "model.pt"), write_corpus(tmp_path / "corpus.txt", 50)
    if "other.model" in more:
        more = ["--tokenizer", str(tmp_path / "other.model")]
        wanted = ["--option", "tokenizer", "--corpus", str(corpus), "--vocab_size", "330", *more]
        assert run_llama.main(wanted) == 0
        capsys.readouterr()
    assert run_llama.main(flags(corpus, model, *more)) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "log.jsonl").exists()
