"""One command for all: what is there is kept, what is missing or stale is made anew, and whose work it is is told."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_llama
from tasks import pretrained
from tasks.submission import run as submission
from tasks.submission.check import make_zip, run_checks
from tasks.submission.files import BEST, COURSES, GENERATED, MODELS, TRAINED, steps
from tasks.submission.zip_file import collect, unpack, write_zip
from tests.submission_project import write_project
from tests.tiny import write_tiny_checkpoint

SPRING = COURSES["spring2026"]
ALL_STEPS = [step for course in COURSES.values() for step in steps(course)]


class Child:
    """Stands in for the processes: keeps their commands, writes their outputs, or fails."""

    def __init__(self, folder: Path):
        self.folder, self.commands, self.code = folder, [], 0
        self.whole = {}  # what a good run writes, by its path

    def run(self, words, cwd, check):
        """What `subprocess.run` is asked for."""
        self.commands.append(" ".join(words[1:]))
        makes = [step.outputs for step in ALL_STEPS if " ".join(words[1:]).startswith(" ".join(step.words))]
        for name in makes[0] if not self.code else ():
            if (path := self.folder / name) in self.whole:
                path.write_bytes(self.whole[path])
        return subprocess.CompletedProcess(words, self.code)

    def names(self) -> list[str]:
        """The commands since the last call, short."""
        commands, self.commands = self.commands, []
        return [" ".join(command.split()[:3]) for command in commands]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A ready project to stand in, whose model is older than its outputs."""
    folder = write_project(tmp_path / "project")
    (folder / "models").mkdir()
    shipped = folder / "models" / "stories.pt"
    write_tiny_checkpoint(shipped)
    for path in [shipped, *(folder / "data").iterdir()]:
        os.utime(path, (1, 1))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(submission, "SHIPPED", shipped)
    monkeypatch.setattr(pretrained, "SHIPPED", shipped)
    monkeypatch.setattr(submission, "make_zip", functools.partial(make_zip, run=False))
    return folder


@pytest.fixture
def child(project, monkeypatch) -> Child:
    """The processes that are started."""
    started = Child(project)
    started.whole = {path: path.read_bytes() for path in project.rglob("*") if path.suffix in (".txt", ".json", ".pth")}
    monkeypatch.setattr(submission.subprocess, "run", started.run)
    return started


def submit(*flags: str) -> int:
    return run_llama.main(["--option", "submission", "--andrewid", "jdoe", *flags])


def test_what_was_made_by_hand_is_kept_and_said(project, child, capsys):
    assert submit() == 0
    assert child.commands == []
    said = capsys.readouterr().out
    assert "[1/15] generate: done before" in said
    assert "jdoe.zip is good for spring2026" in said
    assert "with a model that is not recorded" in said
    assert (project / "jdoe.zip").is_file()


def test_the_missing_is_made_and_the_shipped_model_is_said_loudly(project, child, capsys):
    (project / GENERATED[0]).unlink()
    (project / "sst-test-prompting-output.txt").unlink()
    assert submit() == 0
    said = capsys.readouterr().out
    assert child.names() == ["run_llama.py --option generate", "run_llama.py --option prompt"]
    assert "stories42M.pt is not here" in said and "!! NOT from stories42M" in said
    assert f"{GENERATED[0]}, {GENERATED[1]}, sst-dev" in said
    assert submit() == 0
    assert child.names() == []
    assert "!! NOT from stories42M" in capsys.readouterr().out


def make_all(project: Path, child: Child) -> None:
    """Has every sentence and prediction made and recorded."""
    for name in (*GENERATED, *SPRING.predictions):
        (project / name).unlink()
    assert submit() == 0
    assert len(child.names()) == 3


def test_outputs_of_another_model_data_or_code_are_stale(project, child, capsys):
    make_all(project, child)
    data = project / "data" / "sst-test.txt"
    data.write_text(data.read_text("utf-8").replace("0 |||", "1 |||", 1), encoding="utf-8")
    assert submit() == 0
    assert child.names() == ["run_llama.py --option prompt"]
    with open(project / "llama.py", "a") as file:
        file.write("# a comment changes nothing\n")
    assert submit() == 0
    assert child.names() == []
    with open(project / "llama.py", "a") as file:
        file.write("CHANGED = True\n")
    submission._code.cache_clear()  # another process would read it anew
    assert submit() == 0
    assert len(child.names()) == 3
    write_tiny_checkpoint(project / "stories42M.pt")
    capsys.readouterr()
    assert submit() == 0
    assert len(child.names()) == 3
    said = capsys.readouterr().out
    assert "another model than when it was made" in said
    assert "made with stories42M.pt" in said and "!!" not in said


def test_a_stopped_step_is_resumed_and_the_rest_kept(project, child, capsys):
    (project / "sst-dev-lora-output.txt").unlink()
    child.code = 3
    assert submit("--course", "fall2025") == 1
    assert "lora sst ended with exit code 3" in capsys.readouterr().err
    assert not (project / "jdoe.zip").exists()
    assert "--resume" not in child.commands[-1]
    child.code = 0
    assert submit("--course", "fall2025") == 0
    assert child.commands[-1].endswith("--resume")
    write_tiny_checkpoint(project / "stories42M.pt")
    child.code = 3
    assert submit("--course", "fall2025") == 1
    assert "--resume" not in child.commands[-1]


def test_missing_adders_are_trained_and_tested(project, child, capsys):
    for name in TRAINED:
        (project / MODELS / "ablation_2" / name).unlink()
    assert submit() == 1  # the stand-in writes no plot and no log
    assert "log.jsonl is not there" in capsys.readouterr().err
    assert "--n_layers 1 --save_dir addition_models/ablation_2" in child.commands[0]


def test_an_adder_that_was_trained_again_is_tested_again(project, child):
    folder = project / MODELS / BEST
    (folder / "training_config.json").write_text('{"result": {"step": 2}}')
    summary = json.loads((folder / "experiment_summary.json").read_text())
    (folder / "experiment_summary.json").write_text(json.dumps(summary | {"train_config": {"result": {"step": 1}}}))
    child.whole = {}
    assert submit() == 0
    assert child.commands == [f"addition_run.py test --checkpoint addition_models/{BEST}/best_model.pth"]


@pytest.mark.parametrize(
    ("spoil", "flags", "reason"),
    [
        (lambda p: (p / "data" / "sst-dev.txt").unlink(), [], "data/sst-dev.txt (bash setup.sh fetches"),
        (lambda p: (p / "models" / "stories.pt").unlink(), [], "nor the shipped models/stories.pt"),
        (lambda p: (p / "run_llama.py").unlink(), [], "no run_llama.py here"),
        (lambda p: None, ["--andrewid", "j doe"], "no blanks, no path"),
        (lambda p: None, ["--andrewid", "../j"], "no blanks, no path"),
    ],
)
def test_bad_input_is_refused_before_work(project, child, capsys, spoil, flags, reason):
    spoil(project)
    assert submit(*flags) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert child.commands == []


def test_a_bad_submission_is_not_written(project, child, capsys):
    (project / "setup.sh").unlink()
    assert submit() == 1
    said = capsys.readouterr().err
    assert "- missing setup.sh: git restore setup.sh" in said and "jdoe.zip is not written" in said
    assert not (project / "jdoe.zip").exists()


def test_every_command_of_the_courses_parses():
    import addition_run
    import run_llama
    from tasks import cli

    programs = {"run_llama.py": run_llama.PROGRAM, "addition_run.py": addition_run.PROGRAM}
    for course in COURSES.values():
        for step in steps(course):
            args = cli.parse(programs[step.words[0]], list(step.words[1:]))[1]
            if "sentiment" in step.task:
                assert (args.dev_out, args.test_out) == step.outputs


def test_unpacked_alone_the_checks_pass_and_generate_says_what_it_lacks(project, tmp_path):
    files, _ = collect(project, SPRING, "jdoe")
    write_zip(tmp_path / "jdoe.zip", "jdoe", files)
    unpack(tmp_path / "jdoe.zip", tmp_path / "alone")
    told = []
    assert run_checks(tmp_path / "alone" / "jdoe", told.append) == []
    assert "python rope_test.py" in told and "python run_llama.py --help" in told
    asked = subprocess.run(
        [sys.executable, "run_llama.py", "--option", "generate"], cwd=tmp_path / "alone" / "jdoe",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1 and "stories42M.pt" in asked.stderr and "setup.sh" in asked.stderr


def test_a_module_that_is_not_there_and_a_failing_check_are_told(project):
    (project / "engine" / "train" / "losses.py").unlink()
    (project / "rope.py").write_text((project / "rope.py").read_text().replace("cos", "sin"))
    problems = "\n".join(run_checks(project, lambda text: None))
    assert "tasks.stories.pretrain cannot be imported" in problems
    assert "engine.train.losses" in problems and "python rope_test.py fails" in problems
