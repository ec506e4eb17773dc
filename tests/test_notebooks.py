"""The notebooks run from a clone, and their committed outputs are theirs: complete, in order, without this machine."""

from __future__ import annotations

import ast
import json
import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="requirements-dev.txt is not installed")
pytest.importorskip("nbclient", reason="requirements-dev.txt is not installed")
pytest.importorskip("ipykernel", reason="requirements-dev.txt is not installed")

from tests.notebooks import NOTEBOOKS, code_cells, execute, printed  # noqa: E402
from tests.tiny import ROOT  # noqa: E402

OWN_PATH = re.compile(r"(?<![\w.])(/(home|root|work|tmp|usr|opt|var|Users|content)/|[A-Z]:\\)")
PARTS, ADDER = NOTEBOOKS[0], NOTEBOOKS[3]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_QUICK", "1")
    executed, committed = execute(path), nbformat.read(path, as_version=4)
    if path == PARTS:  # it has one size
        assert printed(executed) == printed(committed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_complete_and_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2 and len(path.read_bytes()) < 400_000
    assert printed(notebook) and not printed(notebook, "stderr")
    assert not [output for output in outputs if output.output_type == "error"]
    for picture in pictures:
        picture.data.pop("image/png")
    assert not OWN_PATH.search(json.dumps(outputs)), "a path of the machine that ran it"


def test_there_are_four_and_each_begins_by_finding_the_project():
    assert len(NOTEBOOKS) == 4
    first = {code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert len(first) == 1 and "git clone" in first.pop()


def test_every_cell_of_the_first_checks_itself_against_the_modules():
    for cell in code_cells(nbformat.read(PARTS, as_version=4))[2:]:  # after the project and the imports
        called = {node.func.id for node in ast.walk(ast.parse(cell.source))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        checked = "same" in called or any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
        assert checked, cell.source


def test_no_notebook_defines_what_the_project_has():
    project = {
        node.name
        for path in [*ROOT.glob("*.py"), *(ROOT / "engine").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    for path in NOTEBOOKS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            defined = {node.name for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ClassDef)}
            assert not defined & project
