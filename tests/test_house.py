"""The house stands: imports follow the folders, files and functions stay short, public things are documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

LEAVES = {"config", "rope", "optimizer", "lora", "tokenizer", "utils", "base_llama"}  # what the engine may import
GATHERERS = {"ail861", "submission", "results", "methods", "export"}  # tasks that exist to gather others
COURSE_COMMANDS = ("run_llama", "addition_", "prepare_submit")  # the top level's way up to the tasks
RARE = {  # packages that only some modules may import
    "matplotlib": {"tasks.plots"},
    "gensim": {"tasks.stories.fasttext", "tasks.stories.vectors"},
    "huggingface_hub": {"tasks.export.push"},
    "safetensors": {"engine.io.huggingface"},
    "tokenizers": {"engine.io.json_tokenizer"},
    "gguf": {"engine.io.gguf"},
    "sacrebleu": {"tasks.stories.continuations"},
}
TEST_PACKAGES = {"transformers", "peft", "pytest", "hypothesis"}


def sources(*patterns: str) -> dict[str, Path]:
    """Dotted name and path of every Python file that matches, whether or not git is there to ask."""
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


TOP = sources("*.py")
OURS = TOP | sources("engine/**/*.py", "tasks/**/*.py")
ALL = OURS | sources("bench/**/*.py", "tests/**/*.py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path) -> set[str]:
    """Dotted names of the modules a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {member for member in members if member in ALL} or {node.module}
    return names


def folder_of(module: str) -> str:
    """`engine`, `tasks`, or `top` for the course's own modules."""
    first = module.split(".")[0]
    return first if first in ("engine", "tasks", "bench", "tests") else "top"


def task_of(module: str) -> str | None:
    """The folder of a task's module; None for what all tasks share."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else None


def allowed(module: str, imported: str) -> bool:
    """Whether the house lets `module` import `imported`, another module of ours."""
    here, there = folder_of(module), folder_of(imported)
    if there in ("bench", "tests"):
        return False
    if here == "engine":
        return there == "engine" or imported in LEAVES
    if here == "top":
        return there != "tasks" or module.startswith(COURSE_COMMANDS)
    if there == "tasks":
        return task_of(imported) in (None, task_of(module)) or task_of(module) in GATHERERS
    return there == "engine" or not imported.startswith(COURSE_COMMANDS)


@pytest.mark.parametrize("module", OURS)
def test_imports_follow_the_folders(module):
    for name in imports(OURS[module]) & set(ALL):
        assert allowed(module, name), f"{module} imports {name}"


@pytest.mark.parametrize(
    ("module", "imported", "fits"),
    [
        ("engine.decode.loop", "llama", False),
        ("engine.decode.loop", "tasks.cli", False),
        ("engine.io.checkpoint", "config", True),
        ("llama", "engine.decode.loop", True),
        ("llama", "tasks.plots", False),
        ("tasks.stories.pretrain", "tasks.sentiment.data", False),
        ("tasks.submission.check", "tasks.sentiment.data", True),
        ("tasks.sentiment.training", "run_llama", False),
        ("tasks.sentiment.training", "tests.tiny", False),
    ],
)
def test_the_rule_says_what_design_says(module, imported, fits):
    assert allowed(module, imported) == fits


def test_the_top_level_is_the_assignment():
    course = "llama base_llama rope optimizer classifier lora tokenizer config utils run_llama"
    course += " addition_data_generation addition_lib addition_run sanity_check rope_test optimizer_test prepare_submit"
    assert set(TOP) == set(course.split())


@pytest.mark.parametrize("module", OURS)
def test_packages_stay_where_they_belong(module):
    packages = {name.split(".")[0] for name in imports(OURS[module])}
    assert not packages & TEST_PACKAGES
    for package, modules in RARE.items():
        assert package not in packages or module in modules
    assert "argparse" not in packages or folder_of(module) != "engine" or module == "engine.io.checkpoint.pickles"
    if module.endswith(("cli", ".flags")):
        assert "torch" not in packages


@pytest.mark.parametrize("module", ALL)
def test_files_and_functions_stay_short(module):
    path = ALL[module]
    assert len(path.read_text("utf-8").splitlines()) <= (400 if module in TOP else 350)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name}"


@pytest.mark.parametrize("module", OURS)
def test_public_things_are_documented(module):
    source = tree(OURS[module])
    if not source.body:  # an empty __init__.py
        return
    assert ast.get_docstring(source), module
    for node in source.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_checkpoints_are_never_unpickled_with_code():
    for path in ALL.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{path.name}, line {node.lineno}"


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "."]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
