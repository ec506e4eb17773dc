"""Seed search: train many seeds briefly, continue the best (successive halving with one round).

Early accuracy tells which seeds will succeed, and a step of one model is much cheaper than a step of sixteen (Jamieson
and Talwalkar, 2016). The search has its own learning-rate schedule, so the continued seeds start again at the peak: a
warm restart (Loshchilov and Hutter, 2017).

    python addition_run.py train --trial_seeds 16 --trial_examples 1536000 --seeds 2
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from engine.train import run_log
from tasks import plots
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import TrainingPlan, plan_run


def plan_training(settings: AdderTraining, device: torch.device) -> TrainingPlan:
    """The run, with its seed search if the flags ask for one. Everything is checked before training starts.

    Raises ValueError or OSError.
    """
    if not settings.trial_seeds:
        for name in ("trial_examples", "trial_lr", "trial_batch_size"):
            if getattr(settings, name) is not None:
                raise ValueError(f"--{name} belongs to a seed search: give --trial_seeds as well")
        return plan_run(settings, device)
    if settings.trial_seeds <= settings.seeds or not settings.trial_examples:
        raise ValueError("--trial_seeds needs --trial_examples, and more seeds than --seeds continues")
    trial = plan_run(search_settings(settings), device)
    plan = plan_run(settings, device, spent=settings.trial_examples, dev=trial.workload.dev)
    plan.trial = trial
    return plan


def search_settings(settings: AdderTraining) -> AdderTraining:
    """The search as a run of its own, in the folder `trial`; it writes no data files."""
    return dataclasses.replace(
        settings, seeds=settings.trial_seeds, examples=settings.trial_examples, epochs=1,
        lr=settings.trial_lr or settings.lr, batch_size=settings.trial_batch_size or settings.batch_size,
        save_dir=str(Path(settings.save_dir) / "trial"), no_data_files=True, stop_when_perfect=False, trial_seeds=0,
        trial_examples=None, trial_lr=None, trial_batch_size=None,
    )  # fmt: skip


def search_seeds(plan: TrainingPlan, trial: TrainingPlan) -> dict:
    """Trains all seeds of `trial` and copies the weights of the best into `plan`; returns the search's results.

    A resumed run keeps its own weights.
    """
    count = len(plan.seeds)
    print(f"seed search: {len(trial.seeds)} seeds on {trial.examples:,} examples each, then the best {count} continue")
    trial.begin()
    progress = trial.trainer.fit()
    plots.addition_curves(trial.trainer.log.path, trial.trainer.folder / "loss_curve.png")
    last = [record for record in run_log.read(trial.trainer.log.path) if "score" in record][-1]
    losses, accuracies = last["seed_losses"], last["seed_accuracies"]
    best = sorted(range(len(losses)), key=losses.__getitem__)[:count]
    plan.seeds = [trial.seeds[index] for index in best]
    print("; ".join(f"seed {trial.seeds[index]} continues from dev accuracy {accuracies[index]:.4f}" for index in best))
    if not plan.resumed:
        with torch.no_grad():
            for parameters, index in zip(plan.trainer.model.seeds, best, strict=True):
                parameters.copy_(trial.trainer.model.seeds[index])
    return {"seed_accuracies": accuracies, "went_on": plan.seeds, "minutes": round(progress.seconds / 60, 2)}
