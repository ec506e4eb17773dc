"""Files are written whole or not at all, and unusable paths are named before work begins."""

from __future__ import annotations

import os

import pytest

from engine.io.files import atomic_path, check_readable, check_writable, read_text, write_text
from engine.train import run_log
from engine.train.run_log import RunLog


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "eins\nzwei – ½\n")
    assert (tmp_path / "a.txt").read_bytes() == "eins\nzwei – ½\n".encode()
    assert read_text(tmp_path / "a.txt") == "eins\nzwei – ½\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert read_text(tmp_path / "a.txt") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_paths_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_readable(tmp_path / "a")
    for check in (check_readable, check_writable):
        with pytest.raises(IsADirectoryError):
            check(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_writable(tmp_path / "a" / "b")
    assert check_writable(tmp_path / "new") and not (tmp_path / "new").exists()


def test_a_log_is_readable_line_by_line_and_can_be_cut(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(1, 6):
        log.write(step=step, loss=1 / step)
    with open(log.path, "a") as file:
        file.write('{"step": 6, "lo')  # the process was killed here
    assert [record["step"] for record in run_log.read(log.path)] == [1, 2, 3, 4, 5]
    log.cut_after(3)
    assert run_log.read(log.path) == [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    RunLog(None).write(step=1)
