"""What the tests of the page share: its pages, built once for a module of tests, and one of them opened."""

from __future__ import annotations

from pathlib import Path

import pytest

import run_llama
from tasks.page.task import BEST_ADDER
from tests.chromium import PROGRAM, Chromium
from tests.tiny import ROOT

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
STORIES = ROOT / "models" / "stories.pt"


def write_page(model: Path, out: Path) -> Path:
    """Writes the page of a model by the command; returns its path."""
    assert run_llama.main(["--option", "page", "--out", str(out), "--pretrained-model-path", str(model)]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """page.html holds the shipped model and the adder, adder.html only the adder."""
    folder = tmp_path_factory.mktemp("page")
    write_page(STORIES, folder / "page.html")
    write_page(BEST_ADDER, folder / "adder.html")
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    """The page of the shipped model in a wide window, its first text written."""
    with Chromium() as browser:
        browser.resize(1280)
        browser.open(folder / "page.html")
        browser.wait("byId('stop').disabled")
        yield browser
