"""Makes and checks the zip to hand in, or checks an existing zip, or goes through the checklist.

    python prepare_submit.py path/to/project jdoe       (makes jdoe.zip, or lists everything that is missing)
    python prepare_submit.py jdoe.zip jdoe
    python prepare_submit.py --checklist
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import argparse
import sys
from pathlib import Path

from tasks.cli import new_parser
from tasks.submission.files import AIL861, COURSES, MODELS, Course, check_andrew_id, steps

ROOT = Path(__file__).resolve().parent


def build_parser() -> argparse.ArgumentParser:
    """The parser: the course's two arguments and our flags."""
    parser = new_parser("prepare_submit.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("path", nargs="?", metavar="PATH", help="the project's folder, or a zip")
    parser.add_argument("andrewid", nargs="?", metavar="ANDREWID", help="names the zip and the folder in it")
    courses = (*COURSES, AIL861.name)
    parser.add_argument("--course", choices=courses, default="spring2026", help="whose list of files and size limit")
    parser.add_argument("--checklist", action="store_true", help="check each item of checklist.md")
    return parser


def main(argv: list[str] | None = None, run: bool = True) -> int:
    """Returns 0 for a good submission, 1 for a bad one, 2 for bad usage; `run=False` starts no processes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    course = COURSES.get(args.course, AIL861)
    if args.checklist:
        from tasks.submission.checklist import print_checklist  # imports torch, as the checks do

        folder = Path(args.path or ".")
        if args.andrewid is not None or not folder.is_dir() or course is AIL861:
            parser.error("--checklist takes no more than a project's folder, and is CMU's list")
        return print_checklist(folder, course, run)
    if args.path is None or args.andrewid is None:
        parser.error("give PATH, the project's folder or a zip, and ANDREWID, your id")
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
    from tasks.submission.check import check_zip, make_zip, summary  # imports torch, which bad usage need not wait for

    is_folder = path.is_dir()
    target = Path(f"{andrew_id}.zip") if is_folder else path
    if is_folder:
        findings = make_zip(path, andrew_id, course, target, run)
    else:
        findings = check_zip(path, andrew_id, course, _data_beside(path), run)
        if path.name != f"{andrew_id}.zip":
            findings.notes.append(f"the file is called {path.name}; the course wants {andrew_id}.zip")
    for note in findings.notes:
        print(f"note: {note}")
    if findings.problems:
        print(f"{target} is {'not written' if is_folder else 'refused'}:", file=sys.stderr)
        print(*(f"- {problem}" for problem in findings.problems), sep="\n", file=sys.stderr)
        return 1
    print(summary(target, findings, course))
    if is_folder and not course.made:
        print("\n".join(_origin_lines(path, course, findings.accuracies)))
    return 0


def _origin_lines(folder: Path, course: Course, accuracies: dict[str, tuple[float, int]]) -> list[str]:
    """How the sentences and predictions in the zip were made."""
    from tasks.submission.origin import describe, handed_in, zero_shot  # imports torch

    origins = handed_in(folder, steps(course, [path.name for path in (folder / MODELS).glob("*")]))
    return [*zero_shot(origins, course, accuracies), *describe(origins)]


def _data_beside(path: Path) -> Path:
    """The course's data beside a zip, or in the working folder, or in this project."""
    folders = (path.resolve().parent / "data", Path("data"), ROOT / "data")
    return next((folder for folder in folders if list(folder.glob("sst-*"))), folders[-1])


if __name__ == "__main__":
    sys.exit(main())
