"""The stages before a run: a seed search, then shrinking. Each starts from the best models of the one before.

The search trains many seeds briefly and continues the best (successive halving; Jamieson and Talwalkar, 2016). Every
stage has its own learning-rate schedule, so the continued seeds start again at the peak: a warm restart (Loshchilov and
Hutter, 2017). Shrinking trains the best model of the search in a larger shape and fades out one part after another.

    python addition_run.py train --trial_seeds 16 --trial_examples 1536000 --seeds 2
    python addition_run.py train --trial_seeds 16 --trial_examples 512000 --trial_rounds 4:1024000
    python addition_run.py train --shrink 6:4:20000000 6:3:4000000 --dim 6 --hidden_dim 3
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import LlamaConfig
from engine.train import run_log
from llama import Llama
from tasks import plots
from tasks.addition.batched_model import SideBySide
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import TrainingPlan, config_of, plan_run
from tasks.addition.shrink import MOST, Fading, Part, choices
from tasks.addition.testing import load_adder
from tasks.addition.workload import measure
from tasks.settings import rate

FIRST_LOOK = 512  # dev problems that say which parts are worth training without
NEAR = 0.02  # nats above the best parent's loss: within them another parent counts as equally good

Stage = tuple[AdderTraining, Sequence[Part], int]  # a run, its choices, and how many models it starts from


def plan_training(settings: AdderTraining, device: torch.device) -> TrainingPlan:
    """The run, with the stages before it if the flags ask for some, each the `trial` of the next.

    Everything is checked before training starts. Raises ValueError or OSError.
    """
    trained = load_adder(settings.shrink_from, torch.device("cpu")) if settings.shrink_from else None
    if trained and settings.trial_seeds:
        raise ValueError("--shrink_from has no use for a seed search: leave out --trial_seeds")
    steps = shrink_steps(settings, trained.config if trained else None)
    first = steps[0][0] if steps else settings
    shape = {"dim": first.dim, "hidden_dim": first.hidden_dim, "seeds": first.seeds}
    rounds = search_rounds(dataclasses.replace(settings, **shape))
    if settings.choose_by != "dev" and not (rounds or steps):
        raise ValueError("--choose_by belongs to a seed search or to shrinking: give --trial_seeds or --shrink")
    drawn_or_judged = settings.nines or settings.nines_end or settings.choose_by != "dev"
    if settings.nines_by != "count" and not drawn_or_judged:
        raise ValueError("--nines_by names the groups of --nines and of --choose_by worst_group: give one of them")
    plan, spent = None, 0
    alone = [(run, [], run.seeds) for run in (*rounds, settings)]
    stages = [*alone[:-1], *steps, alone[-1]]
    if len(stages) > 1:
        print(f"drawing the problems of {len(stages)} stages")
    for stage, parts, starts in stages:
        dev = plan.workload.dev if plan else None
        before, plan = plan, plan_run(stage, device, spent=spent, dev=dev, parts=parts)
        plan.trial, plan.starts = before, starts
        if before:  # easy problems come first only
            plan.workload.shares = dataclasses.replace(plan.workload.shares, zeros=0.0)
        elif trained:
            _fill(plan, [Start(settings.seed, SideBySide([trained]).seeds[0])])
        spent = plan.described["capacity_used"]
    assert plan is not None
    return plan


def search_rounds(settings: AdderTraining) -> list[AdderTraining]:
    """The rounds of the seed search as runs of their own. Raises ValueError if the flags contradict each other."""
    if not settings.trial_seeds:
        for name in ("trial_examples", "trial_lr", "trial_batch_size", "trial_rounds"):
            if getattr(settings, name):
                raise ValueError(f"--{name} belongs to a seed search: give --trial_seeds as well")
        return []
    peak = settings.trial_lr or settings.lr
    rounds = [(settings.trial_seeds, settings.trial_examples or 0, peak)]
    for text in settings.trial_rounds:
        numbers, at, own_peak = text.partition("@")
        seeds, examples = _numbers(numbers, "trial_rounds", "SEEDS:EXAMPLES", "4:1024000")
        rounds.append((seeds, examples, _rate(own_peak, text) if at else peak))
    sizes = [seeds for seeds, *_ in rounds] + [settings.seeds]
    if not settings.trial_examples or any(size <= after for size, after in itertools.pairwise(sizes)):
        raise ValueError(
            "--trial_seeds needs --trial_examples, and every round more seeds than the next; the last one more seeds "
            "than --seeds continues"
        )
    batch_size = settings.trial_batch_size or settings.batch_size
    return [
        _stage(settings, "trial", index, seeds=seeds, examples=examples, lr=lr, batch_size=batch_size)
        for index, (seeds, examples, lr) in enumerate(rounds, start=1)
    ]


def shrink_steps(settings: AdderTraining, trained: LlamaConfig | None = None) -> list[Stage]:
    """The largest shape and the steps to the run's, each with its choices. Raises ValueError for a shape out of reach.

    A step trains the shape before it while the parts fade. The shape of a `trained` model is the largest; it is not
    trained again.
    """
    if not settings.shrink:
        for name in ("shrink_from", "shrink_lr", "shrink_batch_size", "shrink_choices", "shrink_parents"):
            if getattr(settings, name):
                raise ValueError(f"--{name} belongs to shrinking: give --shrink as well")
        return []
    if settings.seeds > 1 or settings.plain:
        raise ValueError("--shrink ends with one model in the batched layout: leave out --seeds and --plain")
    shapes = [_numbers(text, "shrink", "WIDTH:FFN:EXAMPLES", "6:4:20000000") for text in settings.shrink]
    lr, batch_size = settings.shrink_lr or settings.lr, settings.shrink_batch_size or settings.batch_size
    steps, large, starts = [], None, 1 if trained else settings.shrink_parents or 1
    if trained:
        large = dataclasses.replace(settings, dim=trained.dim, hidden_dim=trained.ffn_dim)
        if config_of(large) != trained:
            raise ValueError(f"{settings.shrink_from} differs from the flags in more than --dim and --hidden_dim")
    for index, (dim, hidden_dim, examples) in enumerate(shapes, start=1):
        small = dataclasses.replace(settings, dim=dim, hidden_dim=hidden_dim)
        parts = choices(config_of(large), config_of(small)) if large else []
        made = starts * max(1, len(parts))
        if made > MOST:
            raise ValueError(f"--shrink would try {made:,} choices in one step: at most {MOST} can be compared")
        seeds = min(made, settings.shrink_choices or made) if parts else made
        options = {"seeds": seeds, "examples": examples, "lr": lr, "batch_size": batch_size}
        steps.append((_stage(large or small, "shrink", index, **options), parts, starts))
        large, starts = small, min(seeds, settings.shrink_parents or 1)
    if large and (large.dim, large.hidden_dim) != (settings.dim, settings.hidden_dim):
        raise ValueError("--shrink must end with the shape of the run, its --dim and --hidden_dim")
    return steps


def _numbers(text: str, flag: str, form: str, example: str) -> tuple[int, ...]:
    """The positive whole numbers of `text`, as many as `form` has. Raises ValueError."""
    words = text.split(":")
    if len(words) != form.count(":") + 1 or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"--{flag} takes {form}, as {example}, not {text!r}")
    return tuple(map(int, words))


def _rate(text: str, whole: str) -> float:
    """The learning rate after the `@` of a round. Raises ValueError."""
    try:
        return rate(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"--trial_rounds takes SEEDS:EXAMPLES@RATE, as 4:1024000@1e-2, not {whole!r}") from None


def _stage(settings: AdderTraining, kind: str, index: int, **changes) -> AdderTraining:
    """A stage as a run of its own, in the folder `trial` or `shrink` (then `trial_2`, …); it writes no data files."""
    folder = kind if index == 1 else f"{kind}_{index}"
    hard = settings.hard if changes["seeds"] == 1 else 0.0  # the pool follows one model
    return dataclasses.replace(
        settings, epochs=1, save_dir=str(Path(settings.save_dir) / folder), no_data_files=True, stop_when_perfect=False,
        nines_end=None, hard=hard, average_from=None, trial_seeds=0, trial_examples=None, trial_lr=None,
        trial_batch_size=None, trial_rounds=[], shrink=[], shrink_from=None, shrink_lr=None, shrink_batch_size=None,
        shrink_choices=None, shrink_parents=None, **changes,
    )  # fmt: skip


def run_stages(plan: TrainingPlan, stage: TrainingPlan) -> dict:
    """Trains `stage`, after the stages before it, and copies the weights of the best models into `plan`.

    A resumed run keeps its own weights. Returns the stage's results; `before` holds those of the earlier ones.
    """
    before = {"before": run_stages(stage, stage.trial)} if stage.trial else {}
    count, shape = plan.starts, f"{stage.config.dim}:{stage.config.ffn_dim}"
    goes_on = "the best continues" if count == 1 else f"the best {count} continue"
    if stage.parts:
        what = f"shrinking {shape}: a part goes in each of {len(stage.parts)} models, then {goes_on}"
    else:
        what = f"{len(stage.seeds)} seeds on {stage.examples:,} examples each, then {goes_on}"
    print(what if stage.parts else f"seed search: {what}" if len(stage.seeds) > 1 else f"training {shape}")
    stage.begin()
    progress = stage.trainer.fit()
    plots.addition_curves(stage.trainer.log.path, stage.trainer.folder / "loss_curve.png")
    last = [record for record in run_log.read(stage.trainer.log.path) if "score" in record][-1]
    losses = last.get("seed_losses", [last["held_out_loss"]])
    if stage.described["choose_by"] == "worst_group":
        losses = stage.workload.worst_group_losses(stage.trainer.model)
    accuracies = last.get("seed_accuracies", [last["accuracy"]])
    best = _smallest(losses, count)
    went_on = [stage.seeds[index] for index in best]
    for index in best:
        name = f"without {stage.parts[index]} the model" if stage.parts else f"seed {stage.seeds[index]}"
        print(f"{name} continues from dev accuracy {accuracies[index]:.4f}")
    _fill(plan, [Start(stage.seeds[index], _flat(stage, index, plan), losses[index]) for index in best])
    minutes = progress.seconds / 60 + (before["before"]["minutes"] if before else 0)  # of all stages up to this one
    results = {"seed_accuracies": accuracies, "went_on": went_on, "minutes": round(minutes, 2)}
    faded = {"faded": str(stage.parts[best[0]])} if stage.parts else {}
    return results | faded | before


@dataclass(frozen=True)
class Start:
    """A model that goes on: the seed it came from, its flat parameters, and the loss by which it was chosen."""

    seed: int
    state: Tensor
    loss: float = 0.0


@torch.no_grad()
def _fill(plan: TrainingPlan, starts: list[Start]) -> None:
    """Fills the models of `plan`, each with one of the starts; a resumed run keeps its own weights.

    With parts to fade, a model is one of the starts with one of the parts. If there are more such pairs than models,
    those of the best starts come first (those within `NEAR`), and among them those that raise the loss least.
    """
    models = plan.trainer.model.seeds
    if plan.parts:
        made = list(itertools.product(starts, plan.parts))
        if len(made) > len(models):
            worse = [start.loss > min(other.loss for other in starts) + NEAR for start, _ in made]
            keys = list(zip(worse, _losses_without(plan, made), strict=True))
            made = [made[index] for index in sorted(_smallest(keys, len(models)))]
        starts, plan.parts = [start for start, _ in made], [part for _, part in made]
    plan.seeds = [start.seed for start in starts]
    if not plan.resumed:
        for parameters, start in zip(models, starts, strict=True):
            parameters.copy_(start.state)


@torch.no_grad()
def _losses_without(plan: TrainingPlan, made: list[tuple[Start, Part]]) -> list[float]:
    """Dev loss of every model at once without its part, on the first of the dev problems."""
    model = SideBySide([Llama(plan.config) for _ in made]).to(made[0][0].state.device)
    for parameters, (start, _) in zip(model.seeds, made, strict=True):
        parameters.copy_(start.state)
    Fading(list(model.seeds), [part for _, part in made], model.shapes)(1, 1)
    return measure(model, plan.workload.dev.at(slice(FIRST_LOOK)))[0]


def _smallest(losses: Sequence, count: int) -> list[int]:
    """The indices of the `count` smallest losses, the smallest first."""
    return sorted(range(len(losses)), key=losses.__getitem__)[:count]


def _flat(stage: TrainingPlan, index: int, plan: TrainingPlan) -> Tensor:
    """The flat parameters of a stage's model in the shape of `plan`, without the part that faded out of it."""
    if not stage.parts:
        return stage.trainer.model.seeds[index]
    model = Llama(plan.config)
    model.load_state_dict(stage.parts[index].removed(stage.trainer.model.state_of(index)))
    return SideBySide([model]).seeds[0].to(stage.trainer.device)
