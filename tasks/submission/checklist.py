"""Checks each item of `checklist.md`: done, missing (with the command that makes it), or for a person to judge.

    python prepare_submit.py --checklist
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import read_text
from tasks.submission.check import Findings, check_addition, check_generated, check_predictions, check_zip, run_script
from tasks.submission.files import (
    ABLATION,
    ABLATIONS,
    ANDREW_ID,
    BEST,
    CHECKS,
    COURSES,
    GENERATED,
    MODELS,
    TESTED,
    Course,
    addition_folders,
    addition_steps,
    outputs,
    remedy,
)

ITEM = re.compile(r"\s*[-*] \[.\] (.+)")
NEEDED = ("torch", "numpy", "sentencepiece", "tqdm", "sklearn", "matplotlib")
SHIPPED = "models/stories.pt"
OWN_LIST = Path(__file__).resolve().parents[2] / "checklist.md"


class CannotTellError(Exception):
    """Only a person can judge the item."""


class NotAskedError(Exception):
    """The item belongs to the other edition of the course."""


@dataclass(frozen=True)
class Place:
    """The project to check, and whether processes may be run for it."""

    folder: Path
    course: Course
    run: bool

    def need(self, names: tuple[str, ...] | list[str]) -> None:
        """Raises ValueError, with the command that makes it, for the first missing or empty file."""
        for name in names:
            if not (self.folder / name).is_file() or (self.folder / name).stat().st_size == 0:
                raise ValueError(f"no {name}: {remedy(name)}")


def print_checklist(folder: Path, course: Course, run: bool = True) -> int:
    """Prints every item; returns 0 if nothing is missing, else 1. Without a checklist of its own, ours serves."""
    path = folder / "checklist.md"
    missing = not path.is_file()
    if missing:
        print(f"  missing  checklist.md -> {remedy('checklist.md')}")
        path = OWN_LIST
    for line in read_text(path).split("\n"):
        if line.startswith("#"):
            print(f"\n{line.lstrip('# ')}")
        elif (item := ITEM.match(line)) is not None:
            state, detail = look(item[1], Place(folder, course, run))
            missing += state == "missing"
            print(f"  {state:<9} {item[1]}{f' -> {detail}' if detail else ''}", flush=True)
    print(f"\n{missing} missing" if missing else "\nnothing is missing")
    return 1 if missing else 0


def look(item: str, place: Place) -> tuple[str, str]:
    """("done", "missing", "look" or "not asked", why) for one item of the list."""
    try:
        for pattern, check in LOOKS:
            if (match := re.search(pattern, item, re.IGNORECASE)) is not None:
                return "done", check(place, match) or ""
    except NotAskedError as error:
        return "not asked", str(error)
    except CannotTellError as error:
        return "look", str(error)
    except (ValueError, OSError) as error:
        return "missing", str(error)
    return "look", "only you can judge this"


def _environment(place: Place, found: re.Match) -> None:
    place.need(["setup.sh"])
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(lacking)} cannot be imported: bash setup.sh")


def _weights(place: Place, found: re.Match) -> str:
    if (place.folder / "stories42M.pt").is_file():
        return "stories42M.pt"
    if (place.folder / SHIPPED).is_file():
        return f"no stories42M.pt; the shipped {SHIPPED} is used instead"
    raise ValueError(f"neither stories42M.pt nor the shipped {SHIPPED}: bash setup.sh")


def _code(place: Place, found: re.Match) -> None:
    """The file parses, and no function raises NotImplementedError."""
    module = found[1].removesuffix(".py")
    if module in {name for other in COURSES.values() for name in other.modules} - set(place.course.modules):
        raise NotAskedError(f"{place.course.name} does not ask for it")
    place.need([found[1]])
    try:
        tree = ast.parse(read_text(place.folder / found[1]))
    except SyntaxError as error:
        raise ValueError(f"{found[1]}, line {error.lineno}: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            raise ValueError(f"{found[1]}, line {node.lineno}: not implemented")


def _script(place: Place, found: re.Match) -> str | None:
    name = found[1]
    place.need([name])
    if not place.run:
        raise CannotTellError(f"not run: python {name}")
    if (problem := run_script(place.folder, (name,), CHECKS[name])) is not None:
        raise ValueError(problem)
    return CHECKS[name]


def _generated(place: Place, found: re.Match) -> str:
    place.need(GENERATED)
    for name in GENERATED:
        if problems := check_generated(place.folder / name):
            raise ValueError(problems[0])
    return "read whether it is coherent"


def _predictions(option: str) -> Callable[[Place, re.Match], str]:
    def check(place: Place, found: re.Match) -> str:
        if option not in place.course.options:
            raise NotAskedError(f"{place.course.name} does not ask for it")
        names = outputs(option, found[1].lower())
        place.need(names)
        seen = []
        for name in names:
            problems, line, _ = check_predictions(place.folder / name, place.folder / "data")
            if problems:
                raise ValueError(f"{name}: {problems[0]}; {remedy(name)}")
            seen += [line] if line else []
        return "; ".join(seen)

    return check


def _data_generation(place: Place, found: re.Match) -> None:
    _need_addition(place)
    place.need(["addition_data_generation.py"])
    if not place.run:
        raise CannotTellError("not run: python addition_data_generation.py --n 10 --out problems.txt")
    with tempfile.TemporaryDirectory() as empty:
        target = Path(empty) / "problems.txt"
        words = [sys.executable, "addition_data_generation.py", "--n", "10", "--seed", "1", "--out", str(target)]
        done = subprocess.run(words, cwd=place.folder, capture_output=True, text=True, check=False)
        if done.returncode or len(read_text(target).split()) != 10:
            raise ValueError(f"addition_data_generation.py writes no problems: {done.stderr.strip()[-200:]}")


def _need_addition(place: Place) -> None:
    if not place.course.addition:
        raise NotAskedError(f"{place.course.name} does not ask for it")


def _of_all_models(name: str) -> Callable[[Place, re.Match], str]:
    """A check that each folder of `addition_models` holds the file `name`."""

    def check(place: Place, found: re.Match) -> str:
        _need_addition(place)
        folders = addition_folders(path.name for path in (place.folder / MODELS).glob("*"))
        place.need([f"{MODELS}/{folder}/{name}" for folder in folders])
        return f"{len(folders)} models"

    return check


def _ablations(place: Place, found: re.Match) -> str:
    _need_addition(place)
    findings = _addition(place)
    of_ablations = [problem for problem in findings.problems if f"{MODELS}/{BEST}" not in problem]
    if of_ablations:
        raise ValueError(of_ablations[0])
    return f"{len([seen for seen in findings.seen if ABLATION.search(seen)])} ablations; at least {ABLATIONS} needed"


def _best(place: Place, found: re.Match) -> str:
    _need_addition(place)
    place.need([f"{MODELS}/{BEST}/{name}" for name in ("best_model.pth", TESTED[0])])
    seen = next((seen for seen in _addition(place).seen if f"/{BEST}:" in seen), "")
    if not seen.endswith("accuracy 1.0000"):
        raise ValueError(f"{seen or 'no accuracy was measured'}: {addition_steps(BEST)[0].command}")
    return seen


def _addition(place: Place) -> Findings:
    files = (place.folder / MODELS).rglob("*")
    found = Findings(names=[path.relative_to(place.folder).as_posix() for path in files if path.is_file()])
    check_addition(place.folder, found)
    return found


def _outputs(place: Place, found: re.Match) -> None:
    place.need([*GENERATED, *place.course.predictions])


def _zip(place: Place, found: re.Match) -> str:
    """The folder holds a good zip. Its checks are not run here: `prepare_submit.py jdoe.zip jdoe` runs them."""
    place.need(["prepare_submit.py"])
    zips = [path for path in sorted(place.folder.glob("*.zip")) if ANDREW_ID.fullmatch(path.stem)]
    if not zips:
        raise ValueError("no ANDREWID.zip here: make submission ANDREWID=jdoe, with your id")
    for path in zips:
        findings = check_zip(path, path.stem, place.course, place.folder / "data", run=False)
        if findings.problems:
            raise ValueError(f"{path.name}: {findings.problems[0]} ({len(findings.problems)} problems in all)")
    return ", ".join(f"{path.name}, {path.stat().st_size / 1e6:.2f} MB" for path in zips)


def _optional(place: Place, found: re.Match) -> str:
    there = [path.name for pattern in ("feedback.txt", "*-report.pdf") for path in place.folder.glob(pattern)]
    if not there:
        raise CannotTellError("optional; there is none")
    return ", ".join(there)


def _tests(place: Place, found: re.Match) -> str:
    place.need(["Makefile"])
    raise CannotTellError("not run: make test")


LOOKS: tuple[tuple[str, Callable[[Place, re.Match], str | None]], ...] = (  # the first pattern that an item contains
    (r"make test", _tests),
    (r"report and feedback|feedback", _optional),
    (r"required output files", _outputs),
    (r"`prepare_submit\.py`|\d+ ?MB|zip|final submission", _zip),
    (r"`?bash setup\.sh", _environment),
    (r"stories42M|model weights", _weights),
    (r"data generation", _data_generation),
    (r"\*\*`?(\w+\.py)`?\*\*", _code),
    (r"(sanity_check\.py|rope_test\.py|optimizer_test\.py)", _script),
    (r"\b(SST|CFIMDB)\b.*\blora\b", _predictions("lora")),
    (r"\b(SST|CFIMDB)\b.*fine-?tun", _predictions("finetune")),
    (r"\b(SST|CFIMDB)\b.*prompt", _predictions("prompt")),
    (r"--option generate|coherent text", _generated),
    (r"\bplots?\b", _of_all_models("loss_curve.png")),
    (r"\blogs?\b", _of_all_models("log.jsonl")),
    (r"\babl?a\w*tions?\b", _ablations),
    (r"100 ?%|tin(y|iest)|best model", _best),
)
