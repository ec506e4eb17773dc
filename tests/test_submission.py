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
from tasks import cli, pretrained, provenance
from tasks.submission import origin
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

    def run(self, words, cwd, check, **options):
        """What `subprocess.run` is asked for. Git tracks nothing here."""
        if words[0] == "git":
            return subprocess.CompletedProcess(words, 1)
        self.commands.append(" ".join(words[1:]))
        step = next(step for step in ALL_STEPS if " ".join(words[1:]).startswith(" ".join(step.words)))
        made = [] if self.code else [self.folder / name for name in step.outputs if self.folder / name in self.whole]
        for path in made:
            path.write_bytes(self.whole[path])
        if step.option is not None and made:
            record(made, words[2:])
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
    monkeypatch.setattr(origin, "SHIPPED", shipped)
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


def record(outputs: list[Path], words: list[str]) -> None:
    """What the task itself records: how it made its outputs."""
    option, settings = cli.parse(run_llama.PROGRAM, words)
    model = pretrained.choose_path(settings.pretrained_model_path, "pretrained_model_path" in settings.given)
    data = [getattr(settings, name) for name in ("dev", "test", "label_names") if hasattr(settings, name)]
    provenance.record(outputs, "run_llama.py", option, settings, model, data)


def submit(*flags: str) -> int:
    return run_llama.main(["--option", "submission", "--andrewid", "jdoe", *flags])


def test_files_without_a_record_are_kept_and_named(project, child, capsys):
    assert submit() == 0
    assert child.commands == []
    said = capsys.readouterr().out
    assert "[1/15] generate: up to date" in said
    assert "jdoe.zip is good for spring2026" in said
    assert "a command and a model that are not recorded: generated-sentence-temp-0.txt" in said
    assert (project / "jdoe.zip").is_file()


def test_the_missing_is_made_and_the_shipped_model_is_said_loudly(project, child, capsys):
    (project / GENERATED[0]).unlink()
    (project / "sst-test-prompting-output.txt").unlink()
    assert submit() == 0
    said = capsys.readouterr().out
    assert child.names() == ["run_llama.py --option generate", "run_llama.py --option prompt"]
    assert "stories42M.pt is not here" in said and "!! NOT made with stories42M" in said
    assert f"{GENERATED[0]}, {GENERATED[1]}, sst-dev" in said
    assert submit() == 0
    assert child.names() == []
    assert "!! NOT made with stories42M" in capsys.readouterr().out


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
    assert "the model has changed since" in said
    assert "made with stories42M.pt" in said and "!!" not in said


@pytest.mark.parametrize("flags", ["--max_new_tokens 20", "--quantize int8", "--top_k 5", "--seed 2"])
def test_experiments_run_by_hand_are_made_again_by_the_courses_command(project, child, capsys, flags):
    for name in GENERATED:
        (project / name).write_text("I have wanted to see this thriller, too.", encoding="utf-8")
    record([project / name for name in GENERATED], ["--option", "generate", *flags.split()])
    assert submit() == 0
    assert child.commands == ["run_llama.py --option generate"]
    assert f"[1/15] generate (made with {flags}" in capsys.readouterr().out
    assert "thriller, too" in (project / "runs" / "replaced" / GENERATED[0]).read_text()
    assert submit() == 0
    assert child.commands == ["run_llama.py --option generate"]


def test_the_courses_command_run_by_hand_is_kept_until_the_model_changes(project, child, capsys):
    for step in steps(SPRING):
        if step.option is not None:
            record([project / name for name in step.outputs], list(step.words[1:]))
    assert submit() == 0
    assert child.commands == []
    printed = capsys.readouterr().out
    assert "!! NOT made with stories42M" in printed and "not recorded" not in printed
    write_tiny_checkpoint(project / "stories42M.pt")
    with open(project / "stories42M.pt", "ab") as file:
        file.write(b"other weights")
    assert submit() == 0
    assert len(child.names()) == 3
    assert "made with another model, shipped" in capsys.readouterr().out


def test_either_reading_of_zero_shot_can_be_handed_in(project, child, capsys):
    assert submit("--zero_shot_pooling", "last_column") == 0  # nothing is recorded: the files are kept
    for name in SPRING.predictions:
        (project / name).unlink()
    assert submit("--zero_shot_pooling", "last_column") == 0
    assert [command.endswith("--pooling last_column") for command in child.commands] == [True, True]
    printed = capsys.readouterr().out
    assert "zero-shot reads the last column" in printed and "NOT made by the course's command" not in printed
    assert "sst-dev: 0.222, close to the reference 0.197 (standard error 0.133)" in printed
    child.commands = []
    assert submit() == 0
    assert child.names() == ["run_llama.py --option prompt"] * 2
    assert "zero-shot reads the last real token" in capsys.readouterr().out


def test_shortened_training_is_named_loudly(project, child, capsys):
    for name in COURSES["fall2025"].predictions:
        (project / name).unlink()
    assert submit("--course", "fall2025", "--epochs", "1") == 0
    assert [command.endswith("--epochs 1") for command in child.commands] == [False] * 2 + [True] * 4
    printed = capsys.readouterr().out
    assert printed.count("!! NOT made by the course's command (--epochs 1 instead of 5): ") == 4
    assert "sst-dev: 0.222, close to the reference 0.237" in printed


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
    assert "did not write addition_models/ablation_2/log.jsonl" in capsys.readouterr().err
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

    programs = {"run_llama.py": run_llama.PROGRAM, "addition_run.py": addition_run.PROGRAM}
    for course in COURSES.values():
        for step in steps(course):
            settings = cli.parse(programs[step.words[0]], list(step.words[1:]))[1]
            if "sentiment" in step.task:
                assert (settings.dev_out, settings.test_out) == step.outputs


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
