"""From settings to a training run of adders: model, number of examples, problems, trainer.

    python addition_run.py train --help
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from engine.io.files import check_writable
from engine.io.locks import hold_folder
from engine.train import distributed
from engine.train.run_log import RunLog
from engine.train.state import Progress
from engine.train.trainer import Trainer, TrainSettings
from llama import Llama
from optimizer import AdamW
from tasks.addition import native_step
from tasks.addition.batched_model import SideBySide
from tasks.addition.flags import AdderTraining
from tasks.addition.flat_muon import FlatMuon
from tasks.addition.problems import pair_number, read_problems, sample_problems
from tasks.addition.shrink import Fading, Part
from tasks.addition.workload import AdditionWorkload, Model, Problems, Shares
from tasks.settings import MachineSettings, input_file, shared_fields
from utils import set_up

TEST_FILES = ("data/addition_test.txt", "data/course_addition_test.txt")  # ours, and the course's if setup fetched it
NATIVE_CHUNK = 4096
CHUNK, CHUNK_OF_SEEDS = 256, 384  # problems (over all seeds) whose activations fit in the CPU cache
WORTH_COMPILING = 500_000  # examples (over all seeds) from which the minute of compilation pays
RECORDED = (  # settings that training_config.json repeats after the course's fields
    "optimizer", "lr", "beta2", "weight_decay", "max_grad_norm", "batch_size", "seed", "seeds", "plain", "capacity",
    "stop_when_perfect", "init_std", "nines", "nines_end", "nines_by", "zeros", "zeros_until", "hard", "average_from",
    "trial_seeds", "trial_examples", "trial_lr", "trial_batch_size", "trial_rounds", "choose_by", "shrink",
    "shrink_from", "shrink_lr", "shrink_batch_size", "shrink_choices", "shrink_parents",
)  # fmt: skip


@dataclass
class TrainingPlan:
    """A run ready to start; `seeds` are the seeds of the models that are trained in one batch."""

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
    parts: list[Part]
    trial: TrainingPlan | None = None
    starts: int = 1  # models of the trial that it starts from

    def begin(self) -> None:
        """Compiles the step, if that pays, looks for hard problems if they are asked for, and lets the parts fade."""
        if self.compile_step:
            compile_training(self.trainer, self.workload)
        if not self.resumed:
            self.workload.look_first(self.trainer.model)
        if self.parts:
            model = self.trainer.model
            self.workload.after_update = Fading(list(model.seeds), self.parts, model.shapes)

    def examples_after(self, progress: Progress) -> int:
        """Number of examples seen at this point of the run."""
        distinct = len(self.workload.training)
        of_this_epoch = min(progress.place * self.workload.chunk, distinct)
        return min(progress.epoch * distinct + of_this_epoch, self.examples)


def device_of(settings: MachineSettings) -> torch.device:
    """The device, seeded; without a GPU `--use_gpu` falls back to the CPU, as in the course, and says so."""
    use_gpu = settings.use_gpu and torch.cuda.is_available()
    if settings.use_gpu and not use_gpu:
        print("--use_gpu: no CUDA device is available here; running on the CPU")
    return set_up(settings.seed, use_gpu, settings.threads)


def plan_run(
    settings: AdderTraining, device: torch.device, spent: int = 0, dev: Problems | None = None,
    parts: Sequence[Part] = (),
) -> TrainingPlan:
    """Checks the settings, draws the problems, builds the model and the trainer. Raises ValueError or OSError.

    `spent` is the capacity that earlier stages used; `dev` replaces the drawn dev problems; `parts` fade, one of each
    model.
    """  # fmt: skip
    config = config_of(settings)
    model = build_model(config, settings, device)
    parameters = sum(prod(shape) for shape in parameter_shapes(config).values())
    distinct, examples = allowed_examples(settings, parameters, spent)
    chunk = chunk_of(settings, device)
    folder = Path(settings.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "last.pt")
    hold_folder(folder)
    training, dev, files = draw_problems(settings, distinct, dev)
    examples = min(examples, settings.epochs * len(training))
    workload = AdditionWorkload(
        model, training, dev, chunk, settings.epochs, examples, settings.seed, settings.stop_when_perfect,
        Shares(**{field.name: getattr(settings, field.name) for field in fields(Shares)}), settings.average_from,
    )  # fmt: skip
    described = describe(settings, parameters, len(training), len(dev), examples, spent)
    trainer = build_trainer(model, workload, settings, device, identity_of(config, described, training, dev))
    resumed = settings.resume and trainer.state_path.exists()
    if resumed:
        trainer.resume()
    long_enough = examples * settings.seeds >= WORTH_COMPILING and trainer.progress.epoch < settings.epochs
    compile_step = long_enough and not (settings.plain or settings.no_compile)
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    return TrainingPlan(
        config, parameters, examples, workload, trainer, described, files, compile_step, seeds, resumed, list(parts)
    )


def config_of(settings: AdderTraining) -> LlamaConfig:
    """The course's configuration with the changes that the settings ask for."""
    shape = shared_fields(settings, LlamaConfig)
    return LlamaConfig(vocab_size=13, max_seq_len=20, multiple_of=32, head_size=settings.head_dim, **shape)


def build_model(config: LlamaConfig, settings: AdderTraining, device: torch.device) -> Model:
    """Freshly initialised models of all seeds in one batched model; with `--plain` one ordinary `Llama`."""
    if settings.plain and settings.seeds > 1:
        raise ValueError("--plain trains one model: leave out --seeds")
    if settings.hard and settings.seeds > 1:
        raise ValueError("--hard follows one model: leave out --seeds")
    if settings.plain and settings.optimizer != "adamw":
        raise ValueError("--plain trains with AdamW: leave out --optimizer")
    models = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        torch.manual_seed(seed)
        model = Llama(config)
        if settings.init_std is not None:
            model.init_weights(settings.init_std)
        models.append(model.to(device))
    return models[0] if settings.plain else SideBySide(models)


def allowed_examples(settings: AdderTraining, parameters: int, spent: int) -> tuple[int, int]:
    """Distinct training problems (the course's formula, rounded up) and examples seen, within the capacity.

    `spent` is the capacity that earlier stages used.
    """
    most = max(0, settings.capacity - spent) // (6 * parameters)
    if settings.examples is not None and settings.examples > most:
        raise ValueError(
            f"--examples {settings.examples:,} is too many: a capacity of {settings.capacity:,} allows {most:,} of a "
            f"model with {parameters:,} parameters"
        )
    seen = settings.examples or most
    if seen < settings.batch_size:
        raise ValueError(
            f"a capacity of {settings.capacity:,} allows {most:,} examples of a model with {parameters:,} parameters: "
            f"less than one batch of {settings.batch_size:,}"
        )
    return ceil(seen / settings.epochs), seen


def chunk_of(settings: AdderTraining, device: torch.device) -> int:
    """Problems per forward pass: `--chunk`, or the largest divisor of the batch that fits in the CPU cache."""
    if settings.chunk is not None and settings.batch_size % settings.chunk:
        raise ValueError(f"--chunk {settings.chunk} does not divide the batch of {settings.batch_size}")
    if native_step.supported(config_of(settings), device) and not (settings.plain or settings.no_compile):
        most = NATIVE_CHUNK  # the C++ step keeps eight problems in the cache, whatever the batch
    else:
        most = min(CHUNK, max(16, CHUNK_OF_SEEDS // settings.seeds))
    return settings.chunk or max(size for size in range(1, most + 1) if settings.batch_size % size == 0)


def draw_problems(
    settings: AdderTraining, distinct: int, dev: Problems | None = None
) -> tuple[Problems, Problems, list[tuple[Path, Problems]]]:
    """Training and dev problems, disjoint from each other and from the excluded ones, and the files to write.

    An existing file that is named on the command line is read; the others are drawn and written. `dev` replaces the dev
    problems.
    """
    excluded = np.empty(0, dtype=np.int64)
    for path in excluded_files(settings):
        excluded = np.union1d(excluded, pair_number(*read_problems(path)))
    files: dict[str, tuple[np.ndarray, np.ndarray] | None] = {"train_file": None, "val_file": None}
    for name in files:
        path = Path(getattr(settings, name))
        if name in settings.given and path.exists():
            files[name] = operands = read_problems(path)
            numbers = pair_number(*operands)
            if np.isin(numbers, excluded).any():
                raise ValueError(f"{path} has problems that are excluded (of a test, --exclude or --train_file)")
            excluded = np.union1d(excluded, numbers)
    if dev is not None:
        excluded = np.union1d(excluded, dev.numbers())
    training = tuple(numbers[:distinct] for numbers in files["train_file"]) if files["train_file"] else None
    train_size = 0 if training else distinct
    dev_size = 0 if files["val_file"] or dev else settings.dev_examples or ceil(0.2 * distinct)
    a, b = _drawn(train_size + dev_size, settings.seed, excluded)
    training = Problems.of(*(training or (a[:train_size], b[:train_size])))
    dev = dev or Problems.of(*(files["val_file"] or (a[train_size:], b[train_size:])))
    drawn = [(settings.train_file, training, files["train_file"]), (settings.val_file, dev, files["val_file"])]
    to_write = [(Path(path), problems) for path, problems, read in drawn if read is None and not settings.no_data_files]
    for path, _ in to_write:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    return training, dev, to_write


def excluded_files(settings: AdderTraining) -> list[str]:
    """Files whose problems are never trained on: the existing test files and those of `--exclude`."""
    return [path for path in map(input_file, TEST_FILES) if Path(path).exists()] + settings.exclude


def _drawn(n: int, seed: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        return sample_problems(n, seed, excluded)
    except ValueError as error:
        raise ValueError(f"{error}: repeat them with --epochs, or use fewer with --examples") from None


def describe(settings: AdderTraining, parameters: int, distinct: int, dev: int, examples: int, spent: int) -> dict:
    """The content of `training_config.json`, the course's fields first."""
    described = {"capacity": settings.capacity, "n_epochs": settings.epochs, "batch_size": settings.batch_size}
    described |= {"save_dir": settings.save_dir, "model_parameters": parameters, "train_samples": distinct}
    described |= {"dev_samples": dev, "examples": examples, "capacity_used": 6 * parameters * examples + spent}
    described |= {name: getattr(settings, name) for name in RECORDED}
    return described | {"excluded": [Path(path).name for path in excluded_files(settings)]}


def identity_of(config: LlamaConfig, described: dict, training: Problems, dev: Problems) -> dict:
    """What a resumed run must share: model, settings and the problems themselves, but no paths."""
    drawn = {"training": training, "dev": dev}
    digests = {name: hashlib.sha256(problems.numbers().tobytes()).hexdigest()[:16] for name, problems in drawn.items()}
    paths = ("save_dir", "excluded", "shrink_from")
    return config.to_dict() | {name: value for name, value in described.items() if name not in paths} | digests


def compile_training(trainer: Trainer, workload: AdditionWorkload) -> None:
    """Compiles the workload's step and, with Muon and undivided batches, the whole update in C++."""
    native, optimizer = workload.compile_step(trainer.model), trainer.optimizer
    undivided = distributed.size() == 1 and trainer.settings.accumulation == 1
    if native is None or not undivided or not isinstance(optimizer, FlatMuon):
        return

    def update(batches: Sequence[Tensor]) -> tuple[float, int]:
        problems, targets = workload.training, workload.count(batches[0])
        a, b = (numbers[batches[0]].long() for numbers in (problems.a, problems.b))
        return optimizer.compiled_step(native, a, b, targets), targets

    workload.compiled_update = update


def build_trainer(
    model: Model, workload: AdditionWorkload, settings: AdderTraining, device: torch.device, identity: dict
) -> Trainer:
    """The trainer. Each seed is one vector in the optimizer, and its gradient is clipped separately."""
    options = {"lr": settings.lr, "betas": (0.9, settings.beta2), "weight_decay": settings.weight_decay}
    options |= {"max_grad_norm": settings.max_grad_norm, "clip_each": not settings.plain}
    if settings.optimizer == "muon":
        optimizer = FlatMuon(model.parameters(), model.shapes, **options)
    else:
        optimizer = AdamW(model.parameters(), **options)
    if workload.hard:
        workload.hard.optimizer = optimizer
    accumulation = {"accumulation": settings.batch_size // workload.chunk}
    train_settings = TrainSettings(**shared_fields(settings, TrainSettings) | accumulation)
    folder = Path(settings.save_dir)
    log = RunLog(folder / "log.jsonl", settings.tensorboard)
    return Trainer(
        model, optimizer, workload, train_settings, folder, device, log, identity, log_every=settings.log_every
    )
