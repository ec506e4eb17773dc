"""Two real processes (gloo) train as one: the same losses and weights, one writer, and a killed run goes on."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import run_llama
from engine.io.checkpoint import load_plain
from engine.train import run_log
from tests.tiny import ROOT, TOKENIZER, write_corpus, write_tiny_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def start(argv: list[str], count: int = 2) -> list[subprocess.Popen]:
    """Starts `run_llama.py` in `count` processes with the environment torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "run_llama.py", *argv], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    said = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def pretrain_flags(tmp_path: Path, folder: str, *more: str) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus.txt", 61)
    model = ["--dim", "32", "--n_layers", "2", "--max_seq_len", "24", "--batch_tokens", "100", "--epochs", "2"]
    places = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(tmp_path / folder)]
    often = ["--evaluate_every", "5", "--save_every", "4", "--held_out", "0.1", "--warmup_steps", "2"]
    return ["--option", "pretrain", *model, *places, *often, "--lr", "1e-3", "--threads", "1", *more]


def sentiment_flags(tmp_path: Path, option: str, folder: str, *more: str) -> list[str]:
    method = {"finetune": "finetuning", "lora": "lora"}[option]
    (tmp_path / folder).mkdir(exist_ok=True)
    lines = (ROOT / "data" / "reviews-train.txt").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "reviews-train.txt").write_text("".join(lines[:45]), encoding="utf-8")  # batches of 7, the last of 3
    places = [f"--train={tmp_path}/reviews-train.txt"]
    places += [f"--{split}=data/reviews-{split}.txt" for split in ("dev", "test")]
    places += [f"--{split}_out={tmp_path}/{folder}/{split}-{method}-output.txt" for split in ("dev", "test")]
    places += ["--label-names=data/reviews-label-mapping.json", f"--save_dir={tmp_path}/{folder}"]
    places += [f"--pretrained-model-path={tmp_path}/tiny.pt", "--hidden_dropout_prob=0", "--threads=1"]
    return ["--option", option, *places, "--batch_size=7", "--epochs=2", "--lr=1e-3", *more]


def assert_same_run(one: Path, two: Path) -> None:
    """Losses, measurements and final weights within 1e-5."""
    logs = [run_log.read(folder / "log.jsonl") for folder in (one, two)]
    assert len(logs[0]) == len(logs[1]) >= 10
    for alone, together in zip(*logs, strict=True):
        for name in alone.keys() - {"seconds", "processor_seconds"}:
            assert together[name] == pytest.approx(alone[name], abs=1e-5 if "perplexity" not in name else 0.1), name
    states = [load_plain(folder / "last.pt") for folder in (one, two)]
    assert [len(state["random"]) for state in states] == [1, 2]
    for name, tensor in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [("--optimizer", "adamw"), ("--accumulation", "3", "--optimizer", "adamw")])
def test_two_processes_pretrain_as_one(tmp_path, more):
    """Batches of one to four rows: some hold fewer rows than there are processes to share them."""
    more = ("--dropout", "0", *more)
    assert run_llama.main(pretrain_flags(tmp_path, "one", *more)) == 0
    first, second = finish(start(pretrain_flags(tmp_path, "two", *more)))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "best held-out loss" in first[1] and second[1:] == ("", "")
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_two_processes_fine_tune_as_one(tmp_path, option):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    more = ("--weight_decay=0.1", "--max_grad_norm=1", "--accumulation=2", "--evaluate_every=2")
    if option == "finetune":
        more += ("--dtype=float32",)
    assert run_llama.main(sentiment_flags(tmp_path, option, "one", *more)) == 0
    first, second = finish(start(sentiment_flags(tmp_path, option, "two", *more)))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "dev acc" in first[1] and second[1:] == ("", "")
    folders = [next((tmp_path / name).glob(f"{option}-*")) for name in ("one", "two")]
    assert_same_run(*folders)
    written = [{path.name: path.read_text("utf-8") for path in (tmp_path / n).glob("*.txt")} for n in ("one", "two")]
    assert len(written[0]) == 2 and written[0] == written[1]


def test_two_killed_processes_resume_to_the_same_bits(tmp_path):
    """Dropout is on: each process goes on with its own random state."""
    more = ("--dropout", "0.2", "--epochs", "6")
    assert [code for code, *_ in finish(start(pretrain_flags(tmp_path, "whole", *more)))] == [0, 0]
    processes = start(pretrain_flags(tmp_path, "killed", *more))
    deadline = time.monotonic() + 600
    while not (tmp_path / "killed" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, 0.3))
    for process in processes:
        process.kill()
    finish(processes)
    at = load_plain(tmp_path / "killed" / "last.pt")["progress"]["step"]
    resumed = finish(start(pretrain_flags(tmp_path, "killed", *more, "--resume")))
    assert [code for code, *_ in resumed] == [0, 0], resumed
    states = [load_plain(tmp_path / name / "last.pt") for name in ("whole", "killed")]
    assert at < states[0]["progress"]["step"] == states[1]["progress"]["step"]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    draws = states[0]["random"]
    assert len(draws) == 2 and not torch.equal(draws[0]["cpu"], draws[1]["cpu"])
    assert run_llama.main(pretrain_flags(tmp_path, "killed", *more, "--resume")) == 2  # one alone is another run


@pytest.mark.parametrize("dead", [0, 1])
def test_the_survivor_names_the_process_that_ended_and_how_to_resume(tmp_path, dead):
    processes = start(pretrain_flags(tmp_path, "run", "--epochs", "60"))
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[dead].kill()
    code, _, shown = finish(processes)[1 - dead]
    lines = [line for line in shown.split("\n") if line and not line.startswith(("training", "\r"))]
    assert code == 1 and "Traceback" not in shown
    assert f"run_llama.py: process {dead} of 2 of this run has ended" in lines[-1]
    assert "start all of them again with --resume" in lines[-1]


def test_torchrun_itself_and_one_line_where_input_is_bad(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run_llama.py"]
    quiet = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 600}
    good = subprocess.run([*command, *pretrain_flags(tmp_path, "run", "--epochs", "1")], **quiet)
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("best held-out loss") == 1
    assert (tmp_path / "run" / "best.pt").exists()
    bad = subprocess.run([*command, *pretrain_flags(tmp_path, "run")], **quiet)
    assert bad.returncode != 0
    assert bad.stderr.count("run_llama.py: ") == 1 and "holds a run already" in bad.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("--corpus", "nothing.txt"), "no such file"),
        (("--epochs", "none"), "invalid whole number"),
    ],
)
def test_bad_input_is_told_once(tmp_path, change, reason):
    assert_told_once([*pretrain_flags(tmp_path, "run"), *change], reason)


def test_an_option_for_one_process_is_refused_once():
    assert_told_once(["--option", "evaluate", "--corpus", "nothing.txt"], "start it without torchrun")


def assert_told_once(flags: list[str], reason: str) -> None:
    first, second = finish(start(flags))
    assert (first[0], second[0]) == (2, 2)
    assert first[2].count("\n") == 1 and reason in first[2]
    assert second[1:] == ("", "")
