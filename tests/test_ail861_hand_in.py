"""AIL861's hand-in: the report and the README say what was measured, and the zip is refused if anything is missing."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prepare_submit
from tasks.ail861 import hand_in
from tasks.ail861.report import _tables
from tasks.submission.check import make_zip
from tests.submission_project import write_project
from tests.tiny import ROOT

SHIPPED = ROOT / "results" / "ail861"
ENTRY = "2025XYZ123"


@pytest.fixture(scope="module")
def packed_project(tmp_path_factory) -> Path:
    """A project that is ready to be handed in."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    for name in ("Makefile", "requirements-ail861.txt", "bench/checkpointing.py", "bench/__init__.py"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(SHIPPED, folder / "results" / "ail861")
    return folder


@pytest.fixture
def pages(monkeypatch) -> list:
    """The pages of the report, which is not drawn as PDF: that takes seconds."""
    kept = []
    monkeypatch.setattr(hand_in.plots, "save_report", lambda made, path: (kept.extend(made), path.write_bytes(b"%PDF")))
    return kept


@pytest.fixture
def project(packed_project, tmp_path, monkeypatch) -> Path:
    """A copy to work in; the zip's modules are not run."""
    folder = Path(shutil.copytree(packed_project, tmp_path / "project"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hand_in, "make_zip", functools.partial(make_zip, run=False))
    return folder


def test_the_tables_are_those_that_ship():
    results = json.loads((SHIPPED / "results.json").read_text("utf-8"))
    assert _tables(results) == (SHIPPED / "tables.md").read_text("utf-8")


def test_the_report_begins_with_the_model_on_the_hub_and_shows_every_figure(project, pages):
    assert hand_in.main(["--entry", ENTRY, "--hub", "jane/stories"]) == 0
    first = [text.get_text() for text in pages[0].figure.texts]
    assert first[1].split("\n")[:2] == [f"Entry number: {ENTRY}", "Trained model: https://huggingface.co/jane/stories"]
    texts = "\n".join(text.get_text() for page in pages for text in page.figure.texts)
    cells = {cell.get_text().get_text() for page in pages for axes in page.figure.axes
             for table in axes.tables for cell in table.get_celld().values()}  # fmt: skip
    results = json.loads((SHIPPED / "results.json").read_text("utf-8"))
    assert f"perplexity {results['evaluation']['perplexity_per_token']} a word" in texts
    assert {str(row["bleu"]) for row in results["evaluation"]["continuations"]["decoding"].values()} <= cells
    assert {str(row["held_out_loss"]) for row in results["accumulation"].values()} <= cells
    images = [axes.images[0].get_array().shape for page in pages for axes in page.figure.axes if axes.images]
    assert len(images) == len(list(SHIPPED.glob("*.png"))) == 9
    story = json.loads((SHIPPED / "continuations.json").read_text("utf-8"))[4]
    assert story["beam 10"][:60] in " ".join(texts.split())


def test_the_zip_holds_code_report_and_readme_and_runs_alone(project, tmp_path, capsys):
    (project / "words.txt").write_text("Beam search helps.\n")
    assert hand_in.main(["--entry", ENTRY, "--hub", "https://example.org/m", "--discussion", "words.txt"]) == 0
    shown = capsys.readouterr().out
    assert f"{ENTRY}.zip is good for ail861" in shown and "NOT your own run" in shown
    with zipfile.ZipFile(f"{ENTRY}.zip") as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / ENTRY
    readme = (unpacked / "README.md").read_text("utf-8")
    assert readme.split("\n")[4] == "Trained model: https://example.org/m"
    assert (SHIPPED / "tables.md").read_text("utf-8") in readme
    assert (unpacked / "report.pdf").read_bytes()[:5] == b"%PDF-"
    named = [path.strip(" `") for line in readme.split("\n") if line.startswith("| ") and "`" in line
             for path in line.split("|")[2].split(",") if "/" in path or path.strip().endswith(".py`")]  # fmt: skip
    assert len(named) > 10 and all((unpacked / path).is_file() for path in named)
    links = [line.partition("(")[2].rstrip(")") for line in readme.split("\n") if line.startswith("![")]
    assert len(links) == 9 and all((unpacked / link).is_file() for link in links)
    helped = subprocess.run([sys.executable, "-m", "tasks.ail861.run", "--help"], cwd=unpacked, capture_output=True,
                            text=True, check=False)  # fmt: skip
    assert helped.returncode == 0 and "--corpus" in helped.stdout, helped.stderr


def test_the_own_run_comes_before_the_shipped_one_and_a_model_without_an_address_is_named(project, pages, capsys):
    shutil.copytree(SHIPPED, project / hand_in.OWN)
    assert hand_in.main(["--entry", ENTRY]) == 0
    shown = capsys.readouterr().out
    assert str(hand_in.OWN) in shown and "NOT your own run" not in shown
    assert "The brief wants the trained model on a hub" in shown
    assert "Trained model: not on a hub yet" in (project / "runs/ail861/hand_in/README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--entry", "2025 XYZ"], "must consist of letters, digits"),
        (["--entry", ENTRY, "--hub", "jane"], "neither USER/REPO nor a link"),
        (["--entry", ENTRY, "--results", "nowhere"], "no results.json in nowhere"),
        (["--entry", ENTRY, "--discussion", "nothing.txt"], "no such file"),
    ],
)
def test_bad_input_is_refused_before_any_work(project, capsys, words, reason):
    assert hand_in.main(words) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not list(project.glob("*.zip")) and not (project / "runs").exists()


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"data": {}}'])
def test_results_of_something_else_are_refused(project, capsys, content):
    shutil.copytree(SHIPPED, "mine")
    Path("mine/results.json").write_text(content)
    assert hand_in.main(["--entry", ENTRY, "--results", "mine"]) == 2
    error = capsys.readouterr().err
    assert "mine" in error and error.count("\n") == 1 and not (project / "runs").exists()


def test_a_project_that_lacks_code_makes_no_zip(project, pages, capsys):
    (project / "bench" / "checkpointing.py").unlink()
    assert hand_in.main(["--entry", ENTRY]) == 1
    assert "missing bench/checkpointing.py: git restore" in capsys.readouterr().err and not list(project.glob("*.zip"))


def test_a_zip_is_checked_by_the_same_command_as_the_others(project, pages, capsys):
    assert hand_in.main(["--entry", ENTRY, "--hub", "jane/stories"]) == 0
    words = [f"{ENTRY}.zip", ENTRY, "--course", "ail861"]
    assert prepare_submit.main(words, run=False) == 0
    (project / hand_in.AIL861.made / "report.pdf").unlink()
    capsys.readouterr()
    assert prepare_submit.main([".", *words[1:]], run=False) == 1
    assert "missing report.pdf: make submission COURSE=ail861" in capsys.readouterr().err
