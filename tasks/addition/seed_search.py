"""Seed search: train many seeds briefly, continue the best (successive halving; Jamieson and Talwalkar, 2016).

Early accuracy tells which seeds will succeed, and a step of one model is much cheaper than a step of sixteen. Every
round has its own learning-rate schedule, so the continued seeds start again at the peak: a warm restart (Loshchilov and
Hutter, 2017).

    python addition_run.py train --trial_seeds 16 --trial_examples 1536000 --seeds 2
    python addition_run.py train --trial_seeds 16 --trial_examples 512000 --trial_rounds 4:1024000
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch

from engine.train import run_log
from tasks import plots
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import TrainingPlan, plan_run


def plan_training(settings: AdderTraining, device: torch.device) -> TrainingPlan:
    """The run, with the rounds of its seed search if the flags ask for one, each the `trial` of the next.

    Everything is checked before training starts. Raises ValueError or OSError.
    """
    rounds = search_rounds(settings)
    plan, spent = None, 0
    for index, (seeds, examples) in enumerate(rounds):
        plan = _after(plan, round_settings(settings, index, seeds, examples), device, spent)
        spent += examples
    return _after(plan, settings, device, spent)


def _after(trial: TrainingPlan | None, settings: AdderTraining, device: torch.device, spent: int) -> TrainingPlan:
    plan = plan_run(settings, device, spent=spent, dev=trial.workload.dev if trial else None)
    plan.trial = trial
    if trial:
        plan.workload.shares = dataclasses.replace(plan.workload.shares, zeros=0.0)  # easy problems come first only
    return plan


def search_rounds(settings: AdderTraining) -> list[tuple[int, int]]:
    """Seeds and examples of every round. Raises ValueError if the flags contradict each other."""
    if not settings.trial_seeds:
        for name in ("trial_examples", "trial_lr", "trial_batch_size", "trial_rounds"):
            if getattr(settings, name):
                raise ValueError(f"--{name} belongs to a seed search: give --trial_seeds as well")
        return []
    rounds = [(settings.trial_seeds, settings.trial_examples or 0), *map(_parsed, settings.trial_rounds)]
    sizes = [seeds for seeds, _ in rounds] + [settings.seeds]
    if not settings.trial_examples or any(size <= after for size, after in itertools.pairwise(sizes)):
        raise ValueError(
            "--trial_seeds needs --trial_examples, and every round more seeds than the next; the last one more seeds "
            "than --seeds continues"
        )
    return rounds


def _parsed(text: str) -> tuple[int, int]:
    seeds, colon, examples = text.partition(":")
    if not (colon and seeds.isdecimal() and examples.isdecimal() and int(seeds) and int(examples)):
        raise ValueError(f"--trial_rounds takes SEEDS:EXAMPLES, as 4:1024000, not {text!r}")
    return int(seeds), int(examples)


def round_settings(settings: AdderTraining, index: int, seeds: int, examples: int) -> AdderTraining:
    """A round as a run of its own, in the folder `trial` (then `trial_2`, …); it writes no data files."""
    folder = "trial" if index == 0 else f"trial_{index + 1}"
    return dataclasses.replace(
        settings, seeds=seeds, examples=examples, epochs=1, lr=settings.trial_lr or settings.lr,
        batch_size=settings.trial_batch_size or settings.batch_size, save_dir=str(Path(settings.save_dir) / folder),
        no_data_files=True, stop_when_perfect=False, nines_end=None, trial_seeds=0, trial_examples=None,
        trial_lr=None, trial_batch_size=None, trial_rounds=[],
    )  # fmt: skip


def search_seeds(plan: TrainingPlan, trial: TrainingPlan) -> dict:
    """Trains all seeds of `trial`, after the rounds before it, and copies the weights of the best into `plan`.

    A resumed run keeps its own weights. Returns the search's results; `before` holds those of the earlier rounds.
    """
    before = {"before": search_seeds(trial, trial.trial)} if trial.trial else {}
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
    minutes = progress.seconds / 60 + (before["before"]["minutes"] if before else 0)  # of all rounds up to this one
    return {"seed_accuracies": accuracies, "went_on": plan.seeds, "minutes": round(minutes, 2)} | before
