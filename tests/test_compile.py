"""Compiled training has the losses of plain training, and a machine without a compiler is told at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch._dynamo.utils import counters

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import load_plain
from engine.train import run_log
from tests.tiny import ROOT, TOKENIZER, write_corpus, write_tiny_checkpoint

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)


def pretrain_flags(tmp_path: Path, folder: str, *more: str) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus.txt", 40)
    model = ["--dim", "32", "--n_layers", "1", "--max_seq_len", "40", "--batch_tokens", "300", "--epochs", "2"]
    places = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(tmp_path / folder)]
    return ["--option", "pretrain", *model, *places, "--dropout", "0", "--optimizer", "adamw", "--threads", "1", *more]


def finetune_flags(tmp_path: Path, folder: str, *more: str) -> list[str]:
    config = LlamaConfig(vocab_size=4096, dim=32, n_layers=1, n_heads=4, n_kv_heads=4)
    write_tiny_checkpoint(tmp_path / "tiny.pt", config)
    lines = (ROOT / "data" / "reviews-train.txt").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "reviews-train.txt").write_text("".join(lines[:40]), encoding="utf-8")
    places = [f"--train={tmp_path}/reviews-train.txt", f"--dev={tmp_path}/reviews-train.txt"]
    places += [f"--test={tmp_path}/reviews-train.txt", f"--save_dir={tmp_path}/{folder}"]
    places += [f"--{split}_out={tmp_path}/{folder}-{split}-finetuning-output.txt" for split in ("dev", "test")]
    places += ["--label-names=data/reviews-label-mapping.json", f"--pretrained-model-path={tmp_path}/tiny.pt"]
    return ["--option", "finetune", *places, "--hidden_dropout_prob=0", "--epochs=1", "--lr=1e-3", "--threads=1", *more]


@needs_compiler
@pytest.mark.parametrize("flags", [pretrain_flags, pytest.param(finetune_flags, marks=pytest.mark.slow)])
def test_compiled_training_has_the_same_losses(tmp_path, flags, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    counters.clear()
    logs, names = [], []
    for folder, more in (("plain", []), ("compiled", ["--compile"])):
        assert run_llama.main(flags(tmp_path, folder, *more)) == 0
        state = next((tmp_path / folder).rglob("last.pt"))
        names.append(list(load_plain(state)["model"]))
        logs.append([record["loss"] for record in run_log.read(state.parent / "log.jsonl") if "loss" in record])
    assert counters["stats"]["unique_graphs"] >= 2  # the model's too, and not the check of the compiler alone
    assert not counters["graph_break"]  # a break within the layers sends all of them back to the interpreter
    assert names[0] == names[1]
    assert len(logs[0]) >= 5 and logs[1] == pytest.approx(logs[0], abs=1e-4)


def test_no_compiler_is_told_in_one_line(tmp_path):
    command = [sys.executable, "run_llama.py", *pretrain_flags(tmp_path, "run", "--compile")]
    bare = os.environ | {"PATH": str(tmp_path), "CXX": "nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "--compile: " in ended.stderr and "compiler" in ended.stderr


def test_compiled_recomputation_is_refused(tmp_path, capsys):
    assert run_llama.main(pretrain_flags(tmp_path, "run", "--compile", "--gradient_checkpointing")) == 2
    assert "exclude each other" in capsys.readouterr().err
