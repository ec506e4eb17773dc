"""What the trainer asks of fine-tuning: batches, the loss with its regularisers, the dev figures, the best model.

    python run_llama.py --option finetune --help        (--mixout, --r_drop, --smart, --proximal, --ema, --average)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from classifier import LlamaEmbeddingClassifier
from engine.train.averaging import RunningAverage, constant_rate, decay_rate, tail_rate
from engine.train.regularisers import forward_mixed, proximal_divergence, r_drop, smoothness
from tasks.sentiment.experiment import Experiment
from tasks.sentiment.report import accuracy_and_f1

PROXIMAL_MOMENTUM = 0.99  # β of SMART's proximal point in the first tenth of a run (Jiang et al. 2020, section 4.1)


class SentimentWorkload:
    """Sentence classification for the trainer. `save_best` writes the best model to a path."""

    def __init__(self, experiment: Experiment, seed: int, save_best: Callable[[nn.Module, Path], None]):
        self.experiment, self.training_batches = experiment, experiment.batches("train", seed)
        self.write_best = save_best
        self.pretrained: dict[str, Tensor] = {}  # the matrices that mixout mixes in, by their names in the classifier
        self.averages: dict[str, RunningAverage] = {}  # "kept": evaluated and saved; "proximal": SMART's anchor
        names = ("loss", "correct", "examples", "weight")
        self.tally = dict.fromkeys(names, 0.0)  # since the last evaluation, with dropout

    def track(self, model: nn.Module, optimizer: Optimizer, total_steps: int) -> None:
        """Begins the running averages of weights that the settings ask for; they follow the optimizer's steps."""
        settings = self.experiment.settings
        rates = {}
        if settings.ema is not None:
            rates["kept"] = decay_rate(settings.ema)
        if settings.average is not None:
            rates["kept"] = tail_rate(total_steps - max(1, round(settings.average * total_steps)))
        if settings.proximal is not None:
            momentum = settings.proximal_momentum
            rates["proximal"] = constant_rate(1.0 - (PROXIMAL_MOMENTUM if momentum is None else momentum))
        self.averages = {name: RunningAverage(model, rate) for name, rate in rates.items()}
        for average in self.averages.values():
            optimizer.register_step_post_hook(lambda *_, average=average: average.update())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The running averages, which are saved and restored with a run."""
        return {
            f"{name}.{key}": tensor for name, average in self.averages.items() for key, tensor in average.state.items()
        }

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return self.training_batches.batches_per_epoch(epoch)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches of sentences of similar length, in random order."""
        return self.training_batches.epoch(epoch)

    def count(self, batch: np.ndarray) -> float:
        """Number of sentences in the batch; a weighted sentence counts with its weight."""
        weights = self.training_batches.weights(batch)
        return len(batch) if weights is None else weights.sum().item()

    def loss(self, model: LlamaEmbeddingClassifier, batch: np.ndarray) -> Tensor:
        """Summed negative log-likelihood of the batch's labels, each with its weight, and the regularisers."""
        ids, labels = (tensor.to(self.experiment.device) for tensor in self.training_batches.tensors(batch))
        settings = self.experiment.settings
        log_probs = forward_mixed(model, self.pretrained, settings.mixout, ids) if settings.mixout else model(ids)
        weights = self.training_batches.weights(batch)
        if weights is None:
            loss = F.nll_loss(log_probs, labels, reduction="sum")
        else:
            loss = F.nll_loss(log_probs, labels, reduction="none") @ weights.to(log_probs)
        if settings.r_drop:
            loss = loss + settings.r_drop * r_drop(log_probs, lambda: model(ids))
        if settings.smart:
            shape = (*ids.shape, model.llama.config.dim)
            penalty = smoothness(model.llama.tok_embeddings, shape, log_probs, lambda: model(ids))
            loss = loss + settings.smart * penalty
        if settings.proximal is not None and "proximal" in self.averages:
            anchor = self.averages["proximal"].weights
            loss = loss + settings.proximal * proximal_divergence(model, anchor, log_probs, ids)
        self.tally["loss"] += loss.item()
        self.tally["correct"] += (log_probs.argmax(dim=1) == labels).sum().item()
        self.tally["examples"] += len(batch)
        self.tally["weight"] += self.count(batch)
        return loss

    def evaluate(self, model: LlamaEmbeddingClassifier) -> dict[str, float]:
        """Training loss and accuracy since the last call; accuracy (the score) and macro-F1 on the dev set."""
        experiment, count = self.experiment, max(1.0, self.tally["examples"])
        with self._kept_weights():
            predictions = experiment.predict_split(model, "dev")
        dev = accuracy_and_f1(experiment.splits["dev"].labels, predictions, len(experiment.label_names))
        weight = self.tally["weight"] or 1.0
        figures = {"train_loss": self.tally["loss"] / weight, "train_acc": self.tally["correct"] / count}
        figures |= {"dev_acc": dev["acc"], "dev_macro_f1": dev["macro_f1"], "score": dev["acc"]}
        self.tally.update(dict.fromkeys(self.tally, 0.0))
        return figures

    def save_best(self, model: nn.Module, path: Path) -> None:
        """Writes the model, with averaged weights if they are kept."""
        with self._kept_weights():
            self.write_best(model, path)

    def _kept_weights(self) -> AbstractContextManager:
        """Puts the averaged weights into the model while the block runs, if there are any."""
        return self.averages["kept"].applied() if "kept" in self.averages else nullcontext()
