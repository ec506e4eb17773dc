"""Set-up provides the course's files, or reports the missing ones by group; half a download never stays."""

from __future__ import annotations

import io
import shutil
import subprocess
import urllib.error

import pytest

from tasks import course_files
from tests.tiny import ROOT


class Answer(io.BytesIO):
    """What a web server would send, perhaps less than it promised."""

    def __init__(self, body: bytes, promised: int | None = None):
        super().__init__(body)
        self.headers = {"Content-Length": str(len(body) if promised is None else promised)}


def serve(monkeypatch, answers) -> list[str]:
    """Replaces the network by a function from address to answer; returns the list of addresses asked."""
    asked = []

    def urlopen(address, timeout):
        assert timeout <= 10
        asked.append(address)
        return answers(address)

    monkeypatch.setattr(course_files.urllib.request, "urlopen", urlopen)
    return asked


def unreachable(address):
    raise urllib.error.URLError("no network")


def test_everything_is_fetched_once(tmp_path, monkeypatch, capsys):
    asked = serve(monkeypatch, lambda address: Answer(address.encode()))
    assert course_files.main(["--into", str(tmp_path)]) == 0
    assert (tmp_path / "stories42M.pt").read_bytes() == course_files.STORIES[0].encode()
    assert (tmp_path / "data" / "sst-dev.txt").read_bytes().endswith(b"/main/data/sst-dev.txt")
    assert f"{len(asked)} of the course's {len(asked)} files are here" in capsys.readouterr().out
    asked.clear()
    assert course_files.main(["--into", str(tmp_path)]) == 0 and not asked


def test_without_a_network_each_group_has_one_line_and_each_host_is_asked_once(tmp_path, monkeypatch, capsys):
    asked = serve(monkeypatch, unreachable)
    assert course_files.main(["--into", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(asked) == 3
    groups = [line.removeprefix("missing ").partition(":")[0] for line in lines[:-1]]
    assert groups == ["weights", "golden values", "data"]
    assert "stories42M.pt, tokenizer.model (huggingface.co cannot be reached; raw.githubuser" in lines[0]
    assert all(file.path in "".join(lines) for file in course_files.FILES)
    assert lines[-1] == "0 of the course's 14 files are here"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_second_address_serves_where_the_first_fails(tmp_path, monkeypatch):
    serve(monkeypatch, lambda address: unreachable(address) if "cmu.edu" in address else Answer(b"weights"))
    course_files.main(["--into", str(tmp_path)])
    assert (tmp_path / "stories42M.pt").read_bytes() == b"weights"


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, capsys):
    serve(monkeypatch, lambda address: Answer(b"half", promised=8))
    assert course_files.main(["--into", str(tmp_path)]) == 0
    assert "missing weights: stories42M.pt, tokenizer.model (" in capsys.readouterr().out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_the_host_does_not_have_is_no_reason_to_give_the_host_up(tmp_path, monkeypatch, capsys):
    def answers(address):
        if address.endswith("tokenizer.model"):
            raise urllib.error.HTTPError(address, 404, "not found", {}, None)
        return Answer(b"x")

    serve(monkeypatch, answers)
    course_files.main(["--into", str(tmp_path)])
    out = capsys.readouterr().out
    assert "missing weights: tokenizer.model (raw.githubusercontent.com answers 404)" in out
    assert out.count("missing") == 1


def test_copying_from_a_folder_keeps_what_is_there(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "data").mkdir(parents=True)
    (target / "data").mkdir(parents=True)
    for name in ("tokenizer.model", "data/sst-dev.txt", "data/addition_test.txt"):
        (source / name).write_text("theirs")
    for name in ("addition_test.txt", "sst-dev.txt"):
        (target / "data" / name).write_text("mine")
    assert course_files.main(["--from", str(source), "--into", str(target)]) == 0
    assert (target / "tokenizer.model").read_text() == "theirs"
    assert (target / "data" / "course_addition_test.txt").read_text() == "theirs"
    assert (target / "data" / "sst-dev.txt").read_text() == "mine"
    assert (target / "data" / "addition_test.txt").read_text() == "mine"
    assert "3 of the course's 14 files are here" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    assert course_files.main(["--from", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--sing"], "unknown flag --sing"), (["--from"], "needs a folder"), (["--from", "/no/such"], "no such folder")],
)
def test_setup_refuses_what_it_does_not_know(flags, message):
    ended = subprocess.run(["bash", "setup.sh", *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1


def test_setup_needs_a_modern_python(tmp_path):
    (tmp_path / "setup.sh").write_bytes((ROOT / "setup.sh").read_bytes())
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    environment = {"PATH": str(tmp_path), "PYTHON": str(tmp_path / "old")}
    ended = subprocess.run(
        ["/bin/bash", "setup.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and "Python 3.11 or later is needed" in ended.stderr
    assert not (tmp_path / ".venv").exists()
