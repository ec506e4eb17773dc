"""From flags to a training run of adders: the model, what the capacity allows, the problems, the trainer.

    python addition_run.py train --help
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from engine.io.files import check_writable
from engine.train.run_log import RunLog
from engine.train.trainer import Progress, Trainer, TrainSettings
from llama import Llama
from optimizer import AdamW
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import pair_number, read_problems, sample_problems
from tasks.addition.workload import AdditionWorkload, Model, Problems

TEST_FILES = ("data/addition_test.txt", "data/course_addition_test.txt")  # ours, and the course's where setup has it
CHUNK, CHUNK_OF_SEEDS = 256, 384  # activations of more problems (of all seeds) leave the processor's cache
WORTH_COMPILING = 500_000  # examples (of all seeds) that repay the minute the compiler takes
RUN_FLAGS = (
    "lr", "beta2", "weight_decay", "max_grad_norm", "batch_size", "seed", "seeds", "plain", "capacity",
    "stop_when_perfect", "init_std", "nines", "trial_seeds", "trial_examples", "trial_lr", "trial_batch_size",
)  # fmt: skip


@dataclass
class TrainingPlan:
    """A run that only has to begin; `seeds` are the numbers of the models that it trains side by side."""

    config: LlamaConfig
    parameters: int
    examples: int
    workload: AdditionWorkload
    trainer: Trainer
    described: dict
    files_to_write: list[tuple[Path, Problems]]
    compile_step: bool
    seeds: list[int]
    resumed: bool
    trial: TrainingPlan | None = None

    def begin(self) -> None:
        """Clears the log of an earlier run, and compiles the step."""
        if not self.resumed:
            self.trainer.log.path.unlink(missing_ok=True)
        if self.compile_step:
            self.workload.compile_step(self.trainer.model)

    def examples_after(self, progress: Progress) -> int:
        """How many examples a run that stands here has seen."""
        distinct = len(self.workload.training)
        of_this_epoch = min(progress.place * self.workload.chunk, distinct)
        return min(progress.epoch * distinct + of_this_epoch, self.examples)


def plan_run(
    args: argparse.Namespace, device: torch.device, spent: int = 0, dev: Problems | None = None
) -> TrainingPlan:
    """Checks the flags, draws the problems, builds the model. Raises ValueError or OSError, saying why.

    `spent` examples count towards the capacity as seen before; `dev` are the dev problems, in place of new ones.
    """
    config = config_of(args)
    model = build_model(config, args, device)
    parameters = sum(prod(shape) for shape in parameter_shapes(config).values())
    distinct, examples = allowed_examples(args, parameters, spent)
    chunk = chunk_of(args)
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "last.pt")
    training, dev, files = draw_problems(args, distinct, dev)
    examples = min(examples, args.epochs * len(training))
    workload = AdditionWorkload(
        model, training, dev, chunk, args.epochs, examples, args.seed, args.stop_when_perfect, args.nines
    )
    described = describe(args, parameters, len(training), len(dev), examples, spent)
    trainer = build_trainer(model, workload, args, device, config.to_dict() | described)
    resumed = args.resume and trainer.state_path.exists()
    if resumed:
        trainer.resume()
    worth = examples * args.seeds >= WORTH_COMPILING and trainer.progress.epoch < args.epochs
    compile_step = worth and not (args.plain or args.no_compile)
    seeds = list(range(args.seed, args.seed + args.seeds))
    return TrainingPlan(config, parameters, examples, workload, trainer, described, files, compile_step, seeds, resumed)


def config_of(args: argparse.Namespace) -> LlamaConfig:
    """The course's configuration, with what the flags change."""
    return LlamaConfig(
        vocab_size=13, dim=args.dim, n_layers=args.n_layers, n_heads=args.n_heads, n_kv_heads=args.n_kv_heads,
        max_seq_len=20, multiple_of=32, hidden_dim=args.hidden_dim, head_size=args.head_dim,
        rope_theta=args.rope_theta, norm_type=args.norm_type,
    )  # fmt: skip


def build_model(config: LlamaConfig, args: argparse.Namespace, device: torch.device) -> Model:
    """Fresh models of the seeds, side by side; with `--plain` one shared model as it is."""
    if args.plain and args.seeds > 1:
        raise ValueError("--plain trains one model: leave out --seeds")
    models = []
    for seed in range(args.seed, args.seed + args.seeds):
        torch.manual_seed(seed)
        model = Llama(config)
        if args.init_std is not None:
            model.init_weights(args.init_std)
        models.append(model.to(device))
    return models[0] if args.plain else SideBySide(models)


def allowed_examples(args: argparse.Namespace, parameters: int, spent: int) -> tuple[int, int]:
    """Distinct training problems (the course's formula, rounded up), and examples seen: never more than allowed.

    `spent` of what the capacity allows have been seen before.
    """
    most = args.capacity // (6 * parameters) - spent
    if args.examples is not None and args.examples > most:
        raise ValueError(
            f"--examples {args.examples:,} of a model with {parameters:,} parameters are more than the {most:,} that "
            f"a capacity of {args.capacity:,} allows"
        )
    seen = args.examples or most
    if seen < args.batch_size:
        raise ValueError(
            f"a capacity of {args.capacity:,} allows {most:,} examples of a model with {parameters:,} parameters: "
            f"less than one batch of {args.batch_size:,}"
        )
    return ceil(seen / args.epochs), seen


def chunk_of(args: argparse.Namespace) -> int:
    """Problems a forward pass: as given, else the largest divisor of the batch that the processor's cache takes."""
    if args.chunk is not None and args.batch_size % args.chunk:
        raise ValueError(f"--chunk {args.chunk} does not divide the batch of {args.batch_size}")
    most = min(CHUNK, max(16, CHUNK_OF_SEEDS // args.seeds))
    return args.chunk or max(size for size in range(1, most + 1) if args.batch_size % size == 0)


def draw_problems(
    args: argparse.Namespace, distinct: int, dev: Problems | None = None
) -> tuple[Problems, Problems, list[tuple[Path, Problems]]]:
    """Training and dev problems, disjoint from each other and from the excluded, and the files to write them to.

    A file named on the command line that is there is read, all others are drawn and written. With `dev` these are the
    dev problems.
    """
    excluded = np.empty(0, dtype=np.int64)
    for path in excluded_files(args):
        excluded = np.union1d(excluded, pair_number(*read_problems(path)))
    files = {"train_file": None, "val_file": None}
    for name in files:
        path = Path(getattr(args, name))
        if name in args.given and path.exists():
            files[name] = read_problems(path)
            numbers = pair_number(*files[name])
            if np.isin(numbers, excluded).any():
                raise ValueError(f"{path} holds problems that are excluded, for the test or as the other file's")
            excluded = np.union1d(excluded, numbers)
    if dev is not None:
        excluded = np.union1d(excluded, dev.numbers())
    training = tuple(numbers[:distinct] for numbers in files["train_file"]) if files["train_file"] else None
    train_size = 0 if training else distinct
    dev_size = 0 if files["val_file"] or dev else args.dev_examples or ceil(0.2 * distinct)
    a, b = _drawn(train_size + dev_size, args.seed, excluded)
    training = Problems.of(*(training or (a[:train_size], b[:train_size])))
    dev = dev or Problems.of(*(files["val_file"] or (a[train_size:], b[train_size:])))
    drawn = [(args.train_file, training, files["train_file"]), (args.val_file, dev, files["val_file"])]
    to_write = [(Path(path), problems) for path, problems, read in drawn if read is None and not args.no_data_files]
    for path, _ in to_write:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    return training, dev, to_write


def excluded_files(args: argparse.Namespace) -> list[str]:
    """Files whose problems are never trained on: the tests that are there, and those that the flags name."""
    return [path for path in TEST_FILES if Path(path).exists()] + args.exclude


def _drawn(n: int, seed: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        return sample_problems(n, seed, excluded)
    except ValueError as error:
        raise ValueError(f"{error}: see the same ones more often by --epochs, or fewer by --examples") from None


def describe(args: argparse.Namespace, parameters: int, distinct: int, dev: int, examples: int, spent: int) -> dict:
    """What `training_config.json` says, the course's fields first."""
    described = {"capacity": args.capacity, "n_epochs": args.epochs, "batch_size": args.batch_size}
    described |= {"save_dir": args.save_dir, "model_parameters": parameters, "train_samples": distinct}
    described |= {"dev_samples": dev, "examples": examples, "capacity_used": 6 * parameters * (examples + spent)}
    described |= {name: getattr(args, name) for name in RUN_FLAGS}
    return described | {"excluded": [Path(path).name for path in excluded_files(args)]}


def build_trainer(
    model: Model, workload: AdditionWorkload, args: argparse.Namespace, device: torch.device, identity: dict
) -> Trainer:
    """The one trainer; a seed is one vector in the optimizer, its gradient clipped by itself."""
    optimizer = AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, args.beta2), weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm, clip_each=not args.plain,
    )  # fmt: skip
    settings = TrainSettings(
        epochs=args.epochs, schedule=args.schedule, warmup_steps=args.warmup_steps, rate_floor=args.rate_floor,
        accumulation=args.batch_size // workload.chunk, evaluate_every=args.evaluate_every, save_every=args.save_every,
    )  # fmt: skip
    folder = Path(args.save_dir)
    log = RunLog(folder / "log.jsonl")
    return Trainer(
        model, optimizer, workload, settings, folder, device, log, identity, log_every=args.log_every
    )
