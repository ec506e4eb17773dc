"""What README and the guides say is there: every command parses, every file and link they name exists."""

from __future__ import annotations

import re
import shlex

import pytest

import addition_run
import run_llama
from tasks import cli
from tests import structure
from tests.tiny import ROOT

DOCS = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES = ["README.md", "structure.md", "checklist.md", "CONTRIBUTING.md", *DOCS]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+\.(py|md|sh|pt|png|jsonl|json|txt)")
PROGRAMS = {"run_llama.py": run_llama.PROGRAM, "addition_run.py": addition_run.PROGRAM}
MADE_BY_RUNS = re.compile(
    r"stories(42|15)M|tokenizer\.(model|bin)$|generated-sentence|-temp-1\.txt|-output\.txt|prompts\.txt|runs/|^(stories|more)\.txt"
    r"|^results/|loss_curve\.png|log\.jsonl|feedback\.txt|(train|valid)\.txt|merged\.pt|last\.pt|best\.pt|sst|cfimdb|\.venv|ANDREWID|sanity_check\.data|mine\.|config\.json|tokenizer\.json|addition_(train|dev)"
)


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands(text: str) -> list[list[str]]:
    """Every `python SCRIPT …` of the code blocks, continued lines joined, comments gone; and those within the text."""
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in blocks.splitlines()] + INLINE.findall(text)
    return [shlex.split(line) for line in lines if line.startswith("python ") and "…" not in line]


ALL = [command for name in PAGES for command in commands(page(name))]


@pytest.mark.parametrize("command", [c for c in ALL if c[1] in PROGRAMS], ids=lambda command: " ".join(command)[:80])
def test_commands_parse(command):
    if "--help" not in command:
        cli.parse(PROGRAMS[command[1]], command[2:])


@pytest.mark.parametrize("command", [c for c in ALL if c[1] not in PROGRAMS], ids=lambda words: " ".join(words)[:80])
def test_other_scripts_are_there(command):
    script = command[2].replace(".", "/") + ".py" if command[1] == "-m" else command[1]
    assert (ROOT / script).is_file()


def test_the_pages_name_commands_at_all():
    assert len(ALL) > 10


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_exist(name):
    text = page(name)
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if not target.startswith("http")]
    named = [word for word in INLINE.findall(FENCED.sub("", text)) if FILE.fullmatch(word)]
    missing = [path for path in linked if not ((ROOT / name).parent / path).exists()]
    missing += [path for path in named if not MADE_BY_RUNS.search(path) and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_headings_that_are_linked_exist(name):
    text = page(name)
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    headings = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings


def test_the_map_shows_every_module():
    shown = structure.TREE.search(page("structure.md"))
    assert shown is not None and shown[0] == structure.tree(), "python -m tests.structure writes it anew"


def test_readme_is_short():
    assert len(page("README.md").splitlines()) < 200


def test_the_docs_show_figures_that_are_there():
    for path in (ROOT / "docs").glob("*.md"):
        targets = re.findall(r"\]\(([^)#\s]+)\)", path.read_text("utf-8"))
        assert targets and not [target for target in targets if not (path.parent / target).exists()]
