"""Each item of the courses' checklists is judged by looking at the project."""

from __future__ import annotations

import pytest

import prepare_submit
from tasks.submission.checklist import Place, look
from tasks.submission.files import BEST, COURSES, MODELS
from tests.submission_project import write_project
from tests.tiny import ROOT

ITEMS = [  # what the courses' lists say, in their words
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
    "Include optional report and feedback files",
]
SPOILED = {  # a file taken away: an item that then is missing, and what is said
    "llama.py": ("**llama.py**", "git restore llama.py"),
    "generated-sentence-temp-1.txt": ("Generate coherent text", "--option generate"),
    "cfimdb-dev-lora-output.txt": ("Complete CFIMDB LoRA fine-tuning", "--lora_rank 4"),
    "sst-test-prompting-output.txt": ("Generate all required output files", "--option prompt"),
    f"{MODELS}/ablation_3/log.jsonl": ("Complete five abalations.", "ablation_3"),
    f"{MODELS}/{BEST}/experiment_summary.json": ("Train your best model", "addition_run.py test"),
}


@pytest.fixture
def place(tmp_path) -> Place:
    """A project that is ready, at which no process is run."""
    return Place(write_project(tmp_path / "project"), COURSES["spring2026"], run=False)


def test_all_is_done_in_a_ready_project(place):
    states = {item: look(item, place) for item in ITEMS}
    assert {item: found for item, found in states.items() if found[0] != "done"} == {}
    assert "accuracy 0.222" in states["Complete SST zero-shot prompting"][1]


def test_what_is_taken_away_is_missing(place):
    for name, (item, said) in SPOILED.items():
        content = (place.folder / name).read_bytes()
        (place.folder / name).unlink()
        state, detail = look(item, place)
        assert state == "missing" and said in detail, item
        (place.folder / name).write_bytes(content)


def test_what_is_still_to_be_written_is_missing(place):
    (place.folder / "rope.py").write_text("def f():\n    raise NotImplementedError\n")
    assert look("**rope.py**", place) == ("missing", "rope.py, line 2: not implemented")


def test_the_zip_is_looked_for_and_into(place, monkeypatch):
    assert look("Verify file size < 15MB", place)[0] == "missing"
    monkeypatch.chdir(place.folder)
    assert prepare_submit.main([".", "jdoe"], run=False) == 0
    state, detail = look("Create zip file with proper ANDREWID structure", place)
    assert state == "done" and detail.startswith("jdoe.zip, ")
    (place.folder / "jdoe.zip").write_bytes(b"no zip")
    assert "no zip file" in look("Final submission check before Canvas upload", place)[1]


def test_the_command_prints_every_item_of_our_own_list(place, capsys):
    items = (ROOT / "checklist.md").read_text("utf-8")
    (place.folder / "checklist.md").write_text(items, encoding="utf-8")
    prepare_submit.main(["--checklist", str(place.folder)], run=False)
    said = capsys.readouterr().out
    assert all(line[6:] in said for line in items.splitlines() if line.startswith("- ["))
    assert "look     `python rope_test.py`" in said
