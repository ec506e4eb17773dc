"""The one training loop: accumulation, clipping, schedule, mixed precision, best and last checkpoint, resume.

A task describes its data and loss as a `Workload`; the loop knows nothing about texts or labels. Under torchrun every
process runs it (see `engine.train.distributed`).

    python run_llama.py --option pretrain --help
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from tqdm import tqdm

from engine.io.checkpoint import save_plain
from engine.train import distributed
from engine.train.run_log import RunLog
from engine.train.schedule import rate_factor
from engine.train.state import DAMAGED, STATE_FORMAT, Progress, check_moments, damaged, read_state, restore_tensors
from utils import DTYPES, autocast

NO_SCALING = GradScaler("cpu", enabled=False)


class NotFiniteError(ArithmeticError):
    """The loss is not finite; the message says at which step, and what to try."""


class Workload(Protocol):
    """The data and the loss of a task."""

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch, without building them."""
        ...

    def epoch(self, epoch: int) -> Sequence[Any]:
        """The batches of an epoch, in order; they depend only on the epoch, so that a run can resume.

        Under torchrun the processes share every batch, which is then an array of examples that can be sliced.
        """
        ...

    def count(self, batch: Any) -> float:
        """Number of targets in a batch, or the sum of their weights, before it is shared among processes."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss summed over a batch's targets."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Measures the model on held-out data. The checkpoint with the highest `score` is kept.

        A true `done` ends the run: nothing is left to learn. Every process calls this; the first one's result counts.
        """
        ...

    def save_best(self, model: nn.Module, path: Path) -> None:
        """Writes the model as a checkpoint."""
        ...

    # Optional: `tally: dict[str, float]`, counters that `loss` updates. They are saved and restored with a run.
    # Optional: `tensors: dict[str, Tensor]`, which are saved with a run and restored in place.
    # Optional: `compiled_update(batches)`, which replaces `update`: the mean loss and the number of targets.
    # Optional: `after_update(step, total_steps)`, which may change the weights after each update, steps from 1.
    # Optional: `best_name: str`, the name of the best checkpoint if it is not best.pt.


@dataclass(frozen=True)
class TrainSettings:
    """How to train. `evaluate_every` and `save_every` count steps (0: once per epoch); both also happen at the end.

    `patience` is the number of evaluations without improvement after which the run stops (0: never).
    """

    epochs: int
    schedule: str = "constant"
    warmup_steps: int = 0
    rate_floor: float = 0.0
    accumulation: int = 1
    dtype: str = "float32"
    evaluate_every: int = 0
    save_every: int = 0
    patience: int = 0


def update(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    count: Callable[[Any], int],
    loss: Callable[[nn.Module, Any], Tensor],
    precision: Callable[[], AbstractContextManager] = nullcontext,
    scaler: GradScaler = NO_SCALING,
) -> tuple[float, int]:
    """One optimizer step on a group of batches, with equal weight for every target.

    `count` returns a batch's number of targets, `loss` their summed loss. Returns the mean loss and the number of
    targets over all processes; each process computes its share of every batch. `scaler` scales the loss of a float16
    run against underflow and skips a step whose gradients overflow, in all processes or in none.
    """
    model.train()
    targets = sum(count(batch) for batch in batches)
    total = torch.zeros((), device=next(model.parameters()).device)
    for batch in map(distributed.share, batches):
        if distributed.size() > 1 and len(batch) == 0:  # fewer examples than processes
            continue
        with precision():
            mean = loss(model, batch) / targets
        scaler.scale(mean).backward()
        total += mean.detach()
    total = distributed.sum_gradients(model.parameters(), total)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total.item(), targets


def step_line(progress: Progress, measured: dict[str, float]) -> str:
    """The default line printed at an evaluation."""
    shown = {name: value for name, value in measured.items() if isinstance(value, float) and name != "score"}
    return f"step {progress.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items())


class Trainer:
    """Trains `model` on `workload`; writes `last.pt` (the state to resume from) and `best.pt` to `folder`.

    The schedule scales each group's learning rate in `optimizer`. `identity` describes the run in plain values (model,
    data, seed); a run resumes only with the same identity. `describe` formats the line printed at an evaluation. Every
    `log_every`-th step is logged.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        workload: Workload,
        settings: TrainSettings,
        folder: Path,
        device: torch.device,
        log: RunLog,
        identity: dict[str, Any],
        describe: Callable[[Progress, dict[str, float]], str] = step_line,
        log_every: int = 1,
    ):
        self.model, self.optimizer, self.workload = model, optimizer, workload
        self.settings, self.folder, self.device = settings, folder, device
        self.log = log if distributed.is_first() else RunLog(None)
        self.identity, self.describe, self.log_every = identity | asdict(settings), describe, log_every
        self.dtype = DTYPES[settings.dtype]
        self.scaler = GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.progress = Progress()
        self.saved = False  # this run's state is in `state_path`
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        batches = map(workload.batches_per_epoch, range(settings.epochs))
        self.total_steps = sum(-(-count // settings.accumulation) for count in batches)
        distributed.own_random_state()

    @property
    def best_path(self) -> Path:
        """The file of the best checkpoint."""
        return self.folder / getattr(self.workload, "best_name", "best.pt")

    @property
    def state_path(self) -> Path:
        """The file of the state to resume from."""
        return self.folder / "last.pt"

    def fit(self) -> Progress:
        """Trains to the end, or until patience runs out; returns the final progress.

        Raises NotFiniteError at the first loss that is not finite, before it can be saved.
        """
        if not self.saved:
            self.log.begin()
        distributed.same_weights(self.model)
        clocks = time.perf_counter() - self.progress.seconds, time.process_time() - self.progress.processor_seconds
        begin, silent = self.progress.step, not distributed.is_first()
        bar = tqdm(total=self.total_steps, initial=begin, desc="training", unit="step", disable=silent)
        with bar, closing(self.log):
            self._run(bar, *clocks)
        self.save()
        return self.progress

    def _run(self, bar: tqdm, started: float, processor_started: float) -> None:
        while self.progress.epoch < self.settings.epochs and not self._ended():
            batches = self.workload.epoch(self.progress.epoch)
            while self.progress.place < len(batches) and not self._ended():
                group = batches[self.progress.place : self.progress.place + self.settings.accumulation]
                loss, rate = self.step(group)
                self.progress.place += len(group)
                self.progress.seconds = time.perf_counter() - started
                self._show(bar, loss, rate)
                self._after_step(self.progress.place >= len(batches), bar, processor_started)
            if self.progress.place >= len(batches):
                self.progress.epoch, self.progress.place = self.progress.epoch + 1, 0
        if self.progress.skipped:
            bar.write(f"{self.progress.skipped} of {self.progress.step} steps overflowed float16 and were skipped")

    def _ended(self) -> bool:
        return self.progress.done or 0 < self.settings.patience <= self.progress.stale

    def _show(self, bar: tqdm, loss: float, rate: float) -> None:
        progress = self.progress
        if progress.step % self.log_every == 0:
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}")
            float16 = {"scale": self.scaler.get_scale(), "skipped": progress.skipped}
            self.log.write(
                step=progress.step, epoch=progress.epoch, loss=round(loss, 5), lr=rate,
                **(float16 if self.scaler.is_enabled() else {}),
            )  # fmt: skip

    def step(self, batches: Sequence[Any]) -> tuple[float, float]:
        """One update on a group of batches; returns the mean loss and the learning rate."""
        settings, progress = self.settings, self.progress
        factor = rate_factor(
            progress.step, self.total_steps, settings.warmup_steps, settings.schedule, settings.rate_floor
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        scale = self.scaler.get_scale()
        if compiled := getattr(self.workload, "compiled_update", None):
            total, targets = compiled(batches)
        else:
            total, targets = update(
                self.model, self.optimizer, batches, self.workload.count, self.workload.loss,
                lambda: autocast(self.device, self.dtype), self.scaler,
            )  # fmt: skip
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0  # skipped, with a lower scale next
        if not (math.isfinite(total) or scaled):
            raise self._not_finite(f"the loss is {total}", progress.step + 1)
        progress.skipped += self.scaler.get_scale() < scale
        progress.step += 1
        progress.targets += round(targets)  # weighted examples are not whole numbers
        if after := getattr(self.workload, "after_update", None):
            after(progress.step, self.total_steps)
        return total, self.peak_rates[0] * factor

    def _check_weights(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._not_finite("a weight is not finite", self.progress.step)

    def _not_finite(self, what: str, step: int) -> NotFiniteError:
        rate = self.optimizer.param_groups[0]["lr"]
        kept = f"; {self.state_path} holds the last good state" if self.saved else ""
        return NotFiniteError(
            f"{what} at step {step} with learning rate {rate:.2e}: try a lower --lr, a longer --warmup_steps or "
            f"--max_grad_norm 1{kept}"
        )

    def _after_step(self, epoch_ends: bool, bar: tqdm, processor_started: float) -> None:
        run_ends = self.progress.step == self.total_steps
        measures = run_ends or self._due(self.settings.evaluate_every, epoch_ends)
        saves = self._due(self.settings.save_every, epoch_ends)
        if measures or saves:  # reading the processor's clock can take a millisecond: longer than an adder's step
            self.progress.processor_seconds = time.process_time() - processor_started
        if measures:
            self._evaluate(bar)
        if saves:
            self.save()

    def _due(self, every: int, epoch_ends: bool) -> bool:
        return self.progress.step % every == 0 if every else epoch_ends

    def _evaluate(self, bar: tqdm) -> None:
        self._check_weights()
        self._gather_tally()
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            measured = distributed.gather(self.workload.evaluate(self.model))[0]
        progress = self.progress
        self.log.write(
            step=progress.step, epoch=progress.epoch, targets=progress.targets, seconds=progress.seconds,
            processor_seconds=progress.processor_seconds, **measured,
        )  # fmt: skip
        bar.write(self.describe(progress, measured))
        if not math.isfinite(measured["score"]):
            raise self._not_finite("the model's score is not finite", progress.step)
        if measured["score"] > progress.best_score:
            progress.best_score, progress.stale = measured["score"], 0
            if distributed.is_first():
                self.workload.save_best(self.model, self.best_path)
        else:
            progress.stale += 1
        progress.done = bool(measured.get("done", False))

    def _gather_tally(self) -> None:
        """Sums the tallies of all processes in the first."""
        tally: dict[str, float] = getattr(self.workload, "tally", {})
        everyone = distributed.gather(dict(tally))
        for name in tally:
            tally[name] = sum(one[name] for one in everyone) if distributed.is_first() else 0.0

    def save(self) -> None:
        """Writes the state to resume from, atomically. Raises NotFiniteError for a model that is broken."""
        self._check_weights()
        self._gather_tally()
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {"format": STATE_FORMAT, "identity": self.identity, "progress": asdict(self.progress)}
        state |= {"tally": dict(getattr(self.workload, "tally", {})), "random": distributed.gather(random)}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["scaler"] = self.scaler.state_dict()
        if tensors := getattr(self.workload, "tensors", {}):
            state["tensors"] = tensors
        if distributed.is_first():
            save_plain(state, self.state_path)
        self.saved = True

    def resume(self) -> None:
        """Restores the saved state exactly. Raises CheckpointError if it is damaged or belongs to another run."""
        state = read_state(self.state_path, self.identity, self.best_path.name)
        try:
            self._restore(state)
        except DAMAGED as error:
            raise damaged(self.state_path, error) from None
        self.progress = state["progress"]
        self.log.cut_after(self.progress.step)
        self.saved = True

    def _restore(self, state: dict[str, Any]) -> None:
        """Weights, moments, loss scale, random state and tally; the optimizer's settings are those of this run."""
        self.model.load_state_dict(state["model"])
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise ValueError("its weights are not finite")
        check_moments(state["optimizer"]["state"], self.optimizer)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        restore_tensors(getattr(self.workload, "tensors", {}), state["tensors"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        random = state["random"][distributed.rank()]
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)
        if state["tally"] and distributed.is_first():
            self.workload.tally.update({name: float(state["tally"][name]) for name in self.workload.tally})
