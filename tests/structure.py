"""Writes the tree in structure.md: one line a module, the first sentence of its docstring.

    python -m tests.structure
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from engine.io.files import write_text
from tests.tiny import ROOT

PAGE = ROOT / "structure.md"
TREE = re.compile(r"(?<=<!-- tree -->\n```\n).*?(?=```\n<!-- /tree -->)", re.S)
FOLDERS = ("engine/model", "engine/decode", "engine/train", "engine/io", "tasks", "bench", "recipes")
WIDTH = 120


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, or the first comment of a recipe."""
    text = path.read_text("utf-8")
    if path.suffix == ".toml":
        return text.split("\n")[0].removeprefix("# ")
    documentation = ast.get_docstring(ast.parse(text)) or ""
    first = " ".join(documentation.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])(?<! al)\. ", first)[0].rstrip(".")


def lines_of(folder: Path, depth: int = 0) -> list[str]:
    """The lines of a folder and its subfolders: files first."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".py", ".toml") and path.name != "__init__.py")
    indent = "  " * depth
    lines = []
    for path in files:
        line = f"{indent}{path.name:<{26 - len(indent)}} {summary(path)}"
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 2].rsplit(" ", 1)[0] + " …")
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))):
        if sub.name != "__pycache__":
            lines += [f"{indent}{sub.name}/", *lines_of(sub, depth + 1)]
    return lines


def tree() -> str:
    """The whole tree: the assignment, then each folder of the house."""
    lines = [f"{path.name:<26} {summary(path)}" for path in sorted(ROOT.glob("*.py"))]
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            lines += ["", f"{name}/", *lines_of(ROOT / name, 1)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrites the tree in structure.md."""
    page = PAGE.read_text("utf-8")
    if TREE.search(page) is None:
        print("structure.md has no tree to replace", file=sys.stderr)
        return 1
    write_text(PAGE, TREE.sub(lambda match: tree(), page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
