"""`addition_run.py test` and `run_llama.py --option addition`: an adder's answers, counted and written.

    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth
    python run_llama.py --option addition --prompt "1234+5678="
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import as_written, check_writable, read_json_object, write_json
from llama import Llama
from tasks import provenance
from tasks.addition.flags import TEST_FILE, AdderTest, AdditionSettings
from tasks.addition.plan import device_of
from tasks.addition.problems import OPERANDS, read_problems
from tasks.addition.testing import answers, breakdown, exhaustive, is_right, load_adder, parse_prompt
from tasks.addition.workload import Problems
from tasks.cli import Work
from tasks.settings import ROOT, input_file
from tasks.shipped import is_shipped

SHOWN = 20  # wrong answers printed; the summary lists all
SUMMARY = "experiment_summary.json"
OF_TRAINING = ("model_config.json", "training_config.json")


@dataclass(frozen=True)
class TestSet:
    """What a test asks: the problems, and the name under which the summary keeps the result."""

    name: str
    problems: Problems
    complete: bool  # the whole of the default test file

    def predictions_file(self, leads: bool) -> str:
        """`predictions.json` for the leading result; other tests write files of their own."""
        return "predictions.json" if leads else f"predictions-{self.name.replace(', first ', '-')}.json"


def prepare_test(settings: AdderTest) -> Work:
    """Checks checkpoint and problems; returns what tests. Raises ValueError or OSError."""
    device = device_of(settings)
    model, folder = load_adder(settings.checkpoint, device, **settings.unsaid()), _results_folder(settings.checkpoint)
    run = _test_set(settings)
    for name in OF_TRAINING:  # read again after the test
        _read_json(folder / name)
    summary = _read_json(folder / SUMMARY)
    if not isinstance(summary.get("results", {}), dict):
        raise ValueError(f"{folder / SUMMARY} is not the summary of a test: results is not a JSON object")
    for name in (SUMMARY, run.predictions_file(_leads(summary, run))):
        check_writable(folder / name)
    return lambda: _test(model, run, folder, settings)


def _results_folder(checkpoint: str) -> Path:
    """Where the checkpoint lies; the current folder for a shipped one that is tested from outside the project."""
    outside = not Path.cwd().is_relative_to(ROOT)
    return Path() if outside and is_shipped(checkpoint) else Path(checkpoint).parent


def _test_set(settings: AdderTest) -> TestSet:
    path, most = Path(settings.test_file), settings.max_test_examples
    a, b = read_problems(path)
    cut = most is not None and most < len(a)
    name = f"{path.stem}, first {most}" if cut else path.stem
    return TestSet(name, Problems.of(a[:most], b[:most]), path == Path(input_file(TEST_FILE)) and not cut)


def _leads(summary: dict, run: TestSet) -> bool:
    """Whether the result becomes the summary's main one: the default test in full, or else the first test.

    A shorter test, or one on another file, is added to `results` and replaces nothing.
    """
    return run.complete or summary.get("test_file", run.name) == run.name


def _test(model: Llama, run: TestSet, folder: Path, settings: AdderTest) -> None:
    texts = answers(model, run.problems, settings.max_gen_len)
    right = [is_right(text) for text in texts]
    wrong = [text for text, correct in zip(texts, right, strict=True) if not correct]
    accuracy = 1 - len(wrong) / len(texts)
    _show_wrong(wrong)
    print(f"Accuracy: {accuracy}\ntest length {len(texts)}")
    shares = breakdown(run.problems, right)
    for name, counts in shares.items():
        print(f"{name.replace('_', ' ')}: " + "; ".join(f"{value}: {count}" for value, count in counts.items()))
    summary = _read_json(folder / SUMMARY)
    leads = _leads(summary, run)
    summary |= {
        "model_config": _read_json(folder / OF_TRAINING[0]) or model.config.to_dict(),
        "train_config": _read_json(folder / OF_TRAINING[1]),
        "num_params": model.parameter_count(),
    }
    if leads:
        summary |= {"test_file": run.name, "accuracy": accuracy, "right_by": shares, "wrong": wrong}
    result = {"problems": len(texts), "accuracy": accuracy, "wrong": len(wrong)}
    with as_written(folder / SUMMARY):
        summary["results"] = dict(sorted((summary.get("results", {}) | {run.name: result}).items()))
    if settings.exhaustive:
        summary["exhaustive"] = _exhaustive(model, settings)
    predictions = folder / run.predictions_file(leads)
    write_json(folder / SUMMARY, summary, indent=4)
    write_json(predictions, texts, indent=4)
    provenance.record([predictions], "addition_run.py", "test", settings, settings.checkpoint)
    print(f"wrote {folder / SUMMARY} and {predictions}")


def _read_json(path: Path) -> dict:
    """The object in a JSON file; empty if there is no such file. Raises ValueError for other content."""
    return read_json_object(path) if path.exists() else {}


def _exhaustive(model: Llama, settings: AdderTest) -> dict:
    started = time.perf_counter()
    wrong = exhaustive(model, compile_forward=not settings.no_compile)
    seconds = time.perf_counter() - started
    _show_wrong(wrong)
    print(f"{OPERANDS**2 - len(wrong):,} of all {OPERANDS**2:,} problems right, in {seconds / 60:.1f} minutes")
    return {"asked": OPERANDS**2, "wrong": len(wrong), "first_wrong": wrong[:100], "seconds": round(seconds, 1)}


def _show_wrong(wrong: list[str]) -> None:
    for text in wrong[:SHOWN]:
        print(f"wrong: {text}")
    if len(wrong) > SHOWN:
        print(f"... and {len(wrong) - SHOWN:,} more")


def prepare(settings: AdditionSettings) -> Work:
    """`run_llama.py --option addition`: answers `--prompt`, or tests the best model on the test file."""
    if settings.prompt is None:
        return prepare_test(settings.as_test())
    operands = parse_prompt(settings.prompt)
    model = load_adder(settings.pretrained_model_path, device_of(settings), **settings.unsaid())
    return lambda: print(answers(model, Problems.of_pairs([operands]))[0])
