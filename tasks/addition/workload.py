"""Addition as a workload of the trainer: problems as tensors, the loss on the answer, dev loss and accuracy.

    python addition_run.py train --epochs 1
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.io.checkpoint import save_checkpoint
from engine.train.trainer import update
from llama import Llama
from tasks.addition import native_step
from tasks.addition.batched_model import (
    ANSWER,
    FIRST,
    SideBySide,
    answer_targets,
    counted,
    one_hot,
    problem_tokens,
    token_losses,
)
from tasks.addition.problems import EQUALS, IGNORED, pair_number

Model = SideBySide | Llama
EVALUATION_BATCH = 512
CANDIDATES, HARD = 2**20, 2**12  # problems looked at for hard ones, and those kept
MARGIN_BATCH = 65536  # problems per call in a look for hard ones


@dataclass(frozen=True)
class Problems:
    """Operands a and b, each (n,) int16 on the CPU."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Problems:
        """From operands as `sample_problems` returns them."""
        return cls(torch.from_numpy(a.astype(np.int16)), torch.from_numpy(b.astype(np.int16)))

    @classmethod
    def of_pairs(cls, pairs: list[tuple[int, int]]) -> Problems:
        """From pairs (a, b)."""
        return cls.of(*np.array(pairs).T)

    def __len__(self) -> int:
        return len(self.a)

    def numbers(self) -> np.ndarray:
        """The pair numbers, (n,) int64."""
        return pair_number(self.a.numpy().astype(np.int64), self.b.numpy().astype(np.int64))

    def rows(self, index: Tensor, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Operands at these indices as (size,) int64, padded with 1000+1000, and weights: 1, or 0 for padding.

        All batches have one size, so that the step is compiled once.
        """
        operands = []
        for numbers in (self.a, self.b):
            row = torch.full((size,), 1000)
            row[: len(index)] = numbers[index]
            operands.append(row.to(device))
        weights = (torch.arange(size) < len(index)).float()
        return operands[0], operands[1], weights.to(device)


class Batches(Sequence):
    """An epoch's problem indices in chunks: item i is (size,) int64; the last chunk may be shorter.

    In `order`, −1 − i stands for what is at place i of `hard` when the chunk is read.
    """

    def __init__(self, order: Tensor, size: int, hard: Tensor):
        self.order, self.size, self.hard = order, size, hard

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        chunk = self.order[place * self.size : (place + 1) * self.size].long()
        return torch.where(chunk < 0, self.hard[-1 - chunk.clamp(max=-1)], chunk) if len(self.hard) else chunk


@dataclass(frozen=True)
class Shares:
    """Shares of training examples that are drawn from special problems: long carries, easy ones at first, hard ones.

    The share `nines` changes linearly to `nines_end` over the run (None: it stays). The share `zeros` falls linearly to
    none over `zeros_until` of the run. Hard are the training problems that the model answers wrong or nearly wrong.
    """

    nines: float = 0.0
    nines_end: float | None = None
    zeros: float = 0.0
    zeros_until: float = 0.5
    hard: float = 0.0


class AdditionWorkload:
    """Trains on `training` for `epochs` and measures on `dev`, `chunk` problems at a time.

    The last epoch ends when `most_examples` have been seen. `model` is a `SideBySide` or a plain `Llama`.
    """

    best_name = "best_model.pth"

    def __init__(
        self,
        model: Model,
        training: Problems,
        dev: Problems,
        chunk: int,
        epochs: int,
        most_examples: int,
        seed: int,
        stop_when_perfect: bool = False,
        shares: Shares = Shares(),
    ):
        self.training, self.dev, self.chunk, self.seed = training, dev, chunk, seed
        self.last_epoch = epochs - 1
        self.surplus = max(0, epochs * len(training) - most_examples)
        self.stop_when_perfect, self.config = stop_when_perfect, model.config
        self.shares, self.examples = shares, min(most_examples, epochs * len(training))
        self.travelling = travelling(training) if shares.nines or shares.nines_end else []
        self.easy = easy_problems(training) if shares.zeros else torch.empty(0, dtype=torch.int32)
        self.device = next(model.parameters()).device
        self.losses_of, self.measured_of, self.margins_of = summed_losses, measured, smallest_margins
        self.hard = torch.randint(len(training), (HARD if shares.hard else 0,), generator=_generator(seed))
        self.tensors = {"hard": self.hard, "looks": torch.zeros(1, dtype=torch.int64)} if shares.hard else {}
        self.compiled_update: Callable[[Sequence[Tensor]], tuple[float, int]] | None = None
        self.after_update: Callable[[int, int], None] | None = None
        self._drawn: tuple[int, Tensor] | None = None
        self.best_seed = 0

    def compile_step(self, model: Model) -> native_step.NativeStep | None:
        """Compiles the step for `model`, in C++ (which is returned) or with torch; if both fail, one line says so."""
        if isinstance(model, SideBySide) and native_step.supported(self.config, self.device):
            try:
                native = native_step.NativeStep(model)
            except RuntimeError as error:
                print(f"the C++ step cannot be used here, torch compiles its own ({error})")
            else:
                self.losses_of, self.measured_of, self.margins_of = native.losses, native.measured, native.margins
                return native
        self._compile_with_torch(model)
        return None

    def _compile_with_torch(self, model: Model) -> None:
        sample = self.training.rows(torch.arange(0), self.chunk, self.device)
        compiled = torch.compile(summed_losses, dynamic=False), torch.compile(measured, dynamic=False)
        try:
            compiled[0](model, *sample).sum().backward()
        except Exception as error:  # a machine without a compiler raises many kinds of errors
            print(f"the step is not compiled here and runs slower ({type(error).__name__})")
            return
        finally:
            model.zero_grad(set_to_none=True)
        self.losses_of, self.measured_of = compiled

    def batches_per_epoch(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return -(-self._examples_in(epoch) // self.chunk)

    def _examples_in(self, epoch: int) -> int:
        return len(self.training) - (self.surplus if epoch == self.last_epoch else 0)

    def epoch(self, epoch: int) -> Batches:
        """All training problems in the epoch's random order."""
        if self._drawn is None or self._drawn[0] != epoch:
            generator = _generator(self.seed * 1000 + epoch)
            order = torch.randperm(len(self.training), generator=generator, dtype=torch.int32)
            order = self._with_zeros(self._with_nines(order, epoch, generator), epoch, generator)
            self._drawn = epoch, self._with_hard(order, generator)
        return Batches(self._drawn[1][: self._examples_in(epoch)], self.chunk, self.hard)

    def _with_nines(self, order: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        """Replaces a share of the order with problems of `travelling`, its groups equally likely."""
        if not self.travelling:
            return order
        share = self.shares.nines
        if self.shares.nines_end is not None:
            share = share + (self.shares.nines_end - share) * self._progress(order, epoch)
        replaced = torch.rand(len(order), generator=generator) < share
        group = torch.randint(len(self.travelling), (len(order),), generator=generator)
        for index, places in enumerate(self.travelling):
            mine = replaced & (group == index)
            order[mine] = places[torch.randint(len(places), (int(mine.sum()),), generator=generator)]
        return order

    def _with_zeros(self, order: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        """Replaces a falling share of the order with easy problems."""
        if not len(self.easy) or not self.shares.zeros:
            return order
        share = self.shares.zeros * (1 - self._progress(order, epoch) / self.shares.zeros_until)
        replaced = torch.rand(len(order), generator=generator) < share
        order[replaced] = self.easy[torch.randint(len(self.easy), (int(replaced.sum()),), generator=generator)]
        return order

    def _with_hard(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Replaces a share of the order with places of `hard`, whose problems are only known when a batch is read."""
        if len(self.hard):
            replaced = torch.rand(len(order), generator=generator) < self.shares.hard
            places = torch.randint(len(self.hard), (int(replaced.sum()),), generator=generator, dtype=torch.int32)
            order[replaced] = -1 - places
        return order

    @torch.no_grad()
    def look_for_hard(self, model: Model) -> None:
        """Fills `hard` with the smallest margins among itself and random training problems: hard-example mining.

        Every look draws others, so that the rarest mistakes gather over the run. The batches read from now on have them
        (Shrivastava et al. 2016, over a pool).
        """
        looks = self.tensors["looks"]
        drawn = torch.randint(len(self.training), (CANDIDATES,), generator=_generator(self.seed * 1000 + int(looks)))
        drawn = torch.cat([self.hard, drawn]).unique()
        margins = []
        for part in drawn.split(MARGIN_BATCH):
            a, b = (numbers[part].long().to(self.device) for numbers in (self.training.a, self.training.b))
            margins.append(self.margins_of(model, a, b).cpu())
        hardest = drawn[torch.cat(margins).argsort()[: len(self.hard)]]
        self.hard[: len(hardest)] = hardest
        looks += 1

    def _progress(self, order: Tensor, epoch: int) -> Tensor:
        """Share of the run that has been seen before each example of the epoch, (n,)."""
        return (epoch * len(order) + torch.arange(len(order))) / self.examples

    def count(self, batch: Tensor) -> int:
        """Number of targets: the answers' digits and their ends."""
        carried = self.training.a[batch] + self.training.b[batch] >= 10000
        return (ANSWER - 1) * len(batch) + int(carried.sum())

    def loss(self, model: Model, batch: Tensor) -> Tensor:
        """Summed cross-entropy in nats. For several seeds: the mean as a value, with the gradient of the sum.

        So every seed learns as if it were trained separately.
        """
        losses = self.losses_of(model, *self.training.rows(batch, self.chunk, self.device))
        total = losses.sum()
        return total + (losses.mean() - total).detach()

    def evaluate(self, model: Model) -> dict[str, float | list[float] | bool]:
        """Dev loss per token and accuracy of every seed; the best seed gives the score.

        The best seed makes no mistake, and among equals has the lowest loss.
        """
        losses, right = measure(model, self.dev, self.measured_of)
        accuracies = [count / len(self.dev) for count in right]
        scores = [
            1 / (1 + loss) if count == len(self.dev) else -loss for loss, count in zip(losses, right, strict=True)
        ]
        self.best_seed = max(range(len(scores)), key=scores.__getitem__)
        found = {"held_out_loss": losses[self.best_seed], "accuracy": accuracies[self.best_seed]}
        if len(scores) > 1:
            found |= {"seed_losses": [round(loss, 6) for loss in losses], "seed_accuracies": accuracies}
        if len(self.hard):
            self.look_for_hard(model)
        done = self.stop_when_perfect and max(right) == len(self.dev)
        return found | {"best_seed": self.best_seed, "score": max(scores), "done": done}

    def save_best(self, model: Model, path: Path) -> None:
        """The best seed's model."""
        save_seed(model, self.best_seed, path, self.seed)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def travelling(problems: Problems) -> list[Tensor]:
    """Indices (n,) int32 of the problems with one, two and three lower columns that sum to nine: long carry chains.

    Empty groups are left out.
    """
    a, b = problems.a, problems.b
    columns = sum((a // place % 10 + b // place % 10 == 9).int() for place in (1, 10, 100))
    groups = [torch.nonzero(columns == count)[:, 0].int() for count in (1, 2, 3)]
    return [group for group in groups if len(group)]


def easy_problems(problems: Problems) -> Tensor:
    """Indices (n,) int32 of the problems with a zero in each lower column: their lower digits are copied, not added."""
    a, b = problems.a, problems.b
    easy = torch.ones(len(a), dtype=torch.bool)
    for place in (1, 10, 100):
        easy &= (a // place % 10 == 0) | (b // place % 10 == 0)
    return torch.nonzero(easy)[:, 0].int()


def save_seed(model: Model, index: int, path: Path, seed: int) -> None:
    """Writes the model at `index` as an ordinary checkpoint, with the random states that the course's test reads."""
    state = model.state_of(index) if isinstance(model, SideBySide) else model.state_dict()
    save_checkpoint(path, model.config, state, extra=random_states(seed))


def random_states(seed: int) -> dict:
    """States of Python's, NumPy's and torch's generators seeded with `seed`, as plain types and one byte tensor.

    The course's `addition_run.py test` restores them from the checkpoint before it tests.
    """
    name, keys, *rest = np.random.RandomState(seed % 2**32).get_state()
    return {
        "system_rng": random.Random(seed).getstate(),
        "numpy_rng": (name, keys.tolist(), *rest),
        "torch_rng": torch.Generator().manual_seed(seed).get_state(),
    }


def answer_logits(model: Model, a: Tensor, b: Tensor) -> Tensor:
    """Teacher-forced logits at the answer's positions, (seeds or 1, vocab_size, 6, batch)."""
    if isinstance(model, SideBySide):
        return model(a, b)
    hidden = model.hidden_states(problem_tokens(a, b).T)[:, FIRST:]  # (batch, 6, dim)
    return model.output(hidden).permute(2, 1, 0)[None]


def summed_losses(model: Model, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Summed cross-entropy of the answers, (seeds or 1,); `weights` (batch,) is 0 for problems that do not count."""
    return (token_losses(answer_logits(model, a, b), problem_tokens(a, b)) * weights).sum(dim=(1, 2))


def measured(model: Model, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Summed losses and number of right answers, each (seeds or 1,).

    Greedy decoding is right exactly if every teacher-forced argmax is right.
    """
    logits, tokens = answer_logits(model, a, b), problem_tokens(a, b)
    losses = (token_losses(logits, tokens) * weights).sum(dim=(1, 2))
    right = (logits.argmax(dim=1) == answer_targets(tokens)) | ~counted(tokens)
    return losses, (right.all(dim=1) * weights).sum(dim=1)


def smallest_margins(model: Model, a: Tensor, b: Tensor) -> Tensor:
    """Smallest lead of the right token's logit over the best other one at any answer position, (batch,).

    Of the first model where there are several.
    """
    tokens = problem_tokens(a, b)
    logits = answer_logits(model, a, b)[0]  # (vocab, 6, batch)
    chosen = one_hot(answer_targets(tokens), len(logits), torch.bool)
    lead = (logits * chosen).sum(dim=0) - logits.masked_fill(chosen, -torch.inf).amax(dim=0)
    return torch.where(counted(tokens), lead, torch.inf).amin(dim=0)


@torch.no_grad()
def measure(model: Model, problems: Problems, measured_of: Callable = measured) -> tuple[list[float], list[int]]:
    """Loss per target and number of right answers of every seed, over all problems."""
    device = next(model.parameters()).device
    losses = right = 0
    for places in torch.arange(len(problems)).split(EVALUATION_BATCH):
        found = measured_of(model, *problems.rows(places, EVALUATION_BATCH, device))
        losses, right = losses + found[0].double(), right + found[1].double()
    targets = (ANSWER - 1) * len(problems) + int((problems.a + problems.b >= 10000).sum())
    return (losses / targets).tolist(), [int(count) for count in right.tolist()]


def train_one_epoch(model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, device) -> float:
    """The course's epoch: one update per batch (x, y) of the loader; returns the mean batch loss."""
    totals = [
        update(model, optimizer, [(x.to(device), answers_only(x, y).to(device))], _count, _summed_loss)[0]
        for x, y in loader
    ]
    return sum(totals) / len(totals)


@torch.no_grad()
def evaluate_loss(model: nn.Module, loader: Iterable, device) -> float:
    """Mean loss per target over the loader's batches, in evaluation mode."""
    model.eval()
    batches = ((x.to(device), answers_only(x, y).to(device)) for x, y in loader)
    losses = [(_summed_loss(model, batch) / _count(batch)).item() for batch in batches]
    return sum(losses) / len(losses)


def answers_only(x: Tensor, y: Tensor) -> Tensor:
    """The targets y (batch, seqlen) with −1 before the answer: only the answer and its end count."""
    return torch.where((x == EQUALS).cumsum(dim=1) > 0, y, IGNORED)


def _count(batch: tuple[Tensor, Tensor]) -> int:
    return int((batch[1] != IGNORED).sum())


def _summed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, targets = batch
    logits, _ = model(x, targets)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
