"""`addition_run.py test` and `run_llama.py --option addition`: an adder's answers, counted and written.

    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth
    python run_llama.py --option addition --prompt "1234+5678="
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from engine.io.files import check_writable, write_text
from llama import Llama
from tasks.addition.flags import AdderTest, AdditionSettings
from tasks.addition.plan import device_of
from tasks.addition.problems import OPERANDS, read_problems
from tasks.addition.testing import answers, breakdown, exhaustive, is_right, load_adder, parse_prompt
from tasks.addition.workload import Problems
from tasks.cli import Work

SHOWN = 20  # wrong answers printed; the summary lists all


def prepare_test(settings: AdderTest) -> Work:
    """Checks checkpoint and problems; returns what tests. Raises ValueError or OSError."""
    device = device_of(settings)
    model, folder = load_adder(settings.checkpoint, device), Path(settings.checkpoint).parent
    problems = Problems.of(*(numbers[: settings.max_test_examples] for numbers in read_problems(settings.test_file)))
    for name in ("experiment_summary.json", "predictions.json"):
        check_writable(folder / name)
    return lambda: _test(model, problems, folder, settings)


def _test(model: Llama, problems: Problems, folder: Path, settings: AdderTest) -> None:
    texts = answers(model, problems, settings.max_gen_len)
    right = [is_right(text) for text in texts]
    wrong = [text for text, good in zip(texts, right, strict=True) if not good]
    accuracy = 1 - len(wrong) / len(texts)
    _show_wrong(wrong)
    print(f"Accuracy: {accuracy}\ntest length {len(texts)}")
    parts = breakdown(problems, right)
    for name, shares in parts.items():
        print(f"{name.replace('_', ' ')}: " + "; ".join(f"{value}: {share}" for value, share in shares.items()))
    config_file = folder / "training_config.json"
    training = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    summary = {"model_config": model.config.to_dict(), "train_config": training}
    summary |= {"num_params": model.parameter_count(), "accuracy": accuracy, "right_by": parts, "wrong": wrong}
    if settings.exhaustive:
        summary["exhaustive"] = _exhaustive(model, settings)
    _write_json(folder / "experiment_summary.json", summary)
    _write_json(folder / "predictions.json", texts)
    print(f"wrote {folder / 'experiment_summary.json'} and {folder / 'predictions.json'}")


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


def _write_json(path: Path, content: dict | list) -> None:
    write_text(path, json.dumps(content, indent=4) + "\n")


def prepare(settings: AdditionSettings) -> Work:
    """`run_llama.py --option addition`: answers `--prompt`, or tests the best model on the test file."""
    if settings.prompt is None:
        return prepare_test(settings.as_test())
    operands = parse_prompt(settings.prompt)
    model = load_adder(settings.pretrained_model_path, device_of(settings))
    problem = Problems.of(*torch.tensor([operands]).T.numpy())
    return lambda: print(answers(model, problem)[0])
