"""`--option finetune` and `--option lora`: trains the model, or low-rank factors, with a classification head.

    python run_llama.py --recipe recipes/finetune_reviews.toml

A run's folder holds `best.pt` (with LoRA the adapter, and the merged model in `merged.pt`), the state to resume from,
the log, the figures, and `recipe.toml`, which repeats the run.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classifier import LlamaEmbeddingClassifier
from engine.io.files import sha256_of, write_text
from engine.io.locks import hold_folder
from engine.model.adapters import apply_adapters, check_adapters, lora_plus_groups
from engine.train import distributed
from engine.train.regularisers import matrices_of
from engine.train.run_log import RunLog
from engine.train.state import Progress, read_state
from engine.train.trainer import Trainer, TrainSettings
from lora import TARGETS, merge_lora_weights
from optimizer import AdamW, decay_groups, layer_groups
from tasks.recipe import recipe_text
from tasks.run_folders import data_set_name
from tasks.sentiment.checkpoint import ClassifierInfo, load_adapter, load_classifier, save_adapter, save_classifier
from tasks.sentiment.data import Examples, balanced
from tasks.sentiment.experiment import Experiment, load_experiment, variant_suffix, write_results
from tasks.sentiment.flags import FinetuneSettings, LoraSettings
from tasks.sentiment.report import seeds_summary
from tasks.sentiment.workload import SentimentWorkload
from tasks.settings import shared_fields
from tokenizer import vocabulary_digest
from utils import check_compiler, compile_methods, peak_memory

IDENTITY_FLAGS = ("option", "lr", "batch_size", "hidden_dropout_prob", "pooling", "no_causal_mask", "weight_decay")
IDENTITY_FLAGS += ("max_grad_norm", "max_sentence_len", "task", "dev_share", "extra_weight", "head")
IDENTITY_FLAGS += ("mixout", "r_drop", "smart", "layer_decay")
IDENTITY_FLAGS += ("train_examples", "proximal", "proximal_momentum", "ema", "average")
LORA_FLAGS = ("lora_rank", "lora_alpha", "lora_targets", "adapter", "lora_plus_ratio")
STALE_FILES = ("last.pt", "best.pt", "merged.pt")  # of an earlier run in the same folder


def prepare(settings: FinetuneSettings) -> Callable[[], None]:
    """Checks and loads everything; returns the function that trains. Raises ValueError or OSError."""
    if settings.pooling == "last_column" and distributed.size() > 1:
        raise ValueError("--pooling last_column depends on the batch's padding: start it without torchrun")
    experiment = load_experiment(settings, ("train", "dev", "test"))
    train = experiment.splits["train"]
    if len(set(train.labels)) == 1:
        raise ValueError(f"every label of {settings.train} is the same: there is nothing to learn")
    if (few := settings.train_examples) is not None and not len(experiment.label_names) <= few <= len(train):
        least, most = len(experiment.label_names), len(train)
        raise ValueError(f"--train_examples must be from {least}, one a label, to {most}, all of {settings.train}")
    if experiment.splits["dev"].placeholder:
        raise ValueError(f"every label of {settings.dev} is the same, a placeholder: it can select no model")
    experiment.tokenise_splits(experiment.llama.config.max_seq_len, _question(experiment))
    seeds = settings.seeds or [settings.seed]
    if len(set(seeds)) < len(seeds):
        raise ValueError("--seeds names the same seed twice")
    if isinstance(settings, LoraSettings):
        check_adapters(experiment.llama, settings.adapter, settings.lora_rank, TARGETS[settings.lora_targets])
    if settings.compile:
        check_compiler(experiment.device)
    identity = _identity(experiment, settings)
    runs = [_plan_run(experiment, settings, identity, seed, first=seed == seeds[0]) for seed in seeds]
    return lambda: _train_all(runs)


@dataclass
class Run:
    """One training run: its settings with its own seed, its folder, its identity, and its prediction files."""

    experiment: Experiment
    settings: FinetuneSettings
    folder: Path
    identity: dict[str, Any]

    @property
    def targets(self) -> dict[str, str]:
        """The prediction files of dev and test."""
        return {"dev": self.settings.dev_out, "test": self.settings.test_out}

    @property
    def recipe(self) -> str:
        """The recipe that repeats this run."""
        return recipe_text("run_llama.py", self.settings.option, self.settings)


def _plan_run(
    experiment: Experiment, settings: FinetuneSettings, identity: dict[str, Any], seed: int, first: bool
) -> Run:
    """The run of one seed. The first seed's predictions go to the files named by flags, the others' to their folders.

    Raises CheckpointError if `--resume` finds the state of another run.
    """
    folder = run_folder(settings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_first():
        hold_folder(folder)
    changes: dict[str, Any] = {"seed": seed, "seeds": None}
    if not first:
        changes |= {name: str(folder / Path(getattr(settings, name)).name) for name in ("dev_out", "test_out")}
    own = dataclasses.replace(settings, **changes)
    experiment = dataclasses.replace(experiment, settings=own, splits=_few_shot(experiment.splits, own))
    run = Run(experiment, own, folder, identity | {"seed": seed})
    if settings.resume and (folder / "last.pt").exists():
        read_state(folder / "last.pt", run.identity)
    return run


def _few_shot(splits: dict[str, Examples], settings: FinetuneSettings) -> dict[str, Examples]:
    """The splits with only as many training sentences as `--train_examples` asks for, drawn by the seed."""
    if settings.train_examples is None:
        return splits
    train = splits["train"]
    print(f"seed {settings.seed}: train on {settings.train_examples} of {len(train)} sentences")
    return splits | {"train": train.chosen(balanced(train.labels, settings.train_examples, settings.seed))}


def run_folder(settings: FinetuneSettings, seed: int) -> Path:
    """The folder of one run: option, data set, rate, epochs, seed, and what differs from the course's command."""
    data_set = data_set_name(settings.train)
    name = f"{settings.option}-{data_set}-{settings.lr:g}-{settings.epochs}-{seed}"
    return Path(settings.save_dir) / (name + variant_suffix(settings, data_set))


def _identity(experiment: Experiment, settings: FinetuneSettings) -> dict[str, Any]:
    """Model, data (by content) and settings that a resumed run must share, except the seed."""
    files = {name: getattr(settings, name) for name in ("train", "extra")}
    files["dev"] = None if settings.dev_share else settings.dev
    files["model"] = experiment.model_path
    digests: dict[str, Any] = {name: path and sha256_of(path)[:16] for name, path in files.items()}
    digests["label_names"] = experiment.label_names
    flags = IDENTITY_FLAGS + (LORA_FLAGS if isinstance(settings, LoraSettings) else ())
    how = dataclasses.asdict(TrainSettings(**shared_fields(settings, TrainSettings)))
    return experiment.llama.config.to_dict() | digests | {name: getattr(settings, name) for name in flags} | how


def _train_all(runs: list[Run]) -> None:
    results = []
    for run in runs:
        if len(runs) > 1:
            print(f"seed {run.settings.seed}")
        results.append(_train(run))
    if len(runs) > 1 and distributed.is_first():
        print("\n".join(seeds_summary(results, [run.settings.seed for run in runs])))


def _train(run: Run) -> dict[str, float]:
    """Trains one run and writes its results; returns its figures on dev and test."""
    settings, device = run.settings, run.experiment.device
    torch.manual_seed(settings.seed)
    model = build_classifier(run.experiment)
    if settings.compile:
        compile_methods(model.llama, "hidden_states", "hidden_states_at")
    workload = SentimentWorkload(run.experiment, settings.seed, lambda trained, path: _save_best(run, trained, path))
    workload.pretrained = matrices_of(model, "llama.") if settings.mixout else {}
    trainer = Trainer(
        model, _optimizer(model, settings), workload, TrainSettings(**shared_fields(settings, TrainSettings)),
        run.folder, device, RunLog(run.folder / "log.jsonl", settings.tensorboard), run.identity,
        lambda progress, figures: _epoch_line(settings.option, progress, figures),
    )  # fmt: skip
    workload.track(model, trainer.optimizer, trainer.total_steps)
    if settings.resume and trainer.state_path.exists():
        trainer.resume()
    elif distributed.is_first():
        if settings.resume:
            print(f"nothing to resume in {run.folder}: a new run begins{_other_epochs(run)}")
        for name in STALE_FILES:
            (run.folder / name).unlink(missing_ok=True)
    if distributed.is_first():
        write_text(run.folder / "recipe.toml", run.recipe)
    trained, total = _parameter_counts(model)
    print(f"training {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
    trainer.fit()
    best = _restore_best(run, model)
    print(f"load model from {run.folder / 'best.pt'}")
    predictions = {split: run.experiment.predict_split(best, split) for split in run.targets}
    costs = {"trained_parameters": trained, "trained_share": trained / total, "peak_memory_mb": peak_memory(device)}
    return write_results(run.experiment, predictions, run.folder, run.targets, costs=costs)


def _other_epochs(run: Run) -> str:
    """Names the folders of the same command with other numbers of epochs, whose schedules are others."""
    start, _, end = run.folder.name.partition(f"-{run.settings.epochs}-{run.settings.seed}")
    name = re.compile(re.escape(start) + rf"-\d+-{run.settings.seed}" + re.escape(end))
    folders = [path.name for path in run.folder.parent.iterdir() if name.fullmatch(path.name)]
    others = sorted(set(folders) - {run.folder.name})
    return f" ({', '.join(others)} was started with another --epochs and stays as it is)" if others else ""


def build_classifier(experiment: Experiment) -> LlamaEmbeddingClassifier:
    """A classifier on a copy of the pretrained model; factors and head are drawn from torch's global generator."""
    settings = experiment.settings
    model = LlamaEmbeddingClassifier(experiment.classifier_config(), copy.deepcopy(experiment.llama))
    if settings.head == "label_words":
        encode = experiment.tokenizer.encode
        model.start_from_label_words([encode(name, bos=False, eos=False) for name in experiment.label_names])
    if isinstance(settings, LoraSettings):
        targets = TARGETS[settings.lora_targets]
        apply_adapters(model.llama, settings.adapter, settings.lora_rank, settings.lora_alpha, targets)
    return model.to(experiment.device)


def _question(experiment: Experiment) -> str:
    """What follows every sentence: the question that label words answer, or nothing. Their token carries the space."""
    return experiment.question.rstrip() if experiment.settings.head == "label_words" else ""


def _parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, all)."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def _optimizer(model: nn.Module, settings: FinetuneSettings) -> AdamW:
    """The course's AdamW with one parameter group, clipped as a whole; rules of rates and decay need more."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = decay_groups(model, settings.weight_decay) if settings.weight_decay else [{"params": trained}]
    if settings.layer_decay < 1.0:
        groups = layer_groups(model, list(model.llama.layers), settings.lr, settings.layer_decay)
    if isinstance(settings, LoraSettings) and settings.lora_plus_ratio != 1.0:
        groups = lora_plus_groups(model.named_parameters(), settings.lr, settings.lora_plus_ratio)
    return AdamW(groups, lr=settings.lr, max_grad_norm=settings.max_grad_norm)


def _epoch_line(option: str, progress: Progress, figures: dict[str, float]) -> str:
    """The line that the course prints after each epoch."""
    start = f"{'LoRA ' * (option == 'lora')}epoch {progress.epoch}: "
    names = ("train_loss", "train_acc", "dev_acc")
    return start + ", ".join(f"{name.replace('_', ' ')} :: {figures[name]:.3f}" for name in names)


def _info(run: Run) -> ClassifierInfo:
    settings, experiment = run.settings, run.experiment
    tokenizer = experiment.tokenizer
    return ClassifierInfo(
        experiment.label_names, Path(tokenizer.model_path), settings.max_sentence_len, settings.dtype,
        settings.batch_size, vocabulary_digest(tokenizer), settings.task, _question(experiment),
    )  # fmt: skip


def _save_best(run: Run, model: LlamaEmbeddingClassifier, path: Path) -> None:
    if isinstance(run.settings, LoraSettings):
        save_adapter(path, model, _info(run), run.experiment.model_path)
    else:
        save_classifier(path, model, _info(run))


def _restore_best(run: Run, model: LlamaEmbeddingClassifier) -> LlamaEmbeddingClassifier:
    """The best model as read from its file; with LoRA the merged one, which is also written."""
    if isinstance(run.settings, LoraSettings):
        load_adapter(run.folder / "best.pt", model)
        merge_lora_weights(model)
        if distributed.is_first():
            save_classifier(run.folder / "merged.pt", model, _info(run))
        return model
    return load_classifier(run.folder / "best.pt")[0].to(run.experiment.device)
