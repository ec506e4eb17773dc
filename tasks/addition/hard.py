"""Hard problems of an adder: a pool that every look at the training problems refills, and the weights that erred least.

    python addition_run.py train --hard 0.3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer

from tasks.addition.sampling import Problems, generator_of

FIRST_LOOK, DOUBLINGS = 2**20, 2  # problems of the first looks, and how often a look without a mistake doubles them
POOL = 2**12  # hard problems that are kept
MARGIN_BATCH = 65536  # problems per call in a look
FALLEN = 10  # times as many mistakes as the best weights made, and as one in ten thousand: a model has fallen


@dataclass(frozen=True)
class Look:
    """How many of the problems drawn, and of the pool, are answered wrong."""

    wrong: int
    problems: int

    def rate(self) -> float:
        """Mistakes per problem, by Laplace's rule: (wrong + 1) / problems. So a larger look without one counts more."""
        return (self.wrong + 1) / self.problems


class HardProblems:
    """The training problems of the smallest margins, and the best weights of one model.

    `groups` are places of training problems, each (n,) int32, from which half of every look is drawn.
    """

    def __init__(self, training: Problems, groups: Sequence[Tensor], model: nn.Module, seed: int):
        self.training, self.groups, self.seed = training, groups, seed
        self.pool = torch.randint(len(training), (POOL,), generator=generator_of(seed))
        self.best, self.lowest_rate = parameters_to_vector(model.parameters()).detach(), torch.ones(1)
        self.looks, self.doublings = (torch.zeros(1, dtype=torch.int64) for _ in range(2))
        self.optimizer: Optimizer | None = None  # loses its momentum when the model gets its best weights back

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs: all change in place."""
        names = ("pool", "best", "lowest_rate", "looks", "doublings")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def look(self, margins_of: Callable[[Tensor, Tensor], Tensor]) -> Look:
        """Fills the pool with the smallest margins among itself and random training problems: hard-example mining.

        `margins_of` takes operands a and b, each (n,) int64. Every look draws others, so that the rarest mistakes
        gather over the run, and the batches read from now on have them (Shrivastava et al. 2016, over a pool). A look
        without a mistake makes the later ones larger.
        """
        generator = generator_of(self.seed * 1000 + int(self.looks))
        size = FIRST_LOOK << int(self.doublings)
        drawn = torch.randint(len(self.training), (size,), generator=generator)
        for index, group in enumerate(self.groups):
            part = drawn[index :: 2 * len(self.groups)]
            part.copy_(group[torch.randint(len(group), (len(part),), generator=generator)])
        drawn = torch.cat([self.pool, drawn]).unique()
        margins = []
        for part in drawn.split(MARGIN_BATCH):
            margins.append(margins_of(self.training.a[part].long(), self.training.b[part].long()).cpu())
        leads = torch.cat(margins)
        hardest = drawn[leads.topk(min(POOL, len(leads)), largest=False).indices]
        self.pool[: len(hardest)] = hardest
        found = Look(int((leads < 0).sum()), size)
        self.looks += 1
        self.doublings += int(not found.wrong and int(self.doublings) < DOUBLINGS)
        return found

    @torch.no_grad()
    def keep_or_return(self, model: nn.Module, found: Look) -> bool:
        """Keeps the model's weights if none erred less, or gives it the best ones back if it has fallen; True if so.

        Muon's steps do not get smaller as the gradient does: a model that is always right can be lost for good.
        """
        if found.rate() <= float(self.lowest_rate):
            self.best.copy_(parameters_to_vector(model.parameters()))
            self.lowest_rate.fill_(found.rate())
        if found.rate() <= FALLEN * (float(self.lowest_rate) + 1e-4):
            return False
        vector_to_parameters(self.best.clone(), model.parameters())
        for state in self.optimizer.state.values() if self.optimizer else ():
            for name in {"exp_avg", "momentum"} & state.keys():
                state[name].zero_()  # they point where the lost weights were going
        return True
