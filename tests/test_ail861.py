"""The whole assignment: its commands are ones that exist, bad input is refused, and a tiny run fills the report."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

import run_llama
from tasks import cli
from tasks.ail861 import run as ail861
from tasks.ail861.flags import Ail861Settings
from tests.tiny import write_corpus

MODEL = {
    "n_layers": 3, "n_heads": 8, "max_seq_len": 64, "position_embedding_type": "sinusoidal", "lr": 3e-4,
    "weight_decay": 0.0, "schedule": "constant", "untied_output": True, "optimizer": "adamw",
}  # fmt: skip


@pytest.fixture
def texts(tmp_path):
    pytest.importorskip("gensim", reason="requirements-ail861.txt is not installed")
    corpus, valid = write_corpus(tmp_path / "train.txt", 120), write_corpus(tmp_path / "valid.txt", 40)
    flags = ["--corpus", str(corpus), "--valid", str(valid), "--size", "tiny", "--threads", "1"]
    return [*flags, "--save_dir", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]


def test_the_commands_exist_and_never_train_on_the_validation_text(texts, tmp_path, capsys):
    assert ail861.main([*texts, "--use_gpu", "--show"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 13 and not (tmp_path / "runs").exists()
    for line in lines:
        if "run_llama.py" not in line[1]:
            continue
        option, args = cli.parse(run_llama.PROGRAM, line[2:])
        if option == "pretrain":
            recipe = {"lr", "schedule"} if args.save_dir.endswith("measured") else set()  # the measured model's own
            assert {name: getattr(args, name) for name in MODEL.keys() - recipe} == {
                name: value for name, value in MODEL.items() if name not in recipe
            }
        if option != "evaluate":
            assert all(not path.endswith("valid.txt") for path in args.corpus)


@pytest.mark.parametrize("missing", ["--corpus", "--valid"])
def test_a_missing_text_is_refused(texts, tmp_path, capsys, missing):
    texts[texts.index(missing) + 1] = str(tmp_path / "nothing.txt")
    assert ail861.main(texts) == 2
    error = capsys.readouterr().err
    assert "no such file" in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_step_that_fails_is_named(texts, tmp_path, capsys):
    (tmp_path / "valid.txt").write_text("too short", encoding="utf-8")
    steps = ail861.prepare(cli.parse_alone("ail861", Ail861Settings, "", texts))
    (tmp_path / "runs" / "words.json").write_text("no vocabulary")
    with pytest.raises(ChildProcessError, match=r"vectors ended with code 2 .*not a word vocabulary"):
        ail861.perform(steps[1], tmp_path / "runs")


@pytest.mark.slow
def test_a_tiny_run_fills_the_report(texts, tmp_path, capsys):
    assert ail861.main(texts) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert set(results["accumulation"]) == {"1", "2", "4", "8"}
    assert results["checkpointing"]["epoch"]["same_losses"]
    assert results["evaluation"]["continuations"]["cache"]["same_output"]
    made = {path.name for path in (tmp_path / "results").iterdir()}
    figures = {"loss", "perplexity", "embeddings", "accumulation", "decoding", "checkpointing", "attention-1"}
    assert {f"{name}.png" for name in figures} <= made and "tables.md" in made
    assert ail861.main(texts) == 0
    assert capsys.readouterr().out.count("done before") == 13


def test_a_long_step_shows_the_last_line_of_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ail861, "SHOW_EVERY", 0.2)
    code = "import sys, time; print('step 1\\rstep 2', flush=True); time.sleep(1); sys.exit(int(sys.argv[1]))"
    ail861.perform(ail861.Step("long", [sys.executable, "-c", code, "0"], tmp_path / "done"), tmp_path)
    assert "  step 2\n" in capsys.readouterr().out
    assert (tmp_path / "long.log").read_text().endswith("step 2\n")
    with pytest.raises(ChildProcessError, match=r"short ended with code 3 .*: step 2"):
        ail861.perform(ail861.Step("short", [sys.executable, "-c", code, "3"], tmp_path / "done"), tmp_path)
