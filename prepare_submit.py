"""Makes and checks the zip that is handed in, or checks one, or ticks the checklist off.

    python prepare_submit.py path/to/project jdoe       (makes jdoe.zip, or says all that is missing)
    python prepare_submit.py jdoe.zip jdoe
    python prepare_submit.py --checklist
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tasks.cli import new_parser
from tasks.submission.files import COURSES, Course, check_andrew_id

ROOT = Path(__file__).resolve().parent


def build_parser() -> argparse.ArgumentParser:
    """The parser of the course's two words and what we add."""
    parser = new_parser("prepare_submit.py", __doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", metavar="PATH", help="the project's folder, or a zip")
    parser.add_argument("andrewid", nargs="?", metavar="ANDREWID", help="names the zip and the one folder in it")
    parser.add_argument("--course", choices=COURSES, default="spring2026", help="whose list of files and size limit")
    parser.add_argument("--checklist", action="store_true", help="look whether each item of checklist.md is done")
    return parser


def main(argv: list[str] | None = None, run: bool = True) -> int:
    """Returns 0 for a good submission, 1 for a bad one, 2 for bad usage; `run=False` leaves the processes out."""
    parser = build_parser()
    args = parser.parse_args(argv)
    course = COURSES[args.course]
    if args.checklist:
        from tasks.submission.checklist import print_checklist  # imports torch, as the checks do

        folder = Path(args.path or ".")
        if args.andrewid is not None or not folder.is_dir():
            parser.error("--checklist takes a project's folder at most")
        return print_checklist(folder, course, run)
    if args.path is None or args.andrewid is None:
        parser.error("PATH and ANDREWID are needed: the project's folder, or a zip, and your id")
    path = Path(args.path)
    try:
        andrew_id = check_andrew_id(args.andrewid)
    except ValueError as error:
        parser.error(str(error))
    if not path.exists():
        parser.error(f"no such file or folder: {path}")
    try:
        return _submit(path, andrew_id, course, run)
    except OSError as error:
        print(f"prepare_submit.py: {error}", file=sys.stderr)
        return 1


def _submit(path: Path, andrew_id: str, course: Course, run: bool) -> int:
    from tasks.submission.check import (  # imports torch, which bad usage should not wait for
        check_zip,
        make_zip,
        summary,
    )

    target = Path(f"{andrew_id}.zip") if path.is_dir() else path
    if path.is_dir():
        found = make_zip(path, andrew_id, course, target, run)
    else:
        found = check_zip(path, andrew_id, course, _data_beside(path), run)
        if path.name != f"{andrew_id}.zip":
            found.notes.append(f"the file is called {path.name}; the course wants {andrew_id}.zip")
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        print(f"{target} is {'not written' if path.is_dir() else 'refused'}:", file=sys.stderr)
        print(*(f"- {problem}" for problem in found.problems), sep="\n", file=sys.stderr)
        return 1
    print(summary(target, found, course))
    return 0


def _data_beside(path: Path) -> Path:
    """The course's data beside a zip or in the folder one stands in, else this project's own."""
    places = (path.resolve().parent / "data", Path("data"), ROOT / "data")
    return next((place for place in places if list(place.glob("sst-*"))), places[-1])


if __name__ == "__main__":
    sys.exit(main())
