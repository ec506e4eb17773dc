"""Checks a submission as a grader would: unpacks it alone in an empty folder, reads every file, runs the checks.

    python prepare_submit.py jdoe.zip jdoe
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.io.checkpoint import read_checkpoint
from engine.io.files import atomic_path, read_text
from tasks.sentiment.data import SEPARATOR, Examples, prompt_suffix, read_examples, read_label_names
from tasks.submission.files import (
    ABLATION,
    ABLATIONS,
    BEST,
    CHECKS,
    DATA_SETS,
    GENERATED,
    LINES,
    MB,
    MODELS,
    TESTED,
    TRAINED,
    Course,
    addition_steps,
    remedy,
)
from tasks.submission.zip_file import NEEDLESS, check_archive, collect, unpack, write_zip

SENTENCE_START = "I have wanted to see this thriller"
TIME_LIMIT = 300  # seconds a check may take
IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("FAILED", name, f"{type(error).__name__}: {error}", sep="\\t")
"""


@dataclass
class Findings:
    """What is wrong (`problems`), what is odd but no fault (`notes`), and what the grader sees."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    size: int = 0  # of the zip, bytes


class _RejectedError(Exception):
    """Leaves the block that would write the zip."""


def make_zip(
    root: Path, andrew_id: str, course: Course, target: Path, run: bool = True, say: Callable[[str], None] = print
) -> Findings:
    """Packs and checks the project in `root`; writes `target` only where nothing is wrong. Raises OSError."""
    files, problems = collect(root, course, andrew_id)
    try:
        with atomic_path(target) as temporary:
            write_zip(temporary, andrew_id, files)
            found = check_zip(temporary, andrew_id, course, root / "data", run, say)
            found.problems[:0] = problems
            if found.problems:
                raise _RejectedError
    except _RejectedError:
        pass
    return found


def check_zip(
    path: Path, andrew_id: str, course: Course, data: Path, run: bool = True, say: Callable[[str], None] = print
) -> Findings:
    """Everything that is wrong with a zip. `data` is the folder of the course's data, which need not be there.

    With `run` its modules are imported and its checks run, each in a process of its own; `say` tells which.
    """
    top, problems = check_archive(path, andrew_id)
    found = Findings(problems, size=path.stat().st_size)
    if found.size > course.limit_mb * MB:
        found.problems.append(f"the zip has {found.size / MB:.1f} MB; {course.name} allows {course.limit_mb} MB")
    if top is None:
        return found
    with tempfile.TemporaryDirectory() as empty:
        try:
            unpack(path, Path(empty))
        except OSError as error:
            found.problems.append(f"the zip cannot be unpacked: {error.strerror or error}")
            return found
        _check_folder(Path(empty) / top, course, data, found)
        if run:
            found.problems += run_checks(Path(empty) / top, say)
    return found


def _check_folder(folder: Path, course: Course, data: Path, found: Findings) -> None:
    found.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in course.required:
        if name not in found.names:
            found.problems.append(f"missing {name}: {remedy(name)}")
        elif (folder / name).stat().st_size == 0:
            found.problems.append(f"{name} is empty: {remedy(name)}")
    for name in set(GENERATED) & set(found.names):
        found.problems += check_generated(folder / name)
    for name in found.names:
        if name.endswith("-output.txt") and (folder / name).stat().st_size:
            problems, seen = check_predictions(folder / name, data)
            found.problems += [f"{name}: {problem}; {remedy(name)}" for problem in problems]
            found.seen += [seen] if seen else []
    if course.addition:
        check_addition(folder, found)
    if needless := [name for name in found.names if NEEDLESS.fullmatch(name)]:
        found.notes.append(f"not wanted in the zip: {', '.join(needless[:5])}{' …' * (len(needless) > 5)}")


def check_generated(path: Path) -> list[str]:
    """What is wrong with a continuation: it must begin with the course's sentence."""
    try:
        text = read_text(path)
    except ValueError as error:
        return [f"{error}: {remedy(path.name)}"]
    if not text or text.strip().startswith(SENTENCE_START):
        return []
    return [f"{path.name} does not begin with the course's sentence: {remedy(path.name)}"]


def check_predictions(path: Path, data: Path) -> tuple[list[str], str | None]:
    """What is wrong with a file of lines `{prediction} ||| {sentence}`, and its accuracy in words, if it has one.

    Compared with the data file of the same name in the folder `data`; where that is not there, with the course's
    number of lines and of labels.
    """
    stem = "-".join(path.name.split("-")[:2])  # sst-dev
    if stem not in LINES:
        return [], None
    names, examples = _data_of(stem, data)
    labels = len(names) if names else DATA_SETS[stem.split("-")[0]]
    try:
        lines = read_text(path).removesuffix("\n").split("\n")
    except ValueError as error:
        return [str(error)], None
    wanted = len(examples) if examples else LINES[stem]
    problems = [] if len(lines) == wanted else [f"{len(lines)} lines, not {wanted}"]
    predictions, sentences, faults = _parse(lines, labels)
    problems += faults
    if examples and not faults:
        problems += _compare(sentences, examples, prompt_suffix(names).strip())
    if problems or not examples:
        return problems, None
    return [], _accuracy(path.name, predictions, examples)


def _data_of(stem: str, data: Path) -> tuple[list[str], Examples | None]:
    """Label names and examples of a split, as far as they are there and can be read."""
    try:
        names = read_label_names(data / f"{stem.split('-')[0]}-label-mapping.json")
        return names, read_examples(data / f"{stem}.txt", len(names))
    except (OSError, ValueError):
        return [], None


def _parse(lines: list[str], labels: int) -> tuple[list[int], list[str], list[str]]:
    """Predictions, sentences, and the first line that is wrong with the number of those like it."""
    predictions, sentences, faults = [], [], []
    for number, line in enumerate(lines, start=1):
        label, separator, sentence = line.partition(SEPARATOR)
        sentences.append(sentence.strip())
        if not separator:
            faults.append(f"line {number} has no '{SEPARATOR}'")
        elif not label.strip().isascii() or not label.strip().isdigit() or int(label) >= labels:
            faults.append(f"line {number} predicts {label.strip()!r}, no label of the mapping (0 to {labels - 1})")
        else:
            predictions.append(int(label))
    more = f" (and {len(faults) - 1} more lines are wrong)" if len(faults) > 1 else ""
    return predictions, sentences, [faults[0] + more] if faults else []


def _compare(sentences: list[str], examples: Examples, suffix: str) -> list[str]:
    """Where the sentences are not the data's, with or without the prompt's question behind them."""
    bare = [
        sentence if sentence == own else sentence.removesuffix(suffix).strip()
        for sentence, own in zip(sentences, examples.sentences, strict=False)
    ]
    for number, (sentence, own) in enumerate(zip(bare, examples.sentences, strict=False), start=1):
        if sentence != own:
            reordered = sorted(bare) == sorted(examples.sentences)
            what = "the sentences are the data's, but in another order" if reordered else "not the data's sentence"
            return [f"line {number}: {what}"]
    return []


def _accuracy(name: str, predictions: list[int], examples: Examples) -> str:
    if examples.placeholder:
        return f"{name}: every label is a placeholder; {len(predictions)} predictions, no accuracy is claimed"
    right = sum(map(int.__eq__, predictions, examples.labels))
    return f"{name}: accuracy {right / len(predictions):.3f} on {len(predictions)} sentences"


def check_addition(folder: Path, found: Findings) -> None:
    """The best adder and five ablations, each trained, plotted and tested, two of them short of 100 %."""
    folders = sorted(path.name for path in (folder / MODELS).glob("*") if path.is_dir())
    ablations = [name for name in folders if ABLATION.fullmatch(name)]
    if len(ablations) < ABLATIONS:
        free = next(f"ablation_{n}" for n in range(1, ABLATIONS + 1) if f"ablation_{n}" not in ablations)
        found.problems.append(
            f"{MODELS} holds {len(ablations)} ablations, not {ABLATIONS}: {addition_steps(free)[0].command}"
        )
    accuracies = {}
    for name in (BEST, *ablations):
        place = f"{MODELS}/{name}"
        missing = [f"{place}/{file}" for file in TRAINED + TESTED if f"{place}/{file}" not in found.names]
        found.problems += [f"missing {file}: {remedy(file)}" for file in missing]
        found.problems += _unreadable(folder / place / TRAINED[0], f"{place}/{TRAINED[0]}")
        if f"{place}/{TESTED[0]}" not in missing:
            accuracies[name] = _summary(folder / place, place, found)
    short = sum(accuracy is not None and accuracy < 1 for name, accuracy in accuracies.items() if name != BEST)
    if short < 2 and len(ablations) >= ABLATIONS and None not in accuracies.values():
        found.problems.append(f"{short} ablations are short of 100 %, the course wants two at least")
    if accuracies.get(BEST) not in (None, 1.0):
        found.notes.append(f"the best adder is right in {accuracies[BEST]:.2%}, not in all")


def _unreadable(path: Path, name: str) -> list[str]:
    if not path.is_file():
        return []
    try:
        read_checkpoint(path)
    except (OSError, ValueError) as error:
        reason = str(error).replace(str(path), name)
        return [f"{reason}: {remedy(name)}"]
    return []


def _summary(folder: Path, place: str, found: Findings) -> float | None:
    """The accuracy that a model's summary tells, which goes into what the grader sees."""
    name = f"{place}/{TESTED[0]}"
    try:
        summary = json.loads(read_text(folder / TESTED[0]))
        accuracy, parameters = float(summary["accuracy"]), int(summary["num_params"])
    except (ValueError, KeyError, TypeError):
        found.problems.append(f"{name} is not a test's summary: {remedy(name)}")
        return None
    found.seen.append(f"{place}: {parameters:,} parameters, accuracy {accuracy:.4f}")
    return accuracy


def run_checks(folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Imports every module, then runs `--help` and the course's checks, all in `folder`; returns what fails."""
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    modules = sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files)
    say(f"importing {len(modules)} modules, unpacked alone")
    done = _python(folder, "-c", IMPORT_EACH, *modules)
    failed = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("FAILED\t")]
    problems = [f"{name} cannot be imported when unpacked alone: {reason}" for name, reason in failed]
    if done.returncode:
        problems.append(f"importing the modules ends the process: {_last_line(done)}")
    commands = {("run_llama.py", "--help"): "--option"} | {(name,): said for name, said in CHECKS.items()}
    for words, wanted in commands.items():
        if (folder / words[0]).is_file():  # what is missing is told already
            say(f"python {' '.join(words)}")
            problem = run_script(folder, words, wanted)
            problems += [problem] if problem else []
    return problems


def run_script(folder: Path, words: tuple[str, ...], wanted: str) -> str | None:
    """Runs `python WORDS` in `folder`, alone; what is wrong, None where it ends well and prints `wanted`."""
    done = _python(folder, *words)
    if done.returncode == 0 and wanted in done.stdout:
        return None
    return f"python {' '.join(words)} fails: {_last_line(done)}"


def _python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python in `folder`, which alone it may import from besides what is installed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"it takes more than {TIME_LIMIT} s")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode} and not a word"


def summary(target: Path, found: Findings, course: Course) -> str:
    """What is in a good zip, its size, and what the grader will see."""
    folders = Counter(name.split("/")[0] + "/" for name in found.names if "/" in name)
    files = [name for name in found.names if "/" not in name]
    modules = [name for name in files if name.endswith(".py")]
    held = [f"{len(modules)} modules", *(f"{name} ({count} files)" for name, count in folders.items())]
    held += [name for name in files if name not in modules]
    head = f"{target} is good for {course.name}: {found.size / MB:.2f} of {course.limit_mb} MB"
    lines = [head, *textwrap.wrap("in it: " + ", ".join(held), 110, break_on_hyphens=False), "the grader will see:"]
    return "\n".join([*lines, *(f"  {line}" for line in found.seen)])
