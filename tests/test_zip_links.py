"""A grader who reads the zip's pages finds everything that they link to and show."""

from __future__ import annotations

import shutil

from tasks.submission.check import make_zip
from tasks.submission.files import COURSES
from tasks.submission.zip_file import linked_files
from tests.submission_project import write_project
from tests.tiny import ROOT

SPRING = COURSES["spring2026"]


def test_the_pages_in_the_zip_link_only_to_what_is_in_it(tmp_path):
    folder = write_project(tmp_path / "project")
    for name in linked_files(ROOT):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(ROOT / name, folder / name)
    findings = make_zip(folder, "jdoe", SPRING, folder / "jdoe.zip", run=False)
    assert findings.problems == [] and "docs/addition_experiments.png" in findings.names
    assert not [note for note in findings.notes if "link" in note]
    with open(folder / "README.md", "a") as file:
        file.write("[nothing](docs/none.md) [away](https://example.org) [a weight](models/stories.pt)")
    notes = make_zip(folder, "jdoe", SPRING, folder / "jdoe.zip", run=False).notes
    assert "pages in the zip link to what is not in it: docs/none.md, models/stories.pt" in notes
