"""Addition, the course's pretraining task: trains a Llama that adds four-digit numbers, and tests it.

    python addition_run.py train --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10
    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.io.files import atomic_path, check_writable, write_text
from engine.train import run_log
from llama import Llama
from tasks import plots
from tasks.addition.flags import parse_args
from tasks.addition.plan import TrainingPlan
from tasks.addition.problems import OPERANDS, problem_text, read_problems
from tasks.addition.seed_search import hold_trial, plan_training
from tasks.addition.testing import answers, breakdown, exhaustive, is_right, load_adder, parse_prompt
from tasks.addition.workload import Problems, evaluate_loss, save_seed, train_one_epoch
from tasks.cli import carry_out
from utils import set_up

__all__ = ["evaluate_loss", "main", "prepare", "train_one_epoch"]
BEST = "addition_models/best_model/best_model.pth"
TEST_FILE = "data/addition_test.txt"
SHOWN = 20  # wrong answers printed; the summary lists all


def device_of(args: argparse.Namespace) -> torch.device:
    """The device, seeded; without a GPU `--use_gpu` falls back to the CPU, as in the course, and says so."""
    use_gpu = args.use_gpu and torch.cuda.is_available()
    if args.use_gpu and not use_gpu:
        print("--use_gpu: no CUDA device is available here; running on the CPU")
    return set_up(args.seed, use_gpu, args.threads)


def prepare_train(args: argparse.Namespace) -> Callable[[], None]:
    """Checks everything and draws the problems; returns what trains. Raises ValueError or OSError."""
    plan = plan_training(args, device_of(args))
    return lambda: _train(plan, args)


def _train(plan: TrainingPlan, args: argparse.Namespace) -> None:
    folder, trainer = plan.trainer.folder, plan.trainer
    for path, problems in plan.files_to_write:
        with atomic_path(path) as temporary:
            temporary.write_bytes(problem_text(problems.a.numpy().astype("int64"), problems.b.numpy().astype("int64")))
        print(f"{len(problems)} data points saved to {path}")
    print(f"model parameters are {plan.parameters}")
    print(
        f"{plan.examples:,} examples, {len(plan.workload.training):,} of them distinct; capacity "
        f"{plan.described['capacity_used']:,} of {args.capacity:,}"
    )
    of_trial = {"trial": hold_trial(plan)} if plan.trial else {}
    plan.begin()
    progress = trainer.fit()
    if args.seeds > 1:
        for place, seed in enumerate(plan.seeds):
            save_seed(trainer.model, place, folder / f"seed_{seed}.pth")
    result = _result(plan, progress.seconds) | of_trial
    _write_json(folder / "model_config.json", plan.config.to_dict())
    _write_json(folder / "training_config.json", plan.described | {"command": _command(), "result": result})
    plots.addition_curves(folder / "log.jsonl", folder / "loss_curve.png")
    print(f"best dev accuracy {result['accuracy']:.4f}; wrote {folder / 'best_model.pth'}")


def _result(plan: TrainingPlan, seconds: float) -> dict:
    """What became of the run: the best measurement, and every seed at the end."""
    measured = [record for record in run_log.read(plan.trainer.log.path) if "score" in record]
    best = max(measured, key=lambda record: record["score"])
    last = measured[-1]
    return {
        "step": best["step"],
        "dev_loss": best["held_out_loss"],
        "accuracy": best["accuracy"],
        "best_seed": plan.seeds[best["best_seed"]],
        "seed_accuracies_at_the_end": last.get("seed_accuracies", [last["accuracy"]]),
        "examples_seen": plan.examples_after(plan.trainer.progress),
        "minutes": round(seconds / 60, 2),
    }


def _command() -> str:
    return "python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _write_json(path: Path, content: dict | list) -> None:
    write_text(path, json.dumps(content, indent=4) + "\n")


def prepare_test(args: argparse.Namespace) -> Callable[[], None]:
    """Checks checkpoint and problems; returns what tests. Raises ValueError or OSError."""
    device = device_of(args)
    model, folder = load_adder(args.checkpoint, device), Path(args.checkpoint).parent
    problems = Problems.of(*(numbers[: args.max_test_examples] for numbers in read_problems(args.test_file)))
    for name in ("experiment_summary.json", "predictions.json"):
        check_writable(folder / name)
    return lambda: _test(model, problems, folder, args)


def _test(model: Llama, problems: Problems, folder: Path, args: argparse.Namespace) -> None:
    texts = answers(model, problems, args.max_gen_len)
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
    if args.exhaustive:
        summary["exhaustive"] = _exhaustive(model, args)
    _write_json(folder / "experiment_summary.json", summary)
    _write_json(folder / "predictions.json", texts)
    print(f"wrote {folder / 'experiment_summary.json'} and {folder / 'predictions.json'}")


def _exhaustive(model: Llama, args: argparse.Namespace) -> dict:
    started = time.perf_counter()
    wrong = exhaustive(model, compile_forward=not args.no_compile)
    seconds = time.perf_counter() - started
    _show_wrong(wrong)
    print(f"{OPERANDS**2 - len(wrong):,} of all {OPERANDS**2:,} problems right, in {seconds / 60:.1f} minutes")
    return {"asked": OPERANDS**2, "wrong": len(wrong), "first_wrong": wrong[:100], "seconds": round(seconds, 1)}


def _show_wrong(wrong: list[str]) -> None:
    for text in wrong[:SHOWN]:
        print(f"wrong: {text}")
    if len(wrong) > SHOWN:
        print(f"... and {len(wrong) - SHOWN:,} more")


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """`run_llama.py --option addition`: answers `--prompt`, or tests the best model on the test file."""
    named = "pretrained_model_path" in args.given
    args.checkpoint = args.pretrained_model_path if named else BEST
    if args.prompt is None:
        args.test_file = args.test if "test" in args.given else TEST_FILE
        args.max_gen_len, args.max_test_examples, args.exhaustive, args.no_compile = 10, None, False, False
        return prepare_test(args)
    problem = parse_prompt(args.prompt)
    model = load_adder(args.checkpoint, device_of(args))
    asked = Problems.of(*torch.tensor([problem]).T.numpy())
    return lambda: print(answers(model, asked)[0])


def main(argv: list[str] | None = None) -> int:
    """Runs `train` or `test`; see `cli.carry_out` for how it ends."""
    args = parse_args(argv)
    return carry_out("addition_run.py", lambda: {"train": prepare_train, "test": prepare_test}[args.command](args))


if __name__ == "__main__":
    sys.exit(main())
