"""`--push`: the files on a local stand-in of the hub are those of the folder; `--dry_run` sends nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.hub import TOKEN, running_hub
from tests.tiny import ROOT, write_tiny_checkpoint

pytest.importorskip("huggingface_hub")


def push(tmp_path, url: str, token: str, *flags: str) -> subprocess.CompletedProcess:
    """Runs the export in a process of its own, because the hub's address is read when its package is imported."""
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    environment = {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "run_llama.py", "--option", "export", "--threads", "1", "--out", str(tmp_path / "out")]
    command += ["--pretrained-model-path", str(tmp_path / "tiny.pt"), "--push", "user/name", *flags]
    options = {"cwd": ROOT, "env": os.environ | environment, "capture_output": True, "check": False}
    return subprocess.run(command, text=True, encoding="utf-8", timeout=300, **options)


def test_a_folder_is_uploaded_as_it_is(tmp_path):
    with running_hub() as hub:
        done = push(tmp_path, hub.url, TOKEN)
        assert done.returncode == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.repositories == ["user/name"]
    uploaded = hub.files["user/name"]
    assert written == {name: uploaded[name] for name in written}
    assert "uploaded to" in done.stdout and "model.safetensors" in done.stdout


def test_a_dry_run_lists_the_files_and_sends_nothing(tmp_path):
    with running_hub() as hub:
        done = push(tmp_path, hub.url, TOKEN, "--dry_run")
    assert done.returncode == 0 and "would upload these files to user/name" in done.stdout
    assert all(path.name in done.stdout for path in (tmp_path / "out").iterdir())
    assert hub.repositories == [] and hub.files == {}


def test_who_is_not_logged_in_is_told_so_before_any_work(tmp_path):
    with running_hub() as hub:
        done = push(tmp_path, hub.url, "hf_wrong")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "hf auth login" in done.stderr
    assert not (tmp_path / "out").exists()
