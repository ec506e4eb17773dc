"""Addition as a workload of the trainer: problems as tensors, the loss on the answer, dev loss and accuracy.

    python addition_run.py train --epochs 1
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.io.checkpoint import save_checkpoint
from llama import Llama
from tasks.addition import native_step
from tasks.addition.averaging import Averaging
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
from tasks.addition.hard import HardProblems, Look
from tasks.addition.sampling import Batches, Problems, Shares, easy_problems, generator_of, travelling

Model = SideBySide | Llama
EVALUATION_BATCH = 512
GROUP = 2048  # problems of one kind that are measured


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
        shares: Shares | None = None,
        average_from: float | None = None,
    ):
        shares = shares or Shares()
        self.training, self.dev, self.chunk, self.seed = training, dev, chunk, seed
        self.last_epoch = epochs - 1
        self.surplus = max(0, epochs * len(training) - most_examples)
        self.stop_when_perfect, self.config = stop_when_perfect, model.config
        self.shares, self.examples = shares, min(most_examples, epochs * len(training))
        self.travelling = travelling(training, shares.nines_by) if shares.nines or shares.nines_end else []
        self.easy = easy_problems(training) if shares.zeros else torch.empty(0, dtype=torch.int32)
        self.device = next(model.parameters()).device
        self.losses_of, self.measured_of, self.margins_of = summed_losses, measured, smallest_margins
        self.hard = HardProblems(training, self.travelling, model, seed) if self.shares.hard else None
        self.averaging = Averaging(model, average_from) if average_from is not None else None
        self.tensors = (self.hard.tensors if self.hard else {}) | (self.averaging.tensors if self.averaging else {})
        self.compiled_update: Callable[[Sequence[Tensor]], tuple[float, int]] | None = None
        self.after_update: Callable[[int, int], None] | None = self.averaging.after_update if self.averaging else None
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
            generator = generator_of(self.seed * 1000 + epoch)
            order = torch.randperm(len(self.training), generator=generator, dtype=torch.int32)
            order = self._with_zeros(self._with_nines(order, epoch, generator), epoch, generator)
            self._drawn = epoch, self._with_hard(order, generator)
        return Batches(self._drawn[1][: self._examples_in(epoch)], self.chunk, self.hard.pool if self.hard else None)

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
        """Replaces a share of the order with places of the pool, whose problems are only known when they are read."""
        if self.hard:
            replaced = torch.rand(len(order), generator=generator) < self.shares.hard
            places = torch.randint(len(self.hard.pool), (int(replaced.sum()),), generator=generator, dtype=torch.int32)
            order[replaced] = -1 - places
        return order

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

        The best seed makes no mistake, and among equals has the lowest loss. With `hard`, mistakes among the training
        problems that were looked at count before the loss: dev misses what is rarer than one in ten thousand. A model
        that has fallen far behind its best weights gets them back (`returned`).
        """
        if self.averaging:
            self.averaging.take_mean()
        losses, right = measure(model, self.dev, self.measured_of)
        accuracies = [count / len(self.dev) for count in right]
        scores = [
            1 / (1 + loss) if count == len(self.dev) else -loss for loss, count in zip(losses, right, strict=True)
        ]
        self.best_seed = max(range(len(scores)), key=scores.__getitem__)
        found = {"held_out_loss": losses[self.best_seed], "accuracy": accuracies[self.best_seed]}
        if len(scores) > 1:
            found |= {"seed_losses": [round(loss, 6) for loss in losses], "seed_accuracies": accuracies}
        if self.hard:
            look = self._look(model)
            found |= {"wrong_looked_at": look.wrong, "looked_at": look.problems}
            scores = [-look.rate() - 1e-9 * losses[0]]  # among equals the lowest loss
            if self.hard.keep_or_return(model, look):
                found["returned"] = True
        done = self.stop_when_perfect and max(right) == len(self.dev)
        return found | {"best_seed": self.best_seed, "score": max(scores), "done": done}

    def _look(self, model: Model) -> Look:
        return self.hard.look(lambda a, b: self.margins_of(model, a.to(self.device), b.to(self.device)))

    def look_first(self, model: Model) -> None:
        """Before the first step, with `hard`: the model's hard problems, and its weights as the best so far."""
        if self.hard:
            self.hard.keep_or_return(model, self._look(model))

    def worst_group_losses(self, model: Model) -> list[float]:
        """The largest loss of every seed on a group: dev, and the groups of `travelling` in training.

        A low dev loss hides that carries through two columns are guessed: they are few (Sagawa et al. 2020).
        """
        chains = self.travelling or travelling(self.training, self.shares.nines_by)
        groups = [self.dev, *(self.training.at(chain[:GROUP].long()) for chain in chains)]
        losses = [measure(model, group, self.measured_of)[0] for group in groups]
        return [max(of_seed) for of_seed in zip(*losses, strict=True)]

    def save_best(self, model: Model, path: Path) -> None:
        """The best seed's model."""
        save_seed(model, self.best_seed, path, self.seed)


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
