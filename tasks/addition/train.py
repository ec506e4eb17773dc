"""`addition_run.py train`: from settings to a trained adder and the files beside it.

    python addition_run.py train --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

from engine.io.files import atomic_path, write_json, write_text
from engine.train import run_log
from tasks import plots
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import TrainingPlan, device_of
from tasks.addition.problems import problem_text
from tasks.addition.stages import plan_training, run_stages
from tasks.addition.workload import save_seed
from tasks.cli import Work
from tasks.recipe import recipe_text
from tasks.shipped import is_tracked


def prepare(settings: AdderTraining) -> Work:
    """Checks everything and draws the problems; returns the training. Raises ValueError or OSError."""
    settings = _beside_shipped(settings)
    plan = plan_training(settings, device_of(settings))
    return lambda: _train(plan, settings)


def _beside_shipped(settings: AdderTraining) -> AdderTraining:
    """The settings, with `--save_dir` moved to runs/ if git tracks the model in it and `--overwrite` is not given.

    The course's command names the folder of the shipped best model: it runs as written, and replaces nothing.
    """
    folder = Path(settings.save_dir)
    if settings.overwrite or not is_tracked(folder / "best_model.pth"):
        return settings
    other = Path("runs") / folder.name
    print(f"{folder} holds a model that ships with the project: this run writes to {other} (--overwrite replaces it)")
    return dataclasses.replace(settings, save_dir=str(other))


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
    search = {"trial": run_stages(plan, plan.trial)} if plan.trial else {}
    plan.begin()
    progress = trainer.fit()
    if settings.seeds > 1:
        for index, seed in enumerate(plan.seeds):
            save_seed(trainer.model, index, folder / f"seed_{seed}.pth", seed)
    result = _result(plan, progress.seconds) | search
    write_text(folder / "recipe.toml", recipe_text("addition_run.py", "train", settings))
    write_json(folder / "model_config.json", plan.config.to_dict(), indent=4)
    write_json(folder / "training_config.json", plan.described | {"command": _command(), "result": result}, indent=4)
    plots.addition_curves(folder / "log.jsonl", folder / "loss_curve.png")
    print(f"best dev accuracy {result['accuracy']:.4f}; wrote {folder / 'best_model.pth'}")


def _result(plan: TrainingPlan, seconds: float) -> dict:
    """The run's results: the best evaluation, and every seed at the end."""
    evaluations = [record for record in run_log.read(plan.trainer.log.path) if "score" in record]
    best = max(evaluations, key=lambda record: record["score"])
    last = evaluations[-1]
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
