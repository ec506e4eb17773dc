"""The whole hand-in in one command: runs the course's commands that are missing or out of date, then makes the zip.

    make submission ANDREWID=jdoe
    python run_llama.py --option submission --andrewid jdoe --course fall2025

`runs/submission.json` records what each output was built from, and `runs/made/` how each file was made when its command
was run by hand. An output is made again when its command, data, model or code changed. An interrupted training step
resumes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.io.files import read_json_object, write_json
from engine.io.locks import hold_folder
from tasks.pretrained import choose_path
from tasks.provenance import digest
from tasks.shipped import is_tracked
from tasks.submission.check import make_zip, summary
from tasks.submission.files import COURSES, MODELS, TESTED, TRAINED, Course, Step, check_andrew_id, steps
from tasks.submission.flags import SubmissionSettings
from tasks.submission.origin import describe, handed_in, set_aside, trace, trace_test, zero_shot
from tasks.submission.zip_file import imported_files
from utils import set_up

STATE = Path("runs") / "submission.json"
MODEL_FLAGS = {"pretrained_model_path": "--pretrained-model-path", "tokenizer": "--tokenizer", "norm": "--norm"}
MODEL_FLAGS |= {"n_heads": "--n_heads", "rope_theta": "--rope_theta"}
DRAWING = ("tasks/plots.py",)  # code that changes no output


@dataclass
class Plan:
    """The hand-in to make, and the records of the existing files."""

    root: Path
    course: Course
    model: Path
    settings: SubmissionSettings
    records: dict[str, dict] = field(default_factory=dict)  # by step: what it was made from

    def save(self) -> None:
        """Writes the records."""
        (self.root / STATE).parent.mkdir(exist_ok=True)
        write_json(self.root / STATE, self.records)

    def course_steps(self) -> list[Step]:
        """The course's commands, for the models that exist."""
        return steps(self.course, [path.name for path in (self.root / MODELS).glob("*") if path.is_dir()])

    def steps(self) -> list[Step]:
        """The course's commands with the reading and the number of epochs that the settings ask for."""
        return [self._with_choices(step) for step in self.course_steps()]

    def _with_choices(self, step: Step) -> Step:
        if step.option == "prompt" and self.settings.zero_shot_pooling == "last_column":
            return step.with_flags("--pooling", "last_column")
        if step.option in ("finetune", "lora") and self.settings.epochs is not None:
            return step.with_flags("--epochs", str(self.settings.epochs))
        return step

    def model_words(self) -> list[str]:
        """The flags of the model that were given, as words of a command line."""
        given = {name: word for name, word in MODEL_FLAGS.items() if name in self.settings.given}
        return [text for name, word in given.items() for text in (word, str(getattr(self.settings, name)))]

    def machine_words(self) -> list[str]:
        """The flags of the machine, as words of a command line."""
        words = ["--use_gpu"] if self.settings.use_gpu else []
        return words + (["--threads", str(self.settings.threads)] if self.settings.threads is not None else [])


def prepare(settings: SubmissionSettings) -> Callable[[], None]:
    """Checks the id, the data and the model; returns the work. Raises ValueError or OSError."""
    root = Path.cwd()
    if not (root / "run_llama.py").is_file():
        raise FileNotFoundError("no run_llama.py here: run this in the project's own folder")
    check_andrew_id(settings.andrewid)
    (root / STATE).parent.mkdir(exist_ok=True)
    hold_folder((root / STATE).parent)
    set_up(settings.seed, settings.use_gpu)
    model = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    if not model.is_file():
        raise FileNotFoundError(f"no such file: {model}")
    plan = Plan(root, COURSES[settings.course], model, settings, _read_records(root / STATE))
    data = [name for step in plan.steps() for name in step.inputs if name.startswith("data/")]
    if missing := [name for name in data if not (root / name).is_file()]:
        raise FileNotFoundError(
            f"no such file: {', '.join(dict.fromkeys(missing))} (bash setup.sh fetches the course's data, "
            "bash setup.sh --from DIR copies it)"
        )
    if spoiled := [name for step in plan.steps() for name in step.outputs if _is_missing_from_shipped(root / name)]:
        raise FileNotFoundError(f"{spoiled[0]} ships with the project and is missing: git restore {MODELS}")
    return lambda: _work(plan)


def _is_missing_from_shipped(path: Path) -> bool:
    """Whether a file is missing beside a shipped adder, which a training would not replace."""
    return not path.is_file() and path.parent.parent.name == MODELS and is_tracked(path.parent / TRAINED[0])


def _read_records(path: Path) -> dict[str, dict]:
    try:
        records = read_json_object(path)
    except (OSError, ValueError):  # no records yet, or unreadable ones: everything is judged without them
        return {}
    shapes = {"begun": dict, "from": dict, "outputs": dict}
    return {
        name: record
        for name, record in records.items()
        if isinstance(record, dict) and all(isinstance(record.get(key, {}), kind) for key, kind in shapes.items())
    }


def _work(plan: Plan) -> None:
    todo = plan.steps()
    for number, step in enumerate(todo, start=1):
        reason = why_stale(plan, step)
        name = f"[{number}/{len(todo)}] {step.name}"
        if reason is None:
            print(f"{name}: up to date", flush=True)
        else:
            print(f"{name} ({reason}): {step.command}", flush=True)
            started = time.perf_counter()
            run_step(plan, step)
            print(f"{name}: done in {time.perf_counter() - started:.0f} s", flush=True)
    _pack(plan)


def _pack(plan: Plan) -> None:
    """Makes the zip and prints its summary. Raises OSError if the check of the zip finds a problem."""
    andrew_id = check_andrew_id(plan.settings.andrewid)
    target = plan.root / f"{andrew_id}.zip"
    findings = make_zip(plan.root, andrew_id, plan.course, target)
    for note in findings.notes:
        print(f"note: {note}")
    if findings.problems:
        print(*(f"- {problem}" for problem in findings.problems), sep="\n", file=sys.stderr)
        raise ChildProcessError(f"{target.name} is not written: {len(findings.problems)} problems, see above")
    print(summary(Path(target.name), findings, plan.course))
    origins = handed_in(plan.root, plan.course_steps(), plan.model_words())
    print("\n".join([*zero_shot(origins, plan.course, findings.accuracies), *describe(origins)]))


def why_stale(plan: Plan, step: Step) -> str | None:
    """Why a step must run (again); None if its outputs exist and are what it would make now."""
    missing = [name for name in step.outputs if not (plan.root / name).is_file()]
    if missing:
        return f"{missing[0]} does not exist"
    if step.option is None:
        return _why_stale_adder(plan, step)
    record = plan.records.get(step.name, {})
    if record.get("outputs") == _digests(plan.root, step.outputs):
        now, then = _made_from(plan, step), record.get("from", {})
        changed = [name for name in now if now[name] != then.get(name)]
        return f"the {changed[0]} has changed since" if changed else None
    origin = trace(plan.root, step, plan.model_words(), plan.model)
    if origin.model is None:
        return _why_older(plan, step)
    return f"made with {', '.join(origin.differences)}" if origin.differences else None


def _why_older(plan: Plan, step: Step) -> str | None:
    """Judges files without any record by their age."""
    made = min((plan.root / name).stat().st_mtime for name in step.outputs)
    sources = [plan.root / name for name in step.inputs] + ([plan.model] if step.reads_model else [])
    newer = [path.name for path in sources if path.stat().st_mtime > made]
    return f"older than {newer[0]}" if newer else None


def _why_stale_adder(plan: Plan, step: Step) -> str | None:
    """A trained adder is never out of date; its test is if the adder was trained again since."""
    if not step.inputs:
        return None
    if differences := trace_test(plan.root, step).differences:
        return f"made with {', '.join(differences)}"
    folder = (plan.root / step.inputs[0]).parent
    try:
        tested = read_json_object(folder / TESTED[0])["train_config"].get("result")
        trained = read_json_object(folder / "training_config.json").get("result")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not written by this project; the check of the zip judges them
    return "trained again since it was tested" if tested and trained and tested != trained else None


def _made_from(plan: Plan, step: Step) -> dict[str, str]:
    """Digests of everything that decides a step's outputs, by name."""
    sources = {"command": hashlib.sha256(step.command.encode()).hexdigest(), "code": _code(plan.root, step.task)}
    sources |= _digests(plan.root, step.inputs)
    if step.reads_model:
        words = [digest(Path(word)) if Path(word).is_file() else word for word in plan.model_words()]
        sources["model"] = " ".join([digest(plan.model), *words])
    return sources


def _digests(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: digest(root / name) for name in names}


@functools.lru_cache
def _code(root: Path, task: str) -> str:
    """Digest of the code that a task runs, without comments and docstrings, which change no output."""
    parts = hashlib.sha256()
    for name in imported_files(root, [task]):
        if name not in DRAWING:
            parts.update(ast.dump(_without_docstrings(ast.parse((root / name).read_bytes()))).encode())
    return parts.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return tree


def run_step(plan: Plan, step: Step) -> None:
    """Runs a step in its own process and records what it was made from. Raises OSError if it fails."""
    made_from = _made_from(plan, step)
    words = [*step.words, *plan.machine_words(), *(plan.model_words() if step.reads_model else [])]
    if step.resumable and plan.records.get(step.name, {}).get("begun") == made_from:
        words.append("--resume")
    plan.records[step.name] = {"begun": made_from}
    plan.save()
    if step.option is not None:
        set_aside(plan.root / name for name in step.outputs)
    done = subprocess.run([sys.executable, *words], cwd=plan.root, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise ChildProcessError(f"{step.name} ended with exit code {done.returncode}; run this again to resume")
    if missing := [name for name in step.outputs if not (plan.root / name).is_file()]:
        raise FileNotFoundError(f"{step.name} ended well, but did not write {missing[0]}")
    plan.records[step.name] = {"from": made_from, "outputs": _digests(plan.root, step.outputs)}
    plan.save()
