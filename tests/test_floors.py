"""The floors hold: imports go down only, functions and files stay short, heavy imports stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

FLOORS = {
    0: "config addition_problems rope sampling optimizer schedule losses tokenizer utils files run_log"
    " positions word_tokenizer norms submission_files distributed products",
    1: "kv_cache muon checkpoint story_data plots golden lora sentiment_data addition_lib"
    " masks gradient_checkpointing fasttext_vectors submission_zip",
    2: "base_llama llama decoding lean_step drafting static_step packing",
    3: "trainer steps pretrained batching classifier classifier_checkpoint addition_fast"
    " attention_maps submission_check",
    4: "cli run_llama generate pretrain evaluate course_files sanity_check rope_test optimizer_test"
    " sentiment sentiment_report vectors evaluate_stories ail861 ail861_report"
    " submission prepare_submit prepare_checklist results results_sources"
    " addition_run addition_flags addition_setup addition_trial addition_training addition_testing"
    " addition_data_generation addition_report",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
ONE_FLOOR = {("llama", "base_llama"), ("llama", "decoding"), ("classifier_checkpoint", "classifier")}
ONE_FLOOR |= {("tokenizer", "word_tokenizer"), ("drafting", "lean_step")}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(path: Path) -> set[str]:
    """Top-level names of every import of a module, wherever in the file it stands."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR_OF)


def may_import(module: str, name: str) -> bool:
    """Downwards; on the top floor also the flags, and the parts of the same task."""
    if FLOOR_OF[name] < FLOOR_OF[module] or (module, name) in ONE_FLOOR:
        return True
    return FLOOR_OF[module] == 4 and (name == "cli" or module.split("_")[0] == name.split("_")[0])


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    for name in imported(ROOT / f"{module}.py") & set(MODULES):
        assert may_import(module, name), f"{module} (floor {FLOOR_OF[module]}) imports {name} (floor {FLOOR_OF[name]})"


@pytest.mark.parametrize("module", MODULES)
def test_matplotlib_and_argparse_stay_where_they_belong(module):
    names = imported(ROOT / f"{module}.py")
    assert "matplotlib" not in names or module == "plots"
    assert "argparse" not in names or FLOOR_OF[module] == 4
    assert not names & {"transformers", "peft", "pytest", "hypothesis"}
    assert "gensim" not in names or module in ("fasttext_vectors", "vectors")  # optional: requirements-ail861.txt
    assert "sacrebleu" not in names or module == "evaluate_stories"
    if module == "cli":
        assert "torch" not in names


def tracked_sources() -> list[Path]:
    """Python files of the repository, whether or not git is there to ask."""
    folders = (ROOT, ROOT / "tests", ROOT / "tests" / "golden", ROOT / "bench")
    return [path for folder in folders for path in folder.glob("*.py")]


@pytest.mark.parametrize("path", tracked_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 350
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name}"


@pytest.mark.parametrize("module", MODULES)
def test_public_things_are_documented(module):
    source = tree(ROOT / f"{module}.py")
    assert ast.get_docstring(source), module
    for node in source.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_checkpoints_are_never_unpickled_with_code():
    for path in tracked_sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{path.name}, line {node.lineno}"


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "."]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
