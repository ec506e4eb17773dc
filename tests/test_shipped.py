"""A training does not replace a model that ships, and the hand-in says how to restore one."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import addition_run
from tasks.shipped import is_tracked
from tasks.submission.files import BEST, MODELS, addition_steps
from tasks.submission.origin import Origin, describe, trace_test
from tests.submission_project import write_project
from tests.test_addition_run import SHORT, TINY
from tests.test_submission import submit

COURSE = ["train", "--use_gpu", "--capcaity", "5808844800000", "--no_data_files", *TINY, *SHORT]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A repository that tracks the adders of a ready project."""
    folder = write_project(tmp_path / "project")
    for words in (["init", "-q"], ["add", MODELS]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder / MODELS / BEST


def test_the_courses_command_trains_beside_the_shipped_model(shipped, capsys):
    before = {path: path.read_bytes() for path in shipped.iterdir()}
    assert addition_run.main([*COURSE, "--save_dir", f"{MODELS}/{BEST}"]) == 0
    assert "ships with the project: this run writes to runs/best_model" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in shipped.iterdir()} == before
    assert (shipped.parents[1] / "runs" / BEST / "best_model.pth").is_file()
    assert addition_run.main([*COURSE, "--save_dir", f"{MODELS}/{BEST}", "--overwrite"]) == 0
    assert (shipped / "best_model.pth").read_bytes() != before[shipped / "best_model.pth"]


def test_ones_own_model_is_replaced_without_a_flag(shipped):
    own = shipped.parent / "ablation_9"
    for seed in ("1", "2"):
        assert addition_run.main([*COURSE, "--save_dir", str(own), "--seed", seed]) == 0
    assert (own / "best_model.pth").is_file() and not (shipped.parents[1] / "runs").exists()
    assert is_tracked(shipped / "best_model.pth") and not is_tracked(own / "best_model.pth")
    shutil.rmtree(shipped.parents[1] / ".git")
    assert not is_tracked(shipped / "best_model.pth")


def test_half_a_shipped_model_is_to_be_restored(shipped, capsys):
    (shipped / "loss_curve.png").unlink()
    (shipped.parents[1] / "stories42M.pt").write_bytes(b"")
    assert submit() == 2
    assert f"{MODELS}/{BEST}/loss_curve.png ships with the project and is missing: git restore {MODELS}" in (
        capsys.readouterr().err
    )


def test_any_model_but_the_courses_is_named_loudly():
    step = addition_steps(BEST)[1]
    lines = describe([Origin(step, model="mine.pt"), Origin(step, model="stories42M.pt")])
    assert lines[1].startswith("!! NOT made with stories42M.pt but with mine.pt: ") and lines[0] == lines[2]
    assert lines[3].startswith("made with stories42M.pt: ") and len(lines) == 4


def test_predictions_of_another_test_are_made_again(shipped, capsys):
    words = ["test", "--checkpoint", str(shipped / "best_model.pth"), "--test_file", str(shipped / "few.txt")]
    (shipped / "few.txt").write_text("9355+7217=16572\n5611+2247=7858", encoding="ascii")
    for name in ("experiment_summary.json", "predictions.json"):
        (shipped / name).unlink()
    assert addition_run.main([*words, "--max_gen_len", "3"]) == 0
    test = addition_steps(BEST)[1]
    assert trace_test(shipped.parents[1], test).differences == ("--max_gen_len 3 instead of 10",)
    assert addition_run.main(words) == 0
    assert trace_test(shipped.parents[1], test).differences == ()
