"""The notebooks, executed: by the tests at a small size, and in full to renew their committed outputs.

    python -m tests.notebooks notebooks/4_the_adder_opened_up.ipynb      (without names: all of them)
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from engine.io.files import write_text
from tests.tiny import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, from a kernel in its own folder. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress bars
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: nbformat.NotebookNode, stream: str = "stdout") -> str:
    """What the cells print."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def main(names: list[str]) -> None:
    """Executes notebooks in full and writes them back."""
    for path in [Path(name) for name in names] or NOTEBOOKS:
        notebook = execute(path)
        notebook.metadata["language_info"] = {"name": "python"}  # without the version of this machine's Python
        write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
