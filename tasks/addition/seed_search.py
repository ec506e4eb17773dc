"""Luck put first: many seeds are trained briefly, and only the best of them go on, with a schedule of their own.

A tiny adder's fate is decided early, and a step that trains one model is far shorter than one that trains sixteen:
successive halving with a single halving (Jamieson and Talwalkar, 2016). Each seed's trial has its own cosine decay,
so that what goes on begins again at the peak rate, a warm restart (Loshchilov and Hutter, 2017).

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
    """A run, with its trial if the flags ask for one; all is checked before anything is trained.

    Raises ValueError or OSError, saying why.
    """
    if not settings.trial_seeds:
        for name in ("trial_examples", "trial_lr", "trial_batch_size"):
            if getattr(settings, name) is not None:
                raise ValueError(f"--{name} is that of a trial: say how many seeds it has by --trial_seeds")
        return plan_run(settings, device)
    if settings.trial_seeds <= settings.seeds or not settings.trial_examples:
        raise ValueError("a trial of --trial_seeds needs --trial_examples, and more seeds than the --seeds that go on")
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


def hold_trial(plan: TrainingPlan) -> dict:
    """Trains the trial to its end and hands its best seeds' weights to `plan`; returns what became of it.

    A resumed run keeps the weights it has.
    """
    trial, going_on = plan.trial, len(plan.seeds)
    print(f"a trial of {len(trial.seeds)} seeds first, {trial.examples:,} examples; the best {going_on} go on")
    trial.begin()
    progress = trial.trainer.fit()
    plots.addition_curves(trial.trainer.log.path, trial.trainer.folder / "loss_curve.png")
    last = [record for record in run_log.read(trial.trainer.log.path) if "score" in record][-1]
    losses, accuracies = last["seed_losses"], last["seed_accuracies"]
    best = sorted(range(len(losses)), key=losses.__getitem__)[:going_on]
    plan.seeds = [trial.seeds[place] for place in best]
    print("; ".join(f"seed {trial.seeds[place]} goes on from dev accuracy {accuracies[place]:.4f}" for place in best))
    if not plan.resumed:
        with torch.no_grad():
            for mine, place in zip(plan.trainer.model.seeds, best, strict=True):
                mine.copy_(trial.trainer.model.seeds[place])
    return {"seed_accuracies": accuracies, "went_on": plan.seeds, "minutes": round(progress.seconds / 60, 2)}
