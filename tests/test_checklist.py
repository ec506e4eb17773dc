"""Each item of the courses' checklists is judged by looking at the project."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import prepare_submit
from tasks.submission.check import make_zip
from tasks.submission.checklist import ITEM, SHIPPED, Place, look
from tasks.submission.files import BEST, COURSES, MODELS
from tests.submission_project import write_project
from tests.tiny import ROOT

COURSE_WORDS = [  # items in the courses' own words
    "Run `bash setup.sh` successfully",
    "**llama.py**",
    "**addition_data_generation.py**",
    "Generate coherent text with `python run_llama.py --option generate`",
    "Complete SST zero-shot prompting",
    "Complete CFIMDB fine-tuning",
    "Complete SST LoRA fine-tuning",
    "Complete five abalations.",
    "Achieve target accuracy 100% using a very tiny llama.",
    "Train your best model",
    "Create the tiniest adding llama.",
    "Generate all required output files",
]
ITEMS = [item[1] for line in (ROOT / "checklist.md").read_text("utf-8").splitlines() if (item := ITEM.match(line))]
REMOVED = {  # start of each item of our list: a file without which it is missing, and what is then printed
    "`bash setup.sh`": ("setup.sh", "git restore setup.sh"),
    "model weights": (SHIPPED, "bash setup.sh"),
    "**llama.py**": ("llama.py", "git restore llama.py"),
    "**rope.py**": ("rope.py", "git restore rope.py"),
    "**optimizer.py**": ("optimizer.py", "git restore"),
    "**classifier.py**": ("classifier.py", "git restore"),
    "**lora.py**": ("lora.py", "git restore"),
    "causal mask": ("sanity_check.py", "git restore"),
    "rotary embedding": ("rope_test.py", "git restore"),
    "AdamW": ("optimizer_test.py", "git restore"),
    "coherent text": ("generated-sentence-temp-1.txt", "--option generate"),
    "SST prompting": ("sst-dev-prompting-output.txt", "--option prompt"),
    "CFIMDB prompting": ("cfimdb-test-prompting-output.txt", "--option prompt"),
    "SST fine-tuning": ("sst-dev-finetuning-output.txt", "--option finetune"),
    "CFIMDB fine-tuning": ("cfimdb-dev-finetuning-output.txt", "--option finetune"),
    "SST LoRA": ("sst-dev-lora-output.txt", "--lora_rank 4"),
    "CFIMDB LoRA": ("cfimdb-test-lora-output.txt", "--lora_rank 4"),
    "**addition_data_generation.py**": ("addition_data_generation.py", "git restore"),
    "**addition_lib.py**": ("addition_lib.py", "git restore"),
    "**addition_run.py**": ("addition_run.py", "git restore"),
    "five ablations": (f"{MODELS}/ablation_3/predictions.json", "addition_run.py test"),
    "best model": (f"{MODELS}/{BEST}/experiment_summary.json", "addition_run.py test"),
    "plots": (f"{MODELS}/ablation_5/loss_curve.png", "addition_run.py train"),
    "training logs": (f"{MODELS}/{BEST}/log.jsonl", "addition_run.py train"),
    "all required output files": ("sst-test-prompting-output.txt", "--option prompt"),
    "`prepare_submit.py` accepts": ("prepare_submit.py", "git restore"),
    "the zip holds one folder": ("jdoe.zip", "make submission"),
    "file size": ("jdoe.zip", "make submission"),
    "final submission check": ("jdoe.zip", "make submission"),
}
FALL_ONLY = {"**lora.py**", "SST fine-tuning", "CFIMDB fine-tuning", "SST LoRA", "CFIMDB LoRA"}


def edition(item: str) -> str:
    return "fall2025" if any(item.startswith(start) for start in FALL_ONLY) else "spring2026"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with everything, a zip for Spring 2026 included; tests that change it restore it."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    for name in (SHIPPED, "Makefile"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("something")
    findings = make_zip(folder, "jdoe", COURSES["spring2026"], folder / "jdoe.zip", run=False)
    assert findings.problems == []
    return folder


def judge(item: str, folder: Path, course: str | None = None) -> tuple[str, str]:
    return look(item, Place(folder, COURSES[course or edition(item)], run=False))


def test_our_list_has_the_courses_items():
    lines = (ROOT / "checklist.md").read_text("utf-8").partition("### Submission")
    own, submission = ([line for line in part.splitlines() if ITEM.match(line)] for part in (lines[0], lines[2]))
    assert len(own) == 24 and len(submission) == 6 + 1
    assert len(REMOVED) == 29  # all but the optional report and `make test`


@pytest.mark.parametrize("item", COURSE_WORDS + [item for item in ITEMS if not re.match("optional|every other", item)])
def test_everything_is_done_in_a_ready_project(project, item):
    course = "fall2025" if re.search("fine-tuning|LoRA|lora", item) else "spring2026"
    state, detail = judge(item, project, course)
    assert state == "done" or (state == "look" and detail.startswith("not run: ")), detail


@pytest.mark.parametrize("start", REMOVED)
def test_an_item_whose_file_is_removed_is_missing(project, start):
    item = next(item for item in ITEMS if item.startswith(start))
    name, message = REMOVED[start]
    content = (project / name).read_bytes()
    (project / name).unlink()
    state, detail = judge(item, project)
    (project / name).write_bytes(content)
    assert state == "missing" and message in detail


@pytest.mark.parametrize("course", COURSES)
def test_in_an_empty_folder_everything_is_missing(tmp_path, capsys, course):
    (tmp_path / "empty").mkdir()
    assert prepare_submit.main(["--checklist", str(tmp_path / "empty"), "--course", course], run=False) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    states = {state: sum(line.startswith(f"  {state}") for line in lines) for state in ("missing", "not asked", "look")}
    assert states == {"missing": 26 if course == "spring2026" else 24, "not asked": 31 - states["missing"], "look": 1}


def test_the_accuracy_is_shown(project):
    assert "accuracy 0.222" in judge("Complete SST zero-shot prompting", project)[1]


def test_code_that_is_not_written_yet_is_missing(tmp_path):
    (tmp_path / "rope.py").write_text("def f():\n    raise NotImplementedError\n")
    assert judge("**rope.py**", tmp_path) == ("missing", "rope.py, line 2: not implemented")


def test_a_broken_zip_is_missing(project):
    state, detail = judge("Create zip file with proper ANDREWID structure", project)
    assert state == "done" and detail.startswith("jdoe.zip, ")
    good = (project / "jdoe.zip").read_bytes()
    (project / "jdoe.zip").write_bytes(b"no zip")
    assert "not a zip file" in judge("Final submission check before Canvas upload", project)[1]
    (project / "jdoe.zip").write_bytes(good)


def test_the_command_prints_every_item(project, capsys):
    shutil.copyfile(ROOT / "checklist.md", project / "checklist.md")
    prepare_submit.main(["--checklist", str(project)], run=False)
    printed = capsys.readouterr().out
    assert all(item in printed for item in ITEMS)
    assert "look      rotary embedding: `python rope_test.py`" in printed
