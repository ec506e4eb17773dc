"""How the sentences and predictions of a hand-in were made: by the course's command or otherwise, with which model.

    python prepare_submit.py . jdoe      (prints it as notes)
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import provenance
from tasks.addition.flags import AdderTest
from tasks.cli import settings_parser
from tasks.generate.flags import GenerateSettings
from tasks.pretrained import SHIPPED
from tasks.sentiment.flags import FinetuneSettings, LoraSettings, PromptSettings
from tasks.settings import DEFAULT_MODEL
from tasks.submission.files import ZERO_SHOT_REFERENCES, Course, Step

SETTINGS = {
    "generate": GenerateSettings, "prompt": PromptSettings, "finetune": FinetuneSettings, "lora": LoraSettings,
    "test": AdderTest,
}  # fmt: skip
REPLACED = Path("runs") / "replaced"
RULE = "!" * 100
READINGS = {
    "last_token": "the last real token: independent of the batch, but not the course's own reading",
    "last_column": "the last column of the batch, padding included, as the course's own program",
    None: "a hidden state that is not recorded",
}


@dataclass(frozen=True)
class Origin:
    """How the outputs of a step were made; `differences` from the course's command, in words."""

    step: Step
    differences: tuple[str, ...] = ()
    model: str | None = None  # None: not recorded
    pooling: str | None = None  # what zero-shot classification read


def handed_in(root: Path, steps: Iterable[Step], model_words: Iterable[str] = ()) -> list[Origin]:
    """The origin of every sentence and prediction; either reading of zero-shot counts as the course's command."""
    model_words, origins = list(model_words), []
    for step in steps:
        if step.inputs and step.option is None and (tested := trace_test(root, step)).differences:
            origins.append(tested)
        if step.option is not None:
            origin = trace(root, step, model_words)
            if step.option == "prompt" and origin.pooling == "last_column":
                origin = trace(root, step.with_flags("--pooling", "last_column"), model_words)
            origins.append(origin)
    return origins


def trace(root: Path, step: Step, model_words: Iterable[str] = (), model: Path | None = None) -> Origin:
    """Compares the records of a step's outputs with its command, its data and, if given, the model."""
    records = [provenance.find(root / name, root) for name in step.outputs if (root / name).is_file()]
    known = [record for record in records if record is not None]
    if len(known) < len(step.outputs):
        return Origin(step)
    expected = _expected(step, list(model_words))
    found: list[str] = []
    for record in known:
        found += _flag_differences(record, expected)
        found += _data_differences(root, step, record)
        if model is not None and record["model"]["sha256"] != provenance.digest(model):
            found.append(f"another model, {model_name(record)}")
    return Origin(step, tuple(dict.fromkeys(found)), model_name(known[0]), known[0]["flags"].get("pooling"))


def trace_test(root: Path, step: Step) -> Origin:
    """The origin of an adder's predictions; its summary gathers several tests and has none of its own."""
    return trace(root, replace(step, outputs=step.outputs[1:]))


def _expected(step: Step, model_words: list[str]) -> dict[str, Any]:
    """The value of every flag in the course's command."""
    parser = settings_parser(SETTINGS[step.option or "test"], step.words[0], "")
    return vars(parser.parse_args([*step.words[3 if step.option else 2 :], *model_words]))


def _flag_differences(record: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    compared = {name: value for name, value in expected.items() if name not in provenance.NEUTRAL}
    flags = {name: record["flags"].get(name, value) for name, value in compared.items()}
    return [
        f"--{name} {value}" + (f" instead of {expected[name]}" if expected[name] not in (None, False) else "")
        for name, value in flags.items()
        if json.dumps(value) != json.dumps(expected[name])
    ]


def _data_differences(root: Path, step: Step, record: dict[str, Any]) -> list[str]:
    """The data files that are not among those of the course's command; nothing where the data are not there."""
    paths = [root / name for name in step.inputs]
    if not all(path.is_file() for path in paths):
        return []
    wanted = {provenance.digest(path) for path in paths}
    return [f"other data, {Path(name).name}" for name, digest in record["data"].items() if digest not in wanted]


def model_name(record: dict[str, Any]) -> str:
    """The file name of the model, or "shipped" if it has the content of the shipped model."""
    if SHIPPED.is_file() and record["model"]["sha256"] == provenance.digest(SHIPPED):
        return "shipped"
    return Path(record["model"]["path"]).name


def set_aside(paths: Iterable[Path]) -> None:
    """Moves files to `runs/replaced/` of their folder, so that nothing that took hours to make is lost."""
    for path in paths:
        if path.is_file():
            target = path.parent / REPLACED / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            print(f"the old {path.name} is now in {REPLACED}/")


def describe(origins: Iterable[Origin]) -> list[str]:
    """Lines that say which files were not made by the course's command or the course's model, the gravest first."""
    origins = list(origins)
    otherwise = [origin for origin in origins if origin.differences]
    unknown = [name for origin in origins if origin.model is None for name in origin.step.outputs]
    by_model: dict[str, list[str]] = {}
    for origin in origins:
        if origin.model is not None:
            by_model.setdefault(origin.model, []).extend(origin.step.outputs)
    shipped = by_model.pop("shipped", [])
    loud = [_otherwise(origin) for origin in otherwise]
    if shipped:
        loud.append(f"NOT made with stories42M but with the shipped model: {', '.join(shipped)}.")
        loud.append("The course's reference figures are those of stories42M. Run bash setup.sh, which fetches it, and")
        loud.append("then make submission, which makes these files anew.")
    others = {model: names for model, names in by_model.items() if model != DEFAULT_MODEL}
    loud += [f"NOT made with {DEFAULT_MODEL} but with {model}: {', '.join(names)}." for model, names in others.items()]
    lines = [RULE, *(f"!! {line}" for line in loud), RULE] if loud else []
    if unknown:
        lines.append(f"made by a command and a model that are not recorded: {', '.join(unknown)}")
    if names := by_model.get(DEFAULT_MODEL):
        lines.append(f"made with {DEFAULT_MODEL}: {', '.join(names)}")
    return lines


def _otherwise(origin: Origin) -> str:
    return (
        f"NOT made by the course's command ({', '.join(origin.differences)}): {', '.join(origin.step.outputs)}; "
        f"the course's: {origin.step.command}"
    )




def zero_shot(origins: Iterable[Origin], course: Course, accuracies: dict[str, tuple[float, int]]) -> list[str]:
    """Which reading of zero-shot is handed in, and its accuracies beside the course's reference."""
    readings = {origin.pooling for origin in origins if origin.step.option == "prompt"}
    lines = [f"zero-shot reads {READINGS[reading]}" for reading in sorted(readings, key=str)]
    if None not in readings and readings != {"last_column"}:
        lines.append("(--option submission --zero_shot_pooling last_column hands in the course's reading)")
    for data, reference in ZERO_SHOT_REFERENCES[course.name].items():
        if (found := accuracies.get(f"{data}-prompting-output.txt")) is None:
            continue
        accuracy, count = found
        error = math.sqrt(reference * (1 - reference) / count)
        verdict = "close to" if abs(accuracy - reference) <= 2 * error else "not near"
        lines.append(f"  {data}: {accuracy:.3f}, {verdict} the reference {reference:.3f} (standard error {error:.3f})")
    mask = "" if course.addition else ", without the causal mask"
    lines.append(f"  (the reference: stories42M, the last column of batches of 10{mask})")
    return lines
