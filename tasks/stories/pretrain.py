"""Pretraining on text: `--option tokenizer` trains a tokenizer, `--option pretrain` a model.

    python run_llama.py --option pretrain --corpus TEXT --tokenizer models/mine.model --save_dir runs/mine
    python run_llama.py --option pretrain --corpus TEXT --pretrained-model-path models/stories.pt --save_dir runs/more
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import LlamaConfig
from engine.io.checkpoint import read_checkpoint, save_checkpoint
from engine.io.files import atomic_path, check_writable, write_text
from engine.io.word_tokenizer import SPECIAL, WordTokenizer, word_vocabulary
from engine.train import distributed, run_log
from engine.train.losses import cross_entropy, token_nll
from engine.train.muon import Muon, muon_groups
from engine.train.run_log import RunLog
from engine.train.trainer import Progress, Trainer, TrainSettings
from llama import Llama
from optimizer import AdamW, decay_groups
from tasks import plots
from tasks.pretrained import load_model
from tasks.stories.data import StoryBatches, TokenFile, encode_documents, read_documents, split_documents, tokenise
from tasks.stories.fasttext import fill_embeddings
from tasks.stories.packing import PackedBatches
from tokenizer import AnyTokenizer, load_tokenizer, train_tokenizer
from utils import check_compiler, compile_methods, set_up

CONFIG_FLAGS = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "dropout", "rope_theta", "hidden_dim")
CONFIG_FLAGS += ("position_embedding_type", "ffn_type", "norm_position")
TRAINING_FLAGS = ("lr", "optimizer", "weight_decay", "max_grad_norm", "batch_tokens", "held_out", "seed")
TRAINING_FLAGS += ("embeddings", "freeze_embeddings")


class StoryWorkload:
    """Next-token prediction on a corpus, a share of whose documents is held out to choose the best checkpoint."""

    def __init__(self, data: TokenFile, tokenizer: AnyTokenizer, config: LlamaConfig, args: argparse.Namespace):
        training, held_out = split_documents(len(data), args.held_out, args.seed)
        kind = StoryBatches
        if args.packing != "off":
            kind = partial(PackedBatches, crossing=args.packing == "crossing")
        self.training = kind(data, training, config.max_seq_len, args.batch_tokens, args.seed)
        self.held_out = StoryBatches(data, held_out, config.max_seq_len, args.batch_tokens, args.seed)
        self.validation = _validation(tokenizer, config, args)
        self.config, self.tokenizer = config, tokenizer

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Batches of documents of like length, or packed, in an order of the epoch's own."""
        return self.training.epoch(epoch)

    def count(self, batch: np.ndarray) -> int:
        """Number of next-token targets."""
        return self.training.count(batch)

    def loss(self, model: Llama, batch: np.ndarray) -> Tensor:
        """Summed cross-entropy of the batch, in nats."""
        hidden, targets = _run(model, self.training, batch)
        return cross_entropy(hidden, model.output.weight, targets)

    def evaluate(self, model: Llama) -> dict[str, float]:
        """Loss a token (nats) and perplexity on the held-out documents, and on --valid, which decides nothing."""
        loss = _mean_loss(model, self.held_out)
        measured = {"held_out_loss": loss, "held_out_perplexity": math.exp(loss), "score": -loss}
        if self.validation is not None:
            loss = _mean_loss(model, self.validation)
            measured |= {"validation_loss": loss, "validation_perplexity": math.exp(loss)}
        return measured

    def save_best(self, model: Llama, path: Path) -> None:
        """The model in the project's format, naming its tokenizer."""
        save_checkpoint(path, self.config, model.state_dict(), Path(self.tokenizer.model_path))


def _run(model: Llama, batches: StoryBatches, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """Hidden states (targets, dim) and their targets (targets,), of a batch with its rows laid end to end."""
    tokens, targets = (tensor.to(model.device) for tensor in batches.tensors(batch))
    if (documents := batches.documents(batch)) is not None:
        documents = documents.to(model.device)
    return model.hidden_states(tokens, padding_mask=documents).flatten(0, 1), targets.flatten()


def _mean_loss(model: Llama, batches: StoryBatches) -> float:
    """Loss a token in nats; each process measures its share of the batches."""
    total = count = 0.0
    for batch in distributed.share(batches.in_order()):
        hidden, targets = _run(model, batches, batch)
        total += token_nll(hidden, model.output.weight, targets).sum().item()
        count += batches.count(batch)
    total, count = distributed.sum_array(np.asarray([total, count]))
    return float(total / count)


def _validation(tokenizer: AnyTokenizer, config: LlamaConfig, args: argparse.Namespace) -> StoryBatches | None:
    if args.valid is None:
        return None
    data = encode_documents(read_documents(args.valid), tokenizer)
    return StoryBatches(data, np.arange(len(data)), config.max_seq_len, args.batch_tokens, args.seed)


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Checks and loads everything; returns what trains. Raises ValueError or OSError before any work is done."""
    device = set_up(args.seed, args.use_gpu, args.threads)
    begun = "pretrained_model_path" in args.given
    model, tokenizer = _continued_model(args, device) if begun else _new_model(args, device)
    if args.compile and args.gradient_checkpointing:
        raise ValueError("--compile and --gradient_checkpointing do not go together")
    if args.compile:
        check_compiler(device)
        compile_methods(model, "hidden_states")
    model.recompute, config = args.gradient_checkpointing, model.config
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "last.pt")
    if args.export is not None:
        check_writable(args.export)
    if (folder / "last.pt").exists() and not args.resume:
        raise ValueError(f"{folder} holds a run already: go on with it by --resume, or name another --save_dir")
    data = tokenise(args.corpus, tokenizer, folder / "cache")
    workload = StoryWorkload(data, tokenizer, config, args)
    identity = config.to_dict() | {name: getattr(args, name) for name in TRAINING_FLAGS} | {"data": data.digest}
    if args.packing != "off":
        identity["packing"] = args.packing
    if begun:
        identity["pretrained"] = hashlib.sha256(Path(args.pretrained_model_path).read_bytes()).hexdigest()[:16]
    log = RunLog(folder / "log.jsonl")
    trainer = Trainer(model, _optimizer(model, args), workload, _settings(args), folder, device, log, identity)
    if args.resume and trainer.state_path.exists():
        trainer.resume()
    return lambda: _train(trainer, model, args)


def _new_model(args: argparse.Namespace, device: torch.device) -> tuple[Llama, AnyTokenizer]:
    """Fresh weights over --tokenizer; embeddings from --embeddings where it is given, and frozen if asked."""
    tokenizer = load_tokenizer(args.tokenizer)
    fields = {name: getattr(args, name) for name in CONFIG_FLAGS}
    config = LlamaConfig(vocab_size=tokenizer.n_words, tie_embeddings=not args.untied_output, **fields)
    if args.freeze_embeddings and not args.untied_output:
        raise ValueError("--freeze_embeddings needs --untied_output: a tied output must learn")
    if args.embeddings is not None and not isinstance(tokenizer, WordTokenizer):
        raise ValueError(f"--embeddings are of words: {tokenizer.model_path} is no vocabulary of words (.json)")
    model = Llama(config)
    if args.embeddings is not None:
        missing = fill_embeddings(model.tok_embeddings.weight, tokenizer.words, args.embeddings, len(SPECIAL))
        words = tokenizer.n_words - len(SPECIAL)
        print(f"{args.embeddings}: vectors of {words - missing} of {words} words; {missing} start at random")
    model.tok_embeddings.weight.requires_grad_(not args.freeze_embeddings)
    return model.to(device), tokenizer


def _continued_model(args: argparse.Namespace, device: torch.device) -> tuple[Llama, AnyTokenizer]:
    """The model of --pretrained-model-path as it is, but for a --dropout that is given.

    Raises ValueError for a flag that asks for another shape than the checkpoint has.
    """
    if args.embeddings is not None:
        raise ValueError("--embeddings are for a new model: --pretrained-model-path brings its own")
    model, tokenizer, path = load_model(args, device)
    tokenizer.max_len = None  # documents are not cut: long ones make several rows
    config = model.config
    for name in CONFIG_FLAGS:
        own = config.ffn_dim if name == "hidden_dim" else getattr(config, name)
        if name in args.given - {"dropout"} and getattr(args, name) != own:
            raise ValueError(f"--{name} {getattr(args, name)}: {path} has {own}, and keeps it")
    if args.untied_output and config.tie_embeddings:
        raise ValueError(f"--untied_output: the output of {path} is tied to its embedding")
    if args.freeze_embeddings and config.tie_embeddings:
        raise ValueError(f"--freeze_embeddings: the output of {path} is tied to its embedding, and must learn")
    if "dropout" in args.given:
        config.dropout = args.dropout
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.dropout
    model.tok_embeddings.weight.requires_grad_(not args.freeze_embeddings)
    return model, tokenizer


def _settings(args: argparse.Namespace) -> TrainSettings:
    return TrainSettings(
        epochs=args.epochs, schedule=args.schedule, warmup_steps=args.warmup_steps, rate_floor=args.rate_floor,
        accumulation=args.accumulation, dtype=args.dtype, evaluate_every=args.evaluate_every,
        save_every=args.save_every, patience=args.patience,
    )  # fmt: skip


def _optimizer(model: Llama, args: argparse.Namespace) -> AdamW:
    kind, groups = {"adamw": (AdamW, decay_groups), "muon": (Muon, muon_groups)}[args.optimizer]
    return kind(
        groups(model, args.weight_decay), lr=args.lr, betas=(0.9, 0.95), eps=1e-8, max_grad_norm=args.max_grad_norm
    )


def _train(trainer: Trainer, model: Llama, args: argparse.Namespace) -> None:
    folder, workload = trainer.folder, trainer.workload
    rows = len(workload.training.rows)
    print(f"{model.parameter_count():,} parameters, {rows:,} rows of text, {trainer.total_steps:,} steps")
    progress = trainer.fit()
    if not distributed.is_first():
        return
    plots.training_curves(folder / "log.jsonl", folder / "loss_curve.png")
    print(f"best held-out loss {-progress.best_score:.4f} nats a token; wrote {folder / 'best.pt'}")
    if args.export is not None:
        _export(folder, Path(args.export), Path(workload.tokenizer.model_path), progress, args)


def _export(folder: Path, target: Path, tokenizer: Path, progress: Progress, args: argparse.Namespace) -> None:
    """Writes the best model in bfloat16 to `target`; beside it its settings, its log (every tenth step), its curves."""
    best = read_checkpoint(folder / "best.pt")
    state = {name: tensor.bfloat16() for name, tensor in best.state_dict.items()}
    save_checkpoint(target, best.config, state, tokenizer)
    result = {"held_out_loss": -progress.best_score, "steps": progress.step, "tokens": progress.targets}
    result["hours"] = round(progress.seconds / 3600, 2)
    training = asdict(_settings(args)) | {name: getattr(args, name) for name in TRAINING_FLAGS}
    described = {"config": best.config.to_dict(), "training": training, "result": result}
    write_text(target.with_suffix(".json"), json.dumps(described, indent=2) + "\n")
    records = [r for r in run_log.read(folder / "log.jsonl") if "loss" not in r or r["step"] % 10 == 0]
    write_text(target.with_suffix(".jsonl"), "".join(json.dumps(record) + "\n" for record in records))
    plots.training_curves(folder / "log.jsonl", target.with_suffix(".png"))
    print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) with its .json, .jsonl and .png")


def prepare_tokenizer(args: argparse.Namespace) -> Callable[[], None]:
    """Trains the tokenizer of `--option tokenizer` in memory (a second's work); returns what writes it.

    A name that ends in `.json` asks for a vocabulary of words, any other for a SentencePiece model.
    """
    path = check_writable(args.tokenizer)
    documents = [document for corpus in args.corpus for document in read_documents(corpus)]
    if path.suffix == ".json":
        model = word_vocabulary(documents, args.vocab_size, lower=not args.keep_case).encode("utf-8")
    else:
        model = train_tokenizer(documents, args.vocab_size)

    def work() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(model)
        tokenizer = load_tokenizer(path)
        rows = [tokenizer.encode(document, bos=False, eos=False) for document in documents]
        pieces = sum(len(ids) for ids in rows)
        size = sum(len(document.encode("utf-8")) for document in documents)
        print(f"{tokenizer.n_words} pieces, {size / pieces:.2f} bytes a piece; wrote {path}")
        if isinstance(tokenizer, WordTokenizer):
            unknown = sum(ids.count(tokenizer.unk_id) for ids in rows)
            print(f"{pieces:,} words, of which <unk> {unknown / pieces:.2%}")

    return work
