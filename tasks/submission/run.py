"""The whole submission by one command: runs what is missing or stale of the course's commands, then makes the zip.

    make submission ANDREWID=jdoe
    python run_llama.py --option submission --andrewid jdoe --course fall2025

What was made by what is kept in `runs/submission.json`: an output is made anew when its command, the data, the model
or the code that makes it is another than then. A step that is stopped goes on where it can.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.io.files import read_text, write_text
from tasks.pretrained import SHIPPED, choose_path
from tasks.submission.check import make_zip, summary
from tasks.submission.files import COURSES, MODELS, TESTED, Course, Step, check_andrew_id, steps
from tasks.submission.flags import SubmissionSettings
from tasks.submission.zip_file import imported_files
from utils import set_up

STATE = Path("runs") / "submission.json"
PASSED_ON = ("threads", "pretrained_model_path", "tokenizer", "norm")  # flags that every step may get
OF_THE_MODEL = PASSED_ON[1:]
DRAWS = ("tasks/plots.py",)  # code that changes no output


@dataclass
class Plan:
    """What is to be handed in, and what is known of the files that are there."""

    root: Path
    andrew_id: str
    course: Course
    model: Path
    flags: dict[str, str | None]
    use_gpu: bool
    records: dict[str, dict] = field(default_factory=dict)  # step: what it was made from

    def save(self) -> None:
        """Writes the records."""
        (self.root / STATE).parent.mkdir(exist_ok=True)
        write_text(self.root / STATE, json.dumps(self.records, indent=2) + "\n")

    def steps(self) -> list[Step]:
        """The course's commands, for the models that are there."""
        return steps(self.course, [path.name for path in (self.root / MODELS).glob("*") if path.is_dir()])


def prepare(settings: SubmissionSettings) -> Callable[[], None]:
    """Checks the id, the data and the model; returns what does everything. Raises ValueError or OSError."""
    root = Path.cwd()
    if not (root / "run_llama.py").is_file():
        raise FileNotFoundError("no run_llama.py here: run this in the project's own folder")
    andrew_id, course = check_andrew_id(settings.andrewid), COURSES[settings.course]
    set_up(settings.seed, settings.use_gpu)
    model = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    if not model.is_file():
        raise FileNotFoundError(f"no such file: {model}")
    flags = {name: str(getattr(settings, name)) for name in PASSED_ON if name in settings.given}
    plan = Plan(root, andrew_id, course, model, flags, settings.use_gpu, _read_records(root / STATE))
    wanted = [name for step in plan.steps() for name in step.inputs if name.startswith("data/")]
    if missing := [name for name in wanted if not (root / name).is_file()]:
        raise FileNotFoundError(
            f"no such file: {', '.join(missing)} (bash setup.sh fetches the course's data, "
            "bash setup.sh --from DIR copies it)"
        )
    return lambda: _work(plan)


def _read_records(path: Path) -> dict[str, dict]:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError):  # nothing was recorded yet, or nothing that can be read: it is made anew
        return {}


def _work(plan: Plan) -> None:
    todo = plan.steps()
    for number, step in enumerate(todo, start=1):
        reason = why_stale(plan, step)
        place = f"[{number}/{len(todo)}] {step.name}"
        if reason is None:
            print(f"{place}: done before", flush=True)
        else:
            print(f"{place} ({reason}): {step.command}", flush=True)
            started = time.perf_counter()
            run_step(plan, step)
            print(f"{place}: done in {time.perf_counter() - started:.0f} s", flush=True)
    target = plan.root / f"{plan.andrew_id}.zip"
    found = make_zip(plan.root, plan.andrew_id, plan.course, target)
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        print(*(f"- {problem}" for problem in found.problems), sep="\n", file=sys.stderr)
        raise ChildProcessError(f"{target.name} is not written: {len(found.problems)} things are wrong, see above")
    print(summary(Path(target.name), found, plan.course))
    print("\n".join(whose(plan)))


def why_stale(plan: Plan, step: Step) -> str | None:
    """Why a step must run (again), None where its outputs are there and as they would be made now."""
    missing = [name for name in step.outputs if not (plan.root / name).is_file()]
    if missing:
        return f"{missing[0]} is not there"
    if step.task == "addition_run":
        return _why_stale_adder(plan, step)
    record = plan.records.get(step.name, {})
    if record.get("outputs") != _digests(plan.root, step.outputs):
        return _why_older(plan, step)  # made by hand
    now, then = _made_from(plan, step), record.get("from", {})
    changed = [name for name in now if now[name] != then.get(name)]
    return f"another {changed[0]} than when it was made" if changed else None


def _why_older(plan: Plan, step: Step) -> str | None:
    """Of files made by hand nothing is known but their age."""
    made = min((plan.root / name).stat().st_mtime for name in step.outputs)
    sources = [plan.root / name for name in step.inputs] + ([plan.model] if step.reads_model else [])
    newer = [path.name for path in sources if path.stat().st_mtime > made]
    return f"older than {newer[0]}" if newer else None


def _why_stale_adder(plan: Plan, step: Step) -> str | None:
    """A trained adder is never stale; its test is when it tells of another training than the settings beside it."""
    if not step.inputs:
        return None
    folder = (plan.root / step.inputs[0]).parent
    try:
        tested = json.loads(read_text(folder / TESTED[0]))["train_config"].get("result")
        trained = json.loads(read_text(folder / "training_config.json")).get("result")
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # another's files: the check of the zip judges them
    return "trained again since it was tested" if tested and trained and tested != trained else None


def _made_from(plan: Plan, step: Step) -> dict[str, str]:
    """Digests of all that decides a step's outputs, by what to call it."""
    found = {"command": hashlib.sha256(step.command.encode()).hexdigest(), "code": _code(plan.root, step.task)}
    found |= _digests(plan.root, step.inputs)
    if step.reads_model:
        flags = {name: value for name, value in plan.flags.items() if name in OF_THE_MODEL}
        found["model"] = _digest(plan.model) + json.dumps(flags, sort_keys=True)
    return found


def _digests(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: _digest(root / name) for name in names}


def _digest(path: Path) -> str:
    status = path.stat()
    return _hashed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _hashed(path: Path, _mtime: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache
def _code(root: Path, task: str) -> str:
    """Digest of the code that a task runs, comments and docstrings left out: they change no output."""
    parts = hashlib.sha256()
    for name in imported_files(root, [task]):
        if name not in DRAWS:
            parts.update(ast.dump(_bare(ast.parse((root / name).read_bytes()))).encode())
    return parts.hexdigest()


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if documented:
            del node.body[0]
    return tree


def run_step(plan: Plan, step: Step) -> None:
    """Runs a step in a process of its own and records what it was made from. OSError where it fails."""
    made_from = _made_from(plan, step)
    words = [*step.words, *(["--use_gpu"] if plan.use_gpu else [])]
    passed = PASSED_ON if step.reads_model else PASSED_ON[:1]
    for name in passed:
        if name in plan.flags:
            words += [f"--{name.replace('_', '-') if name == 'pretrained_model_path' else name}", plan.flags[name]]
    begun = plan.records.get(step.name, {})
    if step.resumable and begun.get("begun") == made_from:
        words.append("--resume")
    plan.records[step.name] = {"begun": made_from}
    plan.save()
    done = subprocess.run([sys.executable, *words], cwd=plan.root, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise ChildProcessError(f"{step.name} ended with exit code {done.returncode}; run this again to go on from it")
    if missing := [name for name in step.outputs if not (plan.root / name).is_file()]:
        raise FileNotFoundError(f"{step.name} ended well, but {missing[0]} is not there")
    model = _name_of(plan.model) if step.reads_model else None
    plan.records[step.name] = {"from": made_from, "outputs": _digests(plan.root, step.outputs), "model": model}
    plan.save()


def _name_of(model: Path) -> str:
    return "shipped" if model.resolve() == SHIPPED.resolve() else str(model)


def whose(plan: Plan) -> list[str]:
    """Which model the sentences and predictions came from: loud where it was not the course's."""
    makers: dict[str, list[str]] = {}
    for step in plan.steps():
        if step.reads_model:
            record = plan.records.get(step.name, {})
            known = record.get("outputs") == _digests(plan.root, step.outputs)
            makers.setdefault(record["model"] if known else "unknown", []).extend(step.outputs)
    lines = []
    for model, names in makers.items():
        if model == "shipped":
            lines += ["!" * 100, f"!! NOT from stories42M, but from the model that ships here: {', '.join(names)}"]
            lines += ["!! The course's reference figures are stories42M's. Put stories42M.pt and tokenizer.model here"]
            lines += ["!! (bash setup.sh fetches them) and run this again: what is needed is made anew.", "!" * 100]
        elif model == "unknown":
            lines.append(f"made by hand, with a model that is not recorded: {', '.join(names)}")
        else:
            lines.append(f"made with {model}: {', '.join(names)}")
    return lines
