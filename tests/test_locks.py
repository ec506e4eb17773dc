"""Locks end with their process; what killed runs leave is removed by the next one; two runs do not share a folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_llama
from engine.io import locks
from engine.io.files import appended, write_text
from tests.tiny import ROOT, TOKENIZER, write_corpus

WRITER = """
import sys, time
from engine.io.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"x" * 100_000)
    print("writing", flush=True)
    sys.stdin.read()
"""
HOLDER = """
import sys
from engine.io import locks
locks.hold_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def started(code: str, path: Path) -> subprocess.Popen:
    """A process that runs `code` and has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != locks.NAME]


def test_what_killed_writers_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path):
    target, rng = tmp_path / "last.pt", random.Random(18)
    write_text(target, "old")
    for _ in range(3):
        kill(started(WRITER, target))
        assert len(hidden(tmp_path)) == 1 and target.read_text() == "old"  # the one before was removed
    living = started(WRITER, target)
    assert len(hidden(tmp_path)) == 1
    kill(started(WRITER, tmp_path / f"best-{rng.random()}.pt"))
    write_text(tmp_path / ".mine.tmp", "a file of the user's")
    write_text(target, "new")
    assert len(hidden(tmp_path)) == 3
    living.communicate(b"")
    assert target.read_bytes() == b"x" * 100_000
    locks.hold_folder(tmp_path)
    locks.release()
    assert hidden(tmp_path) == []


def test_two_runs_in_one_folder_are_refused_until_the_first_ends_however_it_ends(tmp_path):
    for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        first = started(HOLDER, tmp_path)
        with pytest.raises(BlockingIOError, match=f"another run works in .* \\(process {first.pid}\\)"):
            locks.hold_folder(tmp_path)
        first.send_signal(stop)
        first.communicate()
        locks.hold_folder(tmp_path)
        locks.hold_folder(f"{tmp_path}/.")  # the same process and folder
        locks.release()


def test_a_second_training_in_the_folder_is_one_line(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    words = ["--option", "pretrain", "--corpus", str(write_corpus(tmp_path / "c.txt")), "--tokenizer", str(TOKENIZER)]
    words += ["--dim", "16", "--n_layers", "1", "--n_heads", "2", "--n_kv_heads", "2", "--max_seq_len", "32"]
    words += ["--epochs", "1", "--threads", "1", "--save_dir", f"{folder}/"]
    first = started(HOLDER, folder)
    assert run_llama.main(words) == 2
    error = capsys.readouterr().err
    assert "another run works in" in error and error.count("\n") == 1
    assert not (folder / "log.jsonl").exists() and not (folder / "recipe.toml").exists()
    kill(first)
    assert run_llama.main(words) == 0


def test_two_runs_that_write_one_text_do_not_mix_their_texts(tmp_path):
    with appended(tmp_path / "out.txt") as keep:
        keep("first")
        with pytest.raises(BlockingIOError, match="another run writes"), appended(tmp_path / "out.txt") as other:
            other("second")
        assert (tmp_path / "out.txt.partial").read_text() == "first"
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_everything_is_written_and_nothing_removed(tmp_path, monkeypatch):
    kill(started(WRITER, tmp_path / "a.txt"))
    monkeypatch.setattr(locks, "fcntl", None)
    write_text(tmp_path / "a.txt", "text")
    locks.hold_folder(tmp_path)
    locks.release()
    assert (tmp_path / "a.txt").read_text() == "text" and len(hidden(tmp_path)) == 1


def test_many_writers_of_one_file_end_with_one_whole_text(tmp_path):
    code = "import sys\nfrom engine.io.files import write_text\n"
    code += "for n in range(150): write_text(sys.argv[1], str(n) * 5000)"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.txt")], cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "a.txt").read_text() == "149" * 5000
    assert os.listdir(tmp_path) == ["a.txt"]


FAKE_PYTHON = """#!/bin/bash
# stands for Python in setup.sh: makes a .venv slowly, and counts how many do so together
case "$*" in
  *"import fcntl"*) exec {python} "$@" ;;
  *"-m venv"*)
    mkdir making || {{ echo two at once >> mixed; }}
    sleep 0.7; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made >> made; rmdir making ;;
  *"pip install"*)
    mkdir installing || {{ echo two at once >> mixed; }}
    sleep 0.3; echo installed >> installed; rmdir installing ;;
esac
"""


def test_two_set_ups_at_once_both_succeed_and_work_once(tmp_path):
    for name in ("setup.sh", "requirements.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(FAKE_PYTHON.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PYTHON": str(tmp_path / "python")}

    def set_up() -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "setup.sh", "--offline"], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    first = set_up()
    deadline = time.monotonic() + 60
    while not (tmp_path / "making").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = set_up()
    texts = [process.communicate()[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], texts
    assert "another set-up works here: waiting for it" in texts[1]
    assert (tmp_path / "made").read_text() == "made\n" and (tmp_path / "installed").read_text() == "installed\n"
    assert not (tmp_path / "mixed").exists()
