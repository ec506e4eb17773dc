"""`--option soup`: averages the weights of several fine-tuned classifiers (Wortsman et al. 2022, model soups).

    python run_llama.py --option soup --checkpoint runs/RUN1/best.pt runs/RUN2/best.pt --dev data/cfimdb-dev.txt

The uniform soup is the mean of all models. The greedy soup takes the models in the order of their dev accuracy and
keeps each one that does not lower the accuracy of the mean (recipe 1). Both are ordinary checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import CheckpointError
from engine.io.files import write_json
from engine.train.averaging import State, weighted_mean
from tasks.methods.flags import SoupSettings
from tasks.methods.measure import accuracies, read_sets
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier, save_classifier
from utils import set_up

COMMON = ("label_names", "vocabulary", "task", "question", "max_sentence_len")  # what members of a soup must share


@dataclass
class Members:
    """The classifiers of a soup: their paths and weights, what they share, and a model to put a mean into."""

    paths: list[Path]
    states: list[State]
    model: LlamaEmbeddingClassifier
    info: ClassifierInfo

    def mean(self, indices: Sequence[int]) -> LlamaEmbeddingClassifier:
        """The model whose weights are the mean of these members'; of one member, exactly its own."""
        self.model.load_state_dict(weighted_mean([self.states[index] for index in indices], [1.0] * len(indices)))
        return self.model


def prepare(settings: SoupSettings) -> Callable[[], None]:
    """Reads the classifiers and the sets; returns the function that mixes. Raises ValueError or OSError."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    members = read_members([Path(path) for path in settings.checkpoint])
    info = members.info
    if settings.batch_size:
        info = dataclasses.replace(info, batch_size=settings.batch_size)
    sets = read_sets(settings.dev, settings.shifted, members.paths[0], members.model, info)
    Path(settings.save_dir).mkdir(parents=True, exist_ok=True)

    def measure(indices: Sequence[int]) -> dict[str, float]:
        return accuracies(members.mean(indices), info, sets, device)

    return lambda: make_soups(members, measure, Path(settings.save_dir))


def read_members(paths: Sequence[Path]) -> Members:
    """The classifiers at `paths`. Raises CheckpointError if one differs from the first in more than its weights."""
    states, first = [], None
    for path in paths:
        model, info = load_classifier(path)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        first = first or (model, info)
        for name, own, other in _descriptions((model, info), first):
            if own != other:
                raise CheckpointError(f"{path} and {paths[0]} cannot be averaged: their {name} differs")
    assert first is not None
    return Members(list(paths), states, *first)


def _descriptions(one: tuple, other: tuple) -> list[tuple[str, object, object]]:
    """(name, value of one, value of the other) of what two classifiers must share."""
    pairs = [(name, getattr(one[1], name), getattr(other[1], name)) for name in COMMON]
    return [*pairs, ("pooling", one[0].pooling, other[0].pooling),
            ("configuration", one[0].llama.config, other[0].llama.config)]  # fmt: skip


def greedy(dev: Sequence[float], measure: Callable[[Sequence[int]], float]) -> list[int]:
    """The members of the greedy soup (Wortsman et al. 2022, recipe 1), in the order in which they were added.

    `dev` holds the accuracy of each member, and `measure` returns the accuracy of the mean of some members.
    """
    order = sorted(range(len(dev)), key=lambda index: -dev[index])
    kept, best = order[:1], dev[order[0]]
    for index in order[1:]:
        if (accuracy := measure([*kept, index])) >= best:
            kept, best = [*kept, index], accuracy
    return kept


def make_soups(members: Members, measure: Callable[[Sequence[int]], dict[str, float]], folder: Path) -> None:
    """Prints the accuracies of the members and of both soups, and writes these, the soups and their models."""
    everyone = list(range(len(members.paths)))
    own = [measure([index]) for index in everyone]
    soups = {"uniform": everyone, "greedy": greedy([each["dev"] for each in own], lambda some: measure(some)["dev"])}
    rows = [{"model": str(path), "accuracy": each} for path, each in zip(members.paths, own, strict=True)]
    for name, indices in soups.items():
        accuracy = measure(indices)
        save_classifier(folder / f"{name}.pt", members.mean(indices), members.info)
        chosen = [str(members.paths[index]) for index in indices]
        rows.append({"model": str(folder / f"{name}.pt"), "soup": name, "of": chosen, "accuracy": accuracy})
    for row in rows:
        size = f" ({row['soup']} soup of {len(row['of'])})" if "soup" in row else ""
        print(f"{row['model']}{size}: " + ", ".join(f"{name} {value:.3f}" for name, value in row["accuracy"].items()))
    write_json(folder / "soup.json", {"rows": rows})
    print(f"figures in {folder / 'soup.json'}")
