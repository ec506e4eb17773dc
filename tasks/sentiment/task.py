"""Sentiment: `--option prompt` asks the model, `--option finetune` and `--option lora` train it to classify.

    python run_llama.py --option finetune --train data/reviews-train.txt --dev data/reviews-dev.txt \\
        --test data/reviews-test.txt --label-names data/reviews-label-mapping.json \\
        --dev_out reviews-dev-finetuning-output.txt --test_out reviews-test-finetuning-output.txt
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier import LlamaEmbeddingClassifier, LlamaZeroShotClassifier
from engine.io.files import check_writable, write_text
from engine.train import distributed
from engine.train.run_log import RunLog
from engine.train.trainer import Progress, Trainer, TrainSettings, read_state
from llama import Llama
from lora import TARGETS, apply_lora, merge_lora_weights
from optimizer import AdamW, decay_groups
from tasks import provenance
from tasks.pretrained import load_model
from tasks.sentiment.checkpoint import load_adapter, load_classifier, save_adapter, save_classifier
from tasks.sentiment.data import (
    Examples,
    SentenceBatches,
    content_free_ids,
    prompt_suffix,
    read_examples,
    read_label_names,
    tokenise,
)
from tasks.sentiment.flags import FinetuneSettings, LoraSettings, PromptSettings, SentimentSettings
from tasks.sentiment.report import measure, predict, report, seeds_summary, write_predictions
from tasks.settings import shared_fields
from tokenizer import AnyTokenizer
from utils import DTYPES, autocast, check_compiler, compile_methods, set_up

IDENTITY_FLAGS = ("option", "lr", "batch_size", "hidden_dropout_prob", "pooling", "no_causal_mask", "weight_decay")
IDENTITY_FLAGS += ("max_grad_norm", "max_sentence_len")
LORA_FLAGS = ("lora_rank", "lora_alpha", "lora_targets")


@dataclass
class Setting:
    """All that the runs of one command share."""

    settings: SentimentSettings
    device: torch.device
    label_names: list[str]
    splits: dict[str, Examples]
    llama: Llama
    tokenizer: AnyTokenizer
    model_path: Path

    def batches(self, split: str, seed: int = 0) -> SentenceBatches:
        """The batches of "train", "dev" or "test"."""
        return SentenceBatches(self.splits[split], self.settings.batch_size, self.tokenizer.pad_id, seed)

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        """The predicted labels of a split, in the file's order."""
        with autocast(self.device, DTYPES[self.settings.dtype]):
            return predict(model, self.batches(split), self.device, as_filed=self.settings.pooling == "last_column")

    def config(self) -> SimpleNamespace:
        """What the course's constructors read."""
        names = ("hidden_dropout_prob", "option", "pooling")
        flags = {name: getattr(self.settings, name) for name in names if hasattr(self.settings, name)}
        return SimpleNamespace(num_labels=len(self.label_names), pad_id=self.tokenizer.pad_id, **flags)


def _set_up(settings: SentimentSettings, splits: tuple[str, ...]) -> Setting:
    """Reads the data before the model is loaded, so that a fault in it is told at once."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    for target in (settings.dev_out, settings.test_out):
        check_writable(target)
    try:
        names = read_label_names(settings.label_names)
        examples = {split: read_examples(getattr(settings, split), len(names)) for split in splits}
    except FileNotFoundError as error:
        hint = "setup.sh puts the course's data into data/, and data/reviews-*.txt are there already"
        raise FileNotFoundError(f"{error} ({hint})") from None
    for found in examples.values():
        print(f"load {len(found)} data from {found.path}")
    llama, tokenizer, path = load_model(settings, device)
    tokenizer.max_len = None  # `tokenise` cuts, and leaves the prompt's question whole
    if settings.no_causal_mask:
        _uncover(llama)
    Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
    return Setting(settings, device, names, examples, llama, tokenizer, path)


def _uncover(llama: Llama) -> None:
    """Takes the causal mask away."""
    llama.config.causal = False
    for layer in llama.layers:
        layer.attention.causal = False


def _tokenise(setting: Setting, limit: int, suffix: str = "") -> None:
    for found in setting.splits.values():
        tokenise(found, setting.tokenizer, limit, setting.settings.max_sentence_len, suffix)
        if found.cut:
            print(f"{found.cut} of {len(found)} sentences of {found.path} are cut to fit")


def _dataset(settings: SentimentSettings, split: str) -> str:
    """`data/sst-dev.txt` -> `sst`."""
    return Path(getattr(settings, split)).stem.removesuffix(f"-{split}")


def prepare_prompt(settings: PromptSettings) -> Callable[[], None]:
    """Loads all that zero-shot classification needs; returns what does it. Raises ValueError or OSError."""
    setting = _set_up(settings, ("dev", "test"))
    suffix = prompt_suffix(setting.label_names)
    read = suffix if settings.label_scoring == "course" else suffix.rstrip()  # a label's first piece has the space
    model = LlamaZeroShotClassifier(
        setting.config(), setting.tokenizer, setting.label_names, setting.llama, settings.label_scoring
    ).eval()
    _tokenise(setting, setting.llama.config.max_seq_len - max(map(len, model.label_name_ids)), read)
    folder = Path(settings.save_dir) / f"prompt-{_dataset(settings, 'dev')}"
    folder.mkdir(exist_ok=True)

    def work() -> None:
        if settings.calibrate:
            shares = model.calibrate(content_free_ids(setting.tokenizer, read)).tolist()
            said = ", ".join(f"{name} {share:.3f}" for name, share in zip(setting.label_names, shares, strict=True))
            print(f"calibrated by what the model answers to nothing: {said}")
        _finish(setting, model, folder, {"dev": settings.dev_out, "test": settings.test_out}, suffix)

    return work


def _finish(
    setting: Setting, model: nn.Module, folder: Path, targets: dict[str, str | Path], suffix: str = ""
) -> dict[str, float]:
    """Predicts both splits, writes and prints what there is to say of them, and returns the figures.

    Of several processes, only the first writes and has figures.
    """
    result, found = {}, {split: setting.predict(model, split) for split in targets}
    if not distributed.is_first():
        return result
    for split, predictions in found.items():
        examples = setting.splits[split]
        write_predictions(targets[split], examples, predictions, suffix)
        lines, figures = report(split, examples, predictions, setting.label_names, folder)
        print("\n".join(lines))
        result |= figures
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    settings, data = setting.settings, [setting.settings.label_names, *(each.path for each in setting.splits.values())]
    provenance.record(targets.values(), "run_llama.py", settings.option, settings, setting.model_path, data)
    return result


class SentimentWorkload:
    """Classification of sentences: what the trainer needs of it. `save` writes the best model."""

    def __init__(self, setting: Setting, seed: int, save: Callable[[nn.Module, Path], None]):
        self.setting, self.training, self.save_best = setting, setting.batches("train", seed), save
        self.tally = {"loss": 0.0, "correct": 0.0, "examples": 0.0}  # since the last evaluation, dropout on

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Batches of sentences of like length, in an order of the epoch's own."""
        return self.training.epoch(epoch)

    def count(self, batch: np.ndarray) -> int:
        """Number of sentences really in the batch."""
        return len(batch)

    def loss(self, model: LlamaEmbeddingClassifier, batch: np.ndarray) -> Tensor:
        """Summed negative log-likelihood of the batch's labels."""
        ids, labels = (tensor.to(self.setting.device) for tensor in self.training.tensors(batch))
        log_probs = model(ids)
        loss = F.nll_loss(log_probs, labels, reduction="sum")
        self.tally["loss"] += loss.item()
        self.tally["correct"] += (log_probs.argmax(dim=1) == labels).sum().item()
        self.tally["examples"] += len(batch)
        return loss

    def evaluate(self, model: LlamaEmbeddingClassifier) -> dict[str, float]:
        """Training loss and accuracy since the last call, accuracy (the score) and macro-F1 on the dev set."""
        setting, seen = self.setting, max(1.0, self.tally["examples"])
        dev = measure(setting.splits["dev"], setting.predict(model, "dev"), len(setting.label_names))
        measured = {"train_loss": self.tally["loss"] / seen, "train_acc": self.tally["correct"] / seen}
        measured |= {"dev_acc": dev["acc"], "dev_macro_f1": dev["macro_f1"], "score": dev["acc"]}
        self.tally.update(dict.fromkeys(self.tally, 0.0))
        return measured


def prepare_training(settings: FinetuneSettings) -> Callable[[], None]:
    """Checks and loads everything for fine-tuning or LoRA; returns what trains. Raises ValueError or OSError."""
    if settings.pooling == "last_column" and distributed.size() > 1:
        raise ValueError("--pooling last_column reads the padding of whole batches: start it without torchrun")
    setting = _set_up(settings, ("train", "dev", "test"))
    for split in ("train", "dev"):
        if len(set(setting.splits[split].labels)) == 1:
            raise ValueError(f"every label of {getattr(settings, split)} is the same: there is nothing to learn")
    _tokenise(setting, setting.llama.config.max_seq_len)
    seeds = settings.seeds or [settings.seed]
    if len(set(seeds)) < len(seeds):
        raise ValueError("--seeds: one of them stands there twice")
    if settings.option == "lora":
        _adapt(copy.deepcopy(setting.llama), settings)  # refuses a rank that does not fit
    if settings.compile:
        check_compiler(setting.device)
    identity = _identity(setting)
    for seed in seeds:
        folder = run_folder(settings, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if settings.resume and (folder / "last.pt").exists():
            read_state(folder / "last.pt", identity | {"seed": seed})
    return lambda: _train_all(setting, seeds, identity)


def run_folder(settings: FinetuneSettings, seed: int) -> Path:
    """The folder of one run: option, data set, rate, epochs and seed."""
    name = f"{settings.option}-{_dataset(settings, 'train')}-{settings.lr:g}-{settings.epochs}-{seed}"
    return Path(settings.save_dir) / name


def _identity(setting: Setting) -> dict[str, Any]:
    """What makes the runs of a command what they are, but for the seed."""
    settings = setting.settings
    files = {name: getattr(settings, name) for name in ("train", "dev", "label_names")} | {"model": setting.model_path}
    digests = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for name, path in files.items()}
    flags = IDENTITY_FLAGS + (LORA_FLAGS if settings.option == "lora" else ())
    return setting.llama.config.to_dict() | digests | {name: getattr(settings, name) for name in flags}


def _train_all(setting: Setting, seeds: list[int], identity: dict[str, Any]) -> None:
    """One run after the other. The files named on the command line hold the first seed's predictions."""
    results = []
    for place, seed in enumerate(seeds):
        folder = run_folder(setting.settings, seed)
        if len(seeds) > 1:
            print(f"seed {seed}")
        targets = {split: getattr(setting.settings, f"{split}_out") for split in ("dev", "test")}
        if place > 0:
            targets = {split: folder / Path(target).name for split, target in targets.items()}
        results.append(_train_one(setting, seed, folder, identity | {"seed": seed}, targets))
    if len(seeds) > 1 and distributed.is_first():
        print("\n".join(seeds_summary(results, seeds)))


def _train_one(
    setting: Setting, seed: int, folder: Path, identity: dict[str, Any], targets: dict[str, str | Path]
) -> dict[str, float]:
    settings = setting.settings
    torch.manual_seed(seed)
    model = build_classifier(setting)
    if settings.compile:
        compile_methods(model.llama, "hidden_states", "hidden_states_at")
    log = RunLog(folder / "log.jsonl")
    workload = SentimentWorkload(setting, seed, lambda trained, path: _save_best(setting, trained, path))
    how = TrainSettings(**shared_fields(settings, TrainSettings))
    trainer = Trainer(
        model, _optimizer(model, settings), workload, how, folder, setting.device, log, identity,
        lambda progress, measured: _epoch_line(settings.option, progress, measured),
    )  # fmt: skip
    if settings.resume and trainer.state_path.exists():
        trainer.resume()
    elif distributed.is_first():
        for left in ("last.pt", "best.pt", "merged.pt", "log.jsonl"):
            (folder / left).unlink(missing_ok=True)
    print(_trained_line(model))
    trainer.fit()
    best = _restore_best(setting, model, folder)
    print(f"load model from {folder / 'best.pt'}")
    return _finish(setting, best, folder, targets)


def build_classifier(setting: Setting) -> LlamaEmbeddingClassifier:
    """A classifier on a copy of the pretrained model; factors and head are drawn from torch's global generator."""
    llama = copy.deepcopy(setting.llama)
    model = LlamaEmbeddingClassifier(setting.config(), llama)
    if setting.settings.option == "lora":
        _adapt(model.llama, setting.settings)
    return model.to(setting.device)


def _adapt(llama: Llama, settings: LoraSettings) -> None:
    apply_lora(llama, settings.lora_rank, settings.lora_alpha, TARGETS[settings.lora_targets])


def _trained_line(model: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"training {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)"


def _optimizer(model: nn.Module, settings: FinetuneSettings) -> AdamW:
    """The course's AdamW: one group, so that clipping takes all gradients together, unless matrices decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = decay_groups(model, settings.weight_decay) if settings.weight_decay else [{"params": trained}]
    return AdamW(groups, lr=settings.lr, max_grad_norm=settings.max_grad_norm)


def _epoch_line(option: str, progress: Progress, measured: dict[str, float]) -> str:
    """The course's line; a measurement within an epoch has the step as well."""
    start = f"{'LoRA ' * (option == 'lora')}epoch {progress.epoch}: "
    return start + ", ".join(
        f"{name.replace('_', ' ')} :: {measured[name]:.3f}" for name in ("train_loss", "train_acc", "dev_acc")
    )


def _save_best(setting: Setting, model: LlamaEmbeddingClassifier, path: Path) -> None:
    if setting.settings.option == "lora":
        save_adapter(path, model)
    else:
        save_classifier(path, model, setting.label_names, setting.tokenizer.model_path)


def _restore_best(setting: Setting, model: LlamaEmbeddingClassifier, folder: Path) -> LlamaEmbeddingClassifier:
    """The best model as its file has it; of a LoRA run merged, which is written too."""
    if setting.settings.option == "lora":
        load_adapter(folder / "best.pt", model)
        merge_lora_weights(model)
        if distributed.is_first():
            save_classifier(folder / "merged.pt", model, setting.label_names, setting.tokenizer.model_path)
        return model
    return load_classifier(folder / "best.pt")[0].to(setting.device)
