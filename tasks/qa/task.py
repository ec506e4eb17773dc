"""`--task qa`: trains a language model to answer prompts, or lets one answer them as it is.

    python run_llama.py --recipe recipes/qa.toml
    python run_llama.py --option prompt --task qa

The best model is a language model like any other: `--option generate --pretrained-model-path runs/RUN/best.pt
--prompt "…"` answers a prompt and stops. Epochs are compared by token F1 on the dev set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.io.checkpoint import read_checkpoint, save_checkpoint
from engine.io.files import check_writable, sha256_of, write_text
from engine.io.locks import hold_folder
from engine.train import distributed
from engine.train.losses import cross_entropy
from engine.train.run_log import RunLog
from engine.train.state import Progress
from engine.train.trainer import Trainer, TrainSettings
from llama import Llama, from_checkpoint
from optimizer import AdamW, decay_groups
from tasks import plots
from tasks.pretrained import load_model
from tasks.qa.answers import Answers, answer, answer_loss, on_targets, report, scores
from tasks.qa.data import AnswerBatches, Questions, read_questions, tokenise
from tasks.qa.flags import AnswerSettings, TuneSettings
from tasks.recipe import recipe_text
from tasks.run_folders import data_set_name, variant_suffix
from tasks.settings import shared_fields
from tokenizer import AnyTokenizer
from utils import DTYPES, autocast, check_compiler, set_up

IDENTITY_FLAGS = ("option", "task", "lr", "batch_size", "weight_decay", "max_grad_norm", "max_new_tokens", "seed")
STALE_FILES = ("last.pt", "best.pt")  # of an earlier run in the same folder


@dataclass(frozen=True)
class Exercise:
    """What one command works with: settings, the files' questions by split, model, tokenizer and device."""

    settings: AnswerSettings | TuneSettings
    questions: dict[str, Questions]
    model: Llama
    tokenizer: AnyTokenizer
    model_path: Path
    device: torch.device

    def batches(self, split: str, seed: int = 0) -> AnswerBatches:
        """The batches of "train", "dev" or "test"."""
        return AnswerBatches(self.questions[split], self.settings.batch_size, self.tokenizer.pad_id, seed)

    def answer(self, model: Llama, split: str) -> Answers:
        """The model's answers to a split."""
        settings = self.settings
        return answer(model, self.questions[split], self.tokenizer, settings.batch_size, settings.max_new_tokens)

    def report(self, model: Llama, folder: Path) -> None:
        """Answers dev and test, and writes and prints the results; with several processes, the first one does."""
        splits = [split for split in ("dev", "test") if split in self.questions]
        with autocast(self.device, DTYPES[self.settings.dtype]):
            answers = {split: (self.questions[split], self.answer(model, split)) for split in splits}
            losses = {split: answer_loss(model, self.batches(split)) for split in splits}
        if distributed.is_first():
            report(answers, losses, folder, self.settings, self.model_path)


class QaWorkload:
    """Answers for the trainer: the loss on their tokens only; the best epoch by token F1 on the dev set."""

    def __init__(self, exercise: Exercise, hidden_states: Callable[[Tensor], Tensor]):
        self.exercise, self.hidden_states = exercise, hidden_states
        self.training, self.dev = exercise.batches("train", exercise.settings.seed), exercise.batches("dev")
        self.batches_per_epoch, self.epoch, self.count = (
            self.training.batches_per_epoch, self.training.epoch, self.training.count
        )  # fmt: skip

    def loss(self, model: Llama, batch: np.ndarray) -> Tensor:
        """Summed cross-entropy of the answers' tokens, in nats."""
        hidden, targets = on_targets(self.hidden_states, self.training, batch, model.device)
        return cross_entropy(hidden, model.output.weight, targets)

    def evaluate(self, model: Llama) -> dict[str, float]:
        """Loss per token of the dev answers (nats), exact match, and token F1, which is the score."""
        figures = scores(self.dev.questions, self.exercise.answer(model, "dev"))
        measured = {f"dev_{name}": value for name, value in figures.items()}
        return {"held_out_loss": answer_loss(model, self.dev)} | measured | {"score": figures["f1"]}

    def save_best(self, model: Llama, path: Path) -> None:
        """Writes the model in the project's format, with its tokenizer's name."""
        save_checkpoint(path, model.config, model.state_dict(), Path(self.exercise.tokenizer.model_path))


def prepare_answers(settings: AnswerSettings) -> Callable[[], None]:
    """`--option prompt --task qa`: checks and loads everything; returns the work. Raises ValueError or OSError."""
    exercise = _load(settings, ("dev", "test"))
    folder = Path(settings.save_dir) / f"prompt-{data_set_name(settings.dev)}{variant_suffix(settings, {})}"
    folder.mkdir(exist_ok=True)
    return lambda: exercise.report(exercise.model, folder)


def prepare(settings: TuneSettings) -> Callable[[], None]:
    """`--option finetune --task qa`: checks and loads everything; returns the work. Raises ValueError or OSError."""
    exercise = _load(settings, ("train", "dev", "test"))
    if settings.compile:
        check_compiler(exercise.device)
    name = f"finetune-{data_set_name(settings.train)}-{settings.lr:g}-{settings.epochs}-{settings.seed}"
    folder = Path(settings.save_dir) / (name + variant_suffix(settings, {}))
    folder.mkdir(exist_ok=True)
    if distributed.is_first():
        hold_folder(folder)
    trainer = _trainer(exercise, settings, folder)
    if settings.resume and trainer.state_path.exists():
        trainer.resume()
    return lambda: _train(exercise, trainer, settings)


def _load(settings: AnswerSettings | TuneSettings, splits: tuple[str, ...]) -> Exercise:
    """Reads the data, then the model, so that bad data is reported first."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    questions = {split: read_questions(path) for split in splits if (path := getattr(settings, split)) is not None}
    Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
    for target in (settings.dev_out, settings.test_out):
        if target is not None:
            check_writable(target)
    model, tokenizer, path = load_model(settings, device)
    for each in questions.values():
        tokenise(each, tokenizer, model.config.max_seq_len)
        print(f"load {len(each)} data from {each.path}")
        if longer := sum(len(ids) > settings.max_new_tokens for ids in each.answer_ids):
            limit = f"--max_new_tokens {settings.max_new_tokens}"
            print(f"{longer} answers of {each.path} are longer than {limit}: the model cannot give them in full")
    return Exercise(settings, questions, model, tokenizer, path, device)


def _trainer(exercise: Exercise, settings: TuneSettings, folder: Path) -> Trainer:
    model = exercise.model
    hidden_states = torch.compile(model.hidden_states, dynamic=True) if settings.compile else model.hidden_states
    how = TrainSettings(**shared_fields(settings, TrainSettings))
    groups = decay_groups(model, settings.weight_decay)
    optimizer = AdamW(groups, lr=settings.lr, max_grad_norm=settings.max_grad_norm)
    log = RunLog(folder / "log.jsonl", settings.tensorboard)
    workload, identity = QaWorkload(exercise, hidden_states), _identity(exercise)
    return Trainer(model, optimizer, workload, how, folder, exercise.device, log, identity, _epoch_line)


def _identity(exercise: Exercise) -> dict[str, Any]:
    """Model, data (by content) and settings that a resumed run must share."""
    files = {"model": exercise.model_path} | {split: exercise.questions[split].path for split in ("train", "dev")}
    digests = {name: sha256_of(path)[:16] for name, path in files.items()}
    flags = {name: getattr(exercise.settings, name) for name in IDENTITY_FLAGS}
    return exercise.model.config.to_dict() | digests | flags


def _epoch_line(progress: Progress, figures: dict[str, float]) -> str:
    names = {"held_out_loss": "dev loss", "dev_em": "dev exact match", "dev_f1": "dev F1"}
    return f"step {progress.step}: " + ", ".join(f"{shown} :: {figures[name]:.3f}" for name, shown in names.items())


def _train(exercise: Exercise, trainer: Trainer, settings: TuneSettings) -> None:
    folder = trainer.folder
    if distributed.is_first():
        if not trainer.saved:
            if settings.resume:
                print(f"nothing to resume in {folder}: a new run begins")
            for name in STALE_FILES:
                (folder / name).unlink(missing_ok=True)
        write_text(folder / "recipe.toml", recipe_text("run_llama.py", "finetune", settings))
    trainer.fit()
    if distributed.is_first():
        plots.training_curves(folder / "log.jsonl", folder / "loss_curve.png")
    best = from_checkpoint(read_checkpoint(trainer.best_path)).to(exercise.device)
    print(f"load model from {trainer.best_path}")
    exercise.report(best, folder)
