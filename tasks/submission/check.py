"""Checks a submission as a grader would: unpacks it in an empty folder, reads every file, runs the checks.

    python prepare_submit.py jdoe.zip jdoe
"""

from __future__ import annotations

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
from engine.io.files import atomic_path, read_json_object, read_text
from tasks.sentiment.data import SEPARATOR, Examples, prompt_suffix, read_examples, read_label_names
from tasks.submission.files import (
    ABLATION,
    ABLATIONS,
    BEST,
    CHECKS,
    CODE,
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
from tasks.submission.origin import set_aside
from tasks.submission.zip_file import NEEDLESS, check_archive, collect, imported_files, links, unpack, write_zip

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
    """The result of a check: `problems` forbid the zip, `notes` do not, `seen` is what the grader will see."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    accuracies: dict[str, tuple[float, int]] = field(default_factory=dict)  # by prediction file, with its lines
    names: list[str] = field(default_factory=list)
    size: int = 0  # of the zip, in bytes


class _RejectedError(Exception):
    """Raised to leave the block that would write the zip."""


def make_zip(
    root: Path, andrew_id: str, course: Course, target: Path, run: bool = True, say: Callable[[str], None] = print
) -> Findings:
    """Packs and checks the project in `root`; writes `target` only if there is no problem. Raises OSError.

    If there is one, an older `target` is moved to `runs/replaced/`, so that nobody hands it in by mistake.
    """
    files, problems = collect(root, course, andrew_id)
    try:
        with atomic_path(target) as temporary:
            write_zip(temporary, andrew_id, files)
            findings = check_zip(temporary, andrew_id, course, root / "data", run, say)
            findings.problems[:0] = problems
            if findings.problems:
                raise _RejectedError
    except _RejectedError:
        set_aside([target])
    if not course.made and (left_out := packer_leaves_out(root, course)):
        findings.notes.append(
            f"the course's own prepare_submit.py packs a fixed list of files and would leave out {left_out}, which the "
            "listed ones import: hand in the zip that is made here"
        )
    return findings


def packer_leaves_out(root: Path, course: Course) -> str:
    """The modules, by folder, that the course's fixed list of files lacks although its modules import them."""
    listed = {f"{module}.py" for module in (*CODE, *course.modules, "sanity_check")}
    needed = imported_files(root, [name.removesuffix(".py") for name in sorted(listed)])
    counts = Counter(f"{name.split('/')[0]}/" if "/" in name else name for name in needed if name not in listed)
    return ", ".join(f"{name} ({count} files)" if name.endswith("/") else name for name, count in counts.items())


def check_zip(
    path: Path, andrew_id: str, course: Course, data: Path, run: bool = True, say: Callable[[str], None] = print
) -> Findings:
    """Checks everything in a zip. `data` is the folder of the course's data, which need not exist.

    With `run` its modules are imported and its checks run, each in its own process; `say` prints which.
    """
    top, problems = check_archive(path, andrew_id)
    findings = Findings(problems, size=path.stat().st_size)
    if findings.size > course.limit_mb * MB:
        findings.problems.append(f"the zip has {findings.size / MB:.1f} MB; {course.name} allows {course.limit_mb} MB")
    if top is None:
        return findings
    with tempfile.TemporaryDirectory() as empty:
        try:
            unpack(path, Path(empty))
        except OSError as error:
            findings.problems.append(f"the zip cannot be unpacked: {error.strerror or error}")
            return findings
        _check_folder(Path(empty) / top, course, data, findings)
        if run:
            findings.problems += run_checks(Path(empty) / top, say)
    return findings


def _check_folder(folder: Path, course: Course, data: Path, findings: Findings) -> None:
    findings.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in course.required:
        if name not in findings.names:
            findings.problems.append(f"missing {name}: {remedy(name)}")
        elif (folder / name).stat().st_size == 0:
            findings.problems.append(f"{name} is empty: {remedy(name)}")
    for name in set(GENERATED) & set(findings.names):
        findings.problems += check_generated(folder / name)
    for name in findings.names:
        if name.endswith("-output.txt") and (folder / name).stat().st_size:
            problems, seen, accuracy = check_predictions(folder / name, data)
            findings.problems += [f"{name}: {problem}; {remedy(name)}" for problem in problems]
            findings.seen += [seen] if seen else []
            findings.accuracies |= {name: accuracy} if accuracy else {}
    if course.addition:
        check_addition(folder, findings)
    pages = [name for name in findings.names if name.endswith(".md")]
    if dead := {name for page in pages for name in links(folder, page)} - set(findings.names):
        findings.notes.append(f"pages in the zip link to what is not in it: {', '.join(sorted(dead))}")
    if needless := [name for name in findings.names if NEEDLESS.fullmatch(name)]:
        findings.notes.append(f"not wanted in the zip: {', '.join(needless[:5])}{' …' * (len(needless) > 5)}")


def check_generated(path: Path) -> list[str]:
    """Problems of a continuation, which must begin with the course's sentence."""
    try:
        text = read_text(path)
    except ValueError as error:
        return [f"{error}: {remedy(path.name)}"]
    if not text or text.strip().startswith(SENTENCE_START):
        return []
    return [f"{path.name} does not begin with the course's sentence: {remedy(path.name)}"]


def check_predictions(path: Path, data: Path) -> tuple[list[str], str | None, tuple[float, int] | None]:
    """Problems of a file of lines `{prediction} ||| {sentence}`, a line for the grader, accuracy and number of lines.

    It is compared with the data file of the same name in the folder `data`, or, if there is none, with the course's
    numbers of lines and labels. Placeholder labels give no accuracy.
    """
    stem = "-".join(path.name.split("-")[:2])  # sst-dev
    if stem not in LINES:
        return [], None, None
    names, examples = _data_of(stem, data)
    labels = len(names) if names else DATA_SETS[stem.split("-")[0]]
    try:
        lines = read_text(path).removesuffix("\n").split("\n")
    except ValueError as error:
        return [str(error)], None, None
    wanted = len(examples) if examples else LINES[stem]
    problems = [] if len(lines) == wanted else [f"{len(lines)} lines, not {wanted}"]
    predictions, sentences, faults = _parse(lines, labels)
    problems += faults
    if examples and not faults:
        problems += _compare(sentences, examples, prompt_suffix(names).strip())
    if problems or not examples:
        return problems, None, None
    if examples.placeholder:
        line = f"{path.name}: every label is a placeholder; {len(lines)} predictions, no accuracy is claimed"
        return [], line, None
    accuracy = sum(map(int.__eq__, predictions, examples.labels)) / len(lines)
    return [], f"{path.name}: accuracy {accuracy:.3f} on {len(lines)} sentences", (accuracy, len(lines))


def _data_of(stem: str, data: Path) -> tuple[list[str], Examples | None]:
    """Label names and examples of a split; empty and None if they cannot be read."""
    try:
        names = read_label_names(data / f"{stem.split('-')[0]}-label-mapping.json")
        return names, read_examples(data / f"{stem}.txt", len(names))
    except (OSError, ValueError):
        return [], None


def _parse(lines: list[str], labels: int) -> tuple[list[int], list[str], list[str]]:
    """Predictions, sentences, and the first wrong line with the number of further ones."""
    predictions, sentences, faults = [], [], []
    for number, line in enumerate(lines, start=1):
        label, separator, sentence = line.partition(SEPARATOR)
        sentences.append(sentence.strip())
        if not separator:
            faults.append(f"line {number} has no '{SEPARATOR}'")
        elif not label.strip().isascii() or not label.strip().isdigit() or int(label) >= labels:
            faults.append(f"line {number} predicts {label.strip()!r}, not a label of the mapping (0 to {labels - 1})")
        else:
            predictions.append(int(label))
    more = f" (and {len(faults) - 1} more lines are wrong)" if len(faults) > 1 else ""
    return predictions, sentences, [faults[0] + more] if faults else []


def _compare(sentences: list[str], examples: Examples, suffix: str) -> list[str]:
    """The first sentence that is not the data's, with or without the prompt's question after it."""
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


def check_addition(folder: Path, findings: Findings) -> None:
    """Checks the best adder and five ablations: each trained, plotted and tested, two ablations below 100 %."""
    folders = sorted(path.name for path in (folder / MODELS).glob("*") if path.is_dir())
    ablations = [name for name in folders if ABLATION.fullmatch(name)]
    if len(ablations) < ABLATIONS:
        free = next(f"ablation_{n}" for n in range(1, ABLATIONS + 1) if f"ablation_{n}" not in ablations)
        findings.problems.append(
            f"{MODELS} holds {len(ablations)} ablations, not {ABLATIONS}: {addition_steps(free)[0].command}"
        )
    accuracies = {}
    for name in (BEST, *ablations):
        path = f"{MODELS}/{name}"
        missing = [f"{path}/{file}" for file in TRAINED + TESTED if f"{path}/{file}" not in findings.names]
        findings.problems += [f"missing {file}: {remedy(file)}" for file in missing]
        findings.problems += _unreadable(folder / path / TRAINED[0], f"{path}/{TRAINED[0]}")
        if f"{path}/{TESTED[0]}" not in missing:
            accuracies[name] = _summary(folder / path, path, findings)
    short = sum(accuracy is not None and accuracy < 1 for name, accuracy in accuracies.items() if name != BEST)
    if short < 2 and len(ablations) >= ABLATIONS and None not in accuracies.values():
        findings.problems.append(f"{short} ablations are below 100 %; the course wants at least two")
    if accuracies.get(BEST) not in (None, 1.0):
        findings.notes.append(f"the best adder's accuracy is {accuracies[BEST]:.2%}, not 100 %")


def _unreadable(path: Path, name: str) -> list[str]:
    if not path.is_file():
        return []
    try:
        read_checkpoint(path)
    except (OSError, ValueError) as error:
        reason = str(error).replace(str(path), name)
        return [f"{reason}: {remedy(name)}"]
    return []


def _summary(folder: Path, path: str, findings: Findings) -> float | None:
    """The accuracy in a model's summary, which is added to what the grader will see."""
    name = f"{path}/{TESTED[0]}"
    try:
        summary = read_json_object(folder / TESTED[0])
        accuracy, parameters = float(summary["accuracy"]), int(summary["num_params"])
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"accuracy {accuracy}")
    except (ValueError, KeyError, TypeError, OverflowError):
        findings.problems.append(f"{name} is not the summary of a test: {remedy(name)}")
        return None
    findings.seen.append(f"{path}: {parameters:,} parameters, accuracy {accuracy:.4f}")
    return accuracy


def run_checks(folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Imports every module, then runs `--help` and the course's checks, all in `folder`; returns the failures."""
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    modules = sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files)
    say(f"importing {len(modules)} modules of the unpacked zip")
    done = _python(folder, "-c", IMPORT_EACH, *modules)
    failed = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("FAILED\t")]
    problems = [f"{name} cannot be imported from the unpacked zip: {reason}" for name, reason in failed]
    if done.returncode:
        problems.append(f"importing the modules ends the process: {_last_line(done)}")
    commands = {("run_llama.py", "--help"): "--option"} | {(name,): output for name, output in CHECKS.items()}
    for words, wanted in commands.items():
        if (folder / words[0]).is_file():  # a missing script is a problem already
            say(f"python {' '.join(words)}")
            problem = run_script(folder, words, wanted)
            problems += [problem] if problem else []
    return problems


def run_script(folder: Path, words: tuple[str, ...], wanted: str) -> str | None:
    """Runs `python WORDS` in `folder`; returns the problem, or None if it succeeds and prints `wanted`."""
    done = _python(folder, *words)
    if done.returncode == 0 and wanted in done.stdout:
        return None
    return f"python {' '.join(words)} fails: {_last_line(done)}"


def _python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python in `folder`; it can import from there and from the installed packages only."""
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
    return lines[-1] if lines else f"exit code {done.returncode}, without any output"


def summary(target: Path, findings: Findings, course: Course) -> str:
    """The contents and size of a good zip, and what the grader will see."""
    folders = Counter(name.split("/")[0] + "/" for name in findings.names if "/" in name)
    files = [name for name in findings.names if "/" not in name]
    modules = [name for name in files if name.endswith(".py")]
    contents = [f"{len(modules)} modules", *(f"{name} ({count} files)" for name, count in folders.items())]
    contents += [name for name in files if name not in modules]
    head = f"{target} is good for {course.name}: {findings.size / MB:.2f} of {course.limit_mb} MB"
    lines = [head, *textwrap.wrap(f"contents: {', '.join(contents)}", 110, break_on_hyphens=False)]
    return "\n".join([*lines, "the grader will see:", *(f"  {line}" for line in findings.seen)])
