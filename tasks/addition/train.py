"""`addition_run.py train`: from settings to a trained adder and the files beside it.

    python addition_run.py train --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from engine.io.files import atomic_path, write_text
from engine.train import run_log
from tasks import plots
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import TrainingPlan, device_of
from tasks.addition.problems import problem_text
from tasks.addition.seed_search import hold_trial, plan_training
from tasks.addition.workload import save_seed
from tasks.cli import Work


def prepare(settings: AdderTraining) -> Work:
    """Checks everything and draws the problems; returns what trains. Raises ValueError or OSError."""
    plan = plan_training(settings, device_of(settings))
    return lambda: _train(plan, settings)


def _train(plan: TrainingPlan, settings: AdderTraining) -> None:
    folder, trainer = plan.trainer.folder, plan.trainer
    for path, problems in plan.files_to_write:
        with atomic_path(path) as temporary:
            temporary.write_bytes(problem_text(problems.a.numpy().astype("int64"), problems.b.numpy().astype("int64")))
        print(f"{len(problems)} data points saved to {path}")
    print(f"model parameters are {plan.parameters}")
    print(
        f"{plan.examples:,} examples, {len(plan.workload.training):,} of them distinct; capacity "
        f"{plan.described['capacity_used']:,} of {settings.capacity:,}"
    )
    of_trial = {"trial": hold_trial(plan)} if plan.trial else {}
    plan.begin()
    progress = trainer.fit()
    if settings.seeds > 1:
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
