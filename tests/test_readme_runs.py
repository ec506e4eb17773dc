"""Every command in README's code blocks and every command of the course runs, and leaves nothing for git to report.

They run in order in a copy of the project with a few made-up sentences as the course's data. Most are marked slow:

    python -m pytest tests/test_readme_runs.py -m "slow or not slow"
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import LlamaConfig
from tasks.submission.files import BEST, COURSES, addition_steps, steps
from tests.submission_project import write_data
from tests.test_checkpoint import random_llama, write_bin
from tests.tiny import ROOT, TOKENIZER
from tokenizer import Tokenizer

FENCED = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"(python|torchrun|make|bash|git|pip) ")
TRAINING = "--epochs 1 --max_sentence_len 8 --batch_size 4"
ADDER = "--examples 2048 --batch_size 64 --epochs 1 --dev_examples 64 --no_compile"
SHORTER = {  # the start of a command: flags that shorten it, or the command that runs in its place
    "git clone": "true",  # the copy is the clone
    "make test": "make --dry-run test",  # this is it
    "bash setup.sh": "bash setup.sh --offline",
    "make generate": None,
    "make submission": None,
    "python run_llama.py --option generate": "--max_new_tokens 8",
    "python run_llama.py --option prompt": "",
    "python run_llama.py --option finetune": TRAINING,
    "python run_llama.py --option lora": TRAINING,
    "python run_llama.py --recipe": f"{TRAINING} --seeds 1337 --dtype float32",
    "python run_llama.py --option predict": "",
    "python run_llama.py --option tokenizer": "",
    "python run_llama.py --option pretrain": "",
    "python run_llama.py --option evaluate": "",
    "python run_llama.py --option addition": "",
    "python run_llama.py --option page": "",
    "torchrun": "",
    "python addition_run.py train --recipe": f"{ADDER} --trial_seeds 2 --trial_examples 512 --trial_batch_size 64",
    "python addition_run.py train": ADDER,
    "python addition_run.py test": "",
    "python prepare_submit.py": "|| true",  # it reports what is missing by its exit code
}
FAST = ("git clone", "make test", "bash setup.sh", "python run_llama.py --option tokenizer",
        "python run_llama.py --option addition", "python addition_run.py train --dim")  # fmt: skip


def readme_commands(text: str) -> list[str]:
    """The command lines of the code blocks, continued lines joined, comments gone."""
    lines = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if COMMAND.match(line)]


def runnable(line: str) -> str:
    """The command as it runs here: shortened, and with a run of the copy for README's `RUN`."""
    start = max((start for start in SHORTER if line.startswith(start)), key=len)
    change = SHORTER[start]
    line = line.replace("runs/RUN/", "runs/finetune-reviews-0.0003-1-1337-max_sentence_len=8-batch_size=4/")
    if change is None:
        return line
    return change if change.split()[:1] in (["true"], ["make"], ["bash"]) else f"{line} {change}"


README = readme_commands((ROOT / "README.md").read_text("utf-8"))
ALL_COURSES = [step.command for name in ("spring2026", "fall2025") for step in steps(COURSES[name]) if step.option]
ALL_COURSES += [step.command for step in addition_steps(BEST)]
LINES = list(dict.fromkeys([*README, *ALL_COURSES, "bash setup.sh"]))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A repository with this project's files, the course's data in small, a checkpoint of llama2.c and a `.venv`."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm copy"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    (folder / ".git" / "info" / "exclude").write_text("/*.bin\n")  # the foreign checkpoint that README names
    write_data(folder)
    (folder / "sanity_check.data").write_text("the course's values: read only beside stories42M.pt")
    shutil.copyfile(TOKENIZER, folder / "runs.model")
    write_bin(folder / "stories15M.bin", random_llama(**LlamaConfig(
        vocab_size=4096, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, max_seq_len=64, norm_type="rmsnorm",
    ).to_dict()))  # fmt: skip
    os.replace(Tokenizer(None, str(folder / "runs.model")).export(), folder / "tokenizer.bin")
    (folder / "runs.model").unlink()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copyfile(folder / name, folder / ".venv" / f"installed-{name}")
    for name in ("ready", "ready-dev"):
        (folder / ".venv" / name).touch()
    return folder


def marked(line: str):
    """The command as a parameter, marked slow unless it takes a second or two."""
    return pytest.param(line, id=line[:90], marks=() if line.startswith(FAST) else pytest.mark.slow)


@pytest.mark.parametrize("line", [marked(line) for line in LINES])
def test_a_command_runs_and_leaves_nothing_for_git(copy, line):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-c", runnable(line)], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=copy, capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_readme_has_commands_and_each_is_known():
    assert len(README) > 20
    assert [line for line in README if not line.startswith(tuple(SHORTER))] == []
