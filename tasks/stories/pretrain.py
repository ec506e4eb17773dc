"""`--option pretrain`: trains a language model on text, from scratch or from a checkpoint.

    python run_llama.py --option pretrain --corpus TEXT --tokenizer runs/mine.model --save_dir runs/mine
    python run_llama.py --option pretrain --corpus TEXT --pretrained-model-path models/stories.pt --save_dir runs/more
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import ATTENTION_VARIANTS, LlamaConfig
from engine.io.checkpoint import read_checkpoint, save_checkpoint
from engine.io.files import check_writable, sha256_of, write_json, write_text
from engine.io.locks import hold_folder
from engine.io.word_tokenizer import SPECIAL, WordTokenizer
from engine.train import distributed, run_log
from engine.train.losses import cross_entropy, perplexity, token_nll
from engine.train.muon import Muon, muon_groups
from engine.train.run_log import RunLog
from engine.train.state import Progress
from engine.train.trainer import Trainer, TrainSettings
from llama import Llama
from optimizer import AdamW, decay_groups
from tasks import plots
from tasks.pretrained import load_model
from tasks.recipe import recipe_text
from tasks.settings import shared_fields
from tasks.shipped import check_not_shipped
from tasks.stories.data import (
    StoryBatches,
    TokenFile,
    encode_documents,
    read_documents,
    split_documents,
    split_tokens,
    tokenise,
)
from tasks.stories.fasttext import fill_embeddings
from tasks.stories.flags import PretrainSettings
from tasks.stories.packing import PackedBatches
from tokenizer import AnyTokenizer, load_tokenizer
from utils import check_compiler, compile_methods, set_up

CONFIG_FLAGS = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "dropout", "rope_theta", "hidden_dim")
CONFIG_FLAGS += ("position_embedding_type", "ffn_type", "norm_type", "norm_position", *ATTENTION_VARIANTS)
TRAINING_FLAGS = ("lr", "optimizer", "weight_decay", "max_grad_norm", "batch_tokens", "held_out", "seed")
TRAINING_FLAGS += ("embeddings", "freeze_embeddings")


class StoryWorkload:
    """Next-token prediction on a corpus; a held-out share of the documents selects the best checkpoint."""

    def __init__(self, data: TokenFile, tokenizer: AnyTokenizer, config: LlamaConfig, settings: PretrainSettings):
        if len(data) == 1:
            data = split_tokens(data, settings.held_out)
            print(f"the corpus is one document: its last {data.offsets[2] - data.offsets[1]:,} tokens are held out")
        training, held_out = split_documents(len(data), settings.held_out, settings.seed)
        batches: Callable = StoryBatches
        if settings.packing != "off":
            batches = partial(PackedBatches, crossing=settings.packing == "crossing")
        self.training = batches(data, training, config.max_seq_len, settings.batch_tokens, settings.seed)
        self.held_out = StoryBatches(data, held_out, config.max_seq_len, settings.batch_tokens, settings.seed)
        self.validation = _validation(tokenizer, config, settings)
        self.config, self.tokenizer = config, tokenizer

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return self.training.batches_per_epoch(epoch)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches, of documents of similar length or packed, in random order."""
        return self.training.epoch(epoch)

    def count(self, batch: np.ndarray) -> int:
        """Number of next-token targets."""
        return self.training.count(batch)

    def loss(self, model: Llama, batch: np.ndarray) -> Tensor:
        """Summed cross-entropy of the batch, in nats."""
        hidden, targets = _run(model, self.training, batch)
        return cross_entropy(hidden, model.output.weight, targets)

    def evaluate(self, model: Llama) -> dict[str, float]:
        """Loss per token (nats) and perplexity on the held-out documents, and on --valid, which selects nothing."""
        loss = _mean_loss(model, self.held_out)
        measured = {"held_out_loss": loss, "held_out_perplexity": perplexity(loss), "score": -loss}
        if self.validation is not None:
            loss = _mean_loss(model, self.validation)
            measured |= {"validation_loss": loss, "validation_perplexity": perplexity(loss)}
        return measured

    def save_best(self, model: Llama, path: Path) -> None:
        """Writes the model in the project's format, with its tokenizer's name."""
        save_checkpoint(path, self.config, model.state_dict(), Path(self.tokenizer.model_path))


def _run(model: Llama, batches: StoryBatches, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """Hidden states (targets, dim) and targets (targets,) of a batch, rows concatenated."""
    tokens, targets = (tensor.to(model.device) for tensor in batches.tensors(batch))
    if (documents := batches.documents(batch)) is not None:
        documents = documents.to(model.device)
    return model.hidden_states(tokens, document_ids=documents).flatten(0, 1), targets.flatten()


def _mean_loss(model: Llama, batches: StoryBatches) -> float:
    """Loss per token in nats; each process measures its share of the batches."""
    total = count = 0.0
    for batch in distributed.share(batches.in_order()):
        hidden, targets = _run(model, batches, batch)
        total += token_nll(hidden, model.output.weight, targets).sum().item()
        count += batches.count(batch)
    total, count = distributed.sum_array(np.asarray([total, count]))
    return float(total / count)


def _validation(tokenizer: AnyTokenizer, config: LlamaConfig, settings: PretrainSettings) -> StoryBatches | None:
    if settings.valid is None:
        return None
    data = encode_documents(read_documents(settings.valid), tokenizer)
    return StoryBatches(data, np.arange(len(data)), config.max_seq_len, settings.batch_tokens, settings.seed)


def prepare(settings: PretrainSettings) -> Callable[[], None]:
    """Checks and loads everything; returns the work. Raises ValueError or OSError before any work is done."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    continued = "pretrained_model_path" in settings.given
    model, tokenizer = _continued_model(settings, device) if continued else _new_model(settings, device)
    if settings.compile and settings.gradient_checkpointing:
        raise ValueError("--compile and --gradient_checkpointing exclude each other")
    if settings.compile:
        check_compiler(device)
        compile_methods(model, "hidden_states")
    model.recompute, config = settings.gradient_checkpointing, model.config
    folder = Path(settings.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "last.pt")
    if distributed.is_first():
        hold_folder(folder)
    if settings.export is not None:
        check_writable(settings.export)
        check_not_shipped(settings.export, settings.overwrite, "--export")
    if (folder / "last.pt").exists() and not settings.resume:
        raise ValueError(f"{folder} holds a run already: continue it with --resume, or name another --save_dir")
    data = tokenise(settings.corpus, tokenizer, folder / "cache")
    workload = StoryWorkload(data, tokenizer, config, settings)
    identity = config.to_dict() | {name: getattr(settings, name) for name in TRAINING_FLAGS} | {"data": data.digest}
    if settings.embeddings is not None:
        identity["embeddings"] = sha256_of(settings.embeddings)[:16]
    if settings.packing != "off":
        identity["packing"] = settings.packing
    if continued:
        identity["pretrained"] = sha256_of(settings.pretrained_model_path)[:16]
    log = RunLog(folder / "log.jsonl", settings.tensorboard)
    how = TrainSettings(**shared_fields(settings, TrainSettings))
    trainer = Trainer(model, _optimizer(model, settings), workload, how, folder, device, log, identity)
    if settings.resume and trainer.state_path.exists():
        trainer.resume()
    if distributed.is_first():
        write_text(folder / "recipe.toml", recipe_text("run_llama.py", "pretrain", settings))
    return lambda: _train(trainer, model, settings)


def _new_model(settings: PretrainSettings, device: torch.device) -> tuple[Llama, AnyTokenizer]:
    """A model with random weights for --tokenizer; embeddings from --embeddings if given, frozen on request."""
    tokenizer = load_tokenizer(settings.tokenizer)
    fields = {name: getattr(settings, name) for name in CONFIG_FLAGS}
    config = LlamaConfig(vocab_size=tokenizer.n_words, tie_embeddings=not settings.untied_output, **fields)
    if settings.freeze_embeddings and not settings.untied_output:
        raise ValueError("--freeze_embeddings needs --untied_output: a tied output must be trained")
    if settings.embeddings is not None and not isinstance(tokenizer, WordTokenizer):
        raise ValueError(f"--embeddings needs a vocabulary of words (.json); {tokenizer.model_path} is none")
    model = Llama(config)
    if settings.embeddings is not None:
        missing = fill_embeddings(model.tok_embeddings.weight, tokenizer.words, settings.embeddings, len(SPECIAL))
        words = tokenizer.n_words - len(SPECIAL)
        print(f"{settings.embeddings}: vectors of {words - missing} of {words} words; {missing} start at random")
    model.tok_embeddings.weight.requires_grad_(not settings.freeze_embeddings)
    return model.to(device), tokenizer


def _continued_model(settings: PretrainSettings, device: torch.device) -> tuple[Llama, AnyTokenizer]:
    """The model of --pretrained-model-path, with --dropout if given.

    Raises ValueError for a flag that contradicts the checkpoint's shape.
    """
    if settings.embeddings is not None:
        raise ValueError("--embeddings is for a new model: --pretrained-model-path has its own")
    model, tokenizer, path = load_model(settings, device)
    config = model.config
    for name in CONFIG_FLAGS:
        own = config.ffn_dim if name == "hidden_dim" else getattr(config, name)
        if name in settings.given - {"dropout"} and getattr(settings, name) != own:
            raise ValueError(f"--{name} {getattr(settings, name)}: {path} has {own}")
    if settings.untied_output and config.tie_embeddings:
        raise ValueError(f"--untied_output: the output of {path} is tied to its embedding")
    if settings.freeze_embeddings and config.tie_embeddings:
        raise ValueError(f"--freeze_embeddings: the output of {path} is tied to its embedding and must be trained")
    if "dropout" in settings.given:
        config.dropout = settings.dropout
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
    model.tok_embeddings.weight.requires_grad_(not settings.freeze_embeddings)
    return model, tokenizer


def _optimizer(model: Llama, settings: PretrainSettings) -> AdamW:
    optimizer, groups = {"adamw": (AdamW, decay_groups), "muon": (Muon, muon_groups)}[settings.optimizer]
    return optimizer(
        groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8,
        max_grad_norm=settings.max_grad_norm,
    )


def _train(trainer: Trainer, model: Llama, settings: PretrainSettings) -> None:
    folder, workload = trainer.folder, trainer.workload
    rows = len(workload.training.rows)
    print(f"{model.parameter_count():,} parameters, {rows:,} rows of text, {trainer.total_steps:,} steps")
    progress = trainer.fit()
    if not distributed.is_first():
        return
    plots.training_curves(folder / "log.jsonl", folder / "loss_curve.png")
    print(f"best held-out loss {-progress.best_score:.4f} nats a token; wrote {folder / 'best.pt'}")
    if settings.export is not None:
        _export(folder, Path(settings.export), Path(workload.tokenizer.model_path), progress, settings)


def _export(folder: Path, target: Path, tokenizer: Path, progress: Progress, settings: PretrainSettings) -> None:
    """Writes the best model in bfloat16 to `target`; beside it the settings, a thinned log and the curves."""
    best = read_checkpoint(folder / "best.pt")
    state = {name: tensor.bfloat16() for name, tensor in best.state_dict.items()}
    save_checkpoint(target, best.config, state, tokenizer)
    result = {"held_out_loss": -progress.best_score, "steps": progress.step, "tokens": progress.targets}
    result["hours"] = round(progress.seconds / 3600, 2)
    how = TrainSettings(**shared_fields(settings, TrainSettings))
    training = asdict(how) | {name: getattr(settings, name) for name in TRAINING_FLAGS}
    described = {"config": best.config.to_dict(), "training": training, "result": result}
    write_json(target.with_suffix(".json"), described)
    records = [r for r in run_log.read(folder / "log.jsonl") if "loss" not in r or r["step"] % 10 == 0]
    write_text(target.with_suffix(".jsonl"), "".join(run_log.line_of(record) for record in records))
    plots.training_curves(folder / "log.jsonl", target.with_suffix(".png"))
    print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) with its .json, .jsonl and .png")
