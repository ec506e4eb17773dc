"""`--option wise_ft`: interpolates a zero-shot classifier and its fine-tuned form (Wortsman et al. 2022, WiSE-FT).

    python run_llama.py --option wise_ft --checkpoint runs/RUN/best.pt --dev data/cfimdb-dev.txt --shifted reviews.txt

Both ends share every parameter: fine-tuning with `--head label_words` starts from the language model whose head holds
the label words' output rows. θ(α) = (1 − α)·θ_zero-shot + α·θ_fine-tuned (eq. 1). The dev set chooses α; the shifted
sets are only measured.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import CheckpointError
from engine.io.files import write_json
from engine.train.averaging import State, weighted_mean
from llama import from_checkpoint
from tasks.methods.figures import interpolation
from tasks.methods.flags import WiseFtSettings
from tasks.methods.measure import accuracies, read_sets
from tasks.pretrained import choose_path, fitting_tokenizer
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier, read_base, save_classifier
from tasks.sentiment.data import Examples
from utils import set_up


@dataclass
class Ends:
    """The two ends of one line: the states of the zero-shot and of the fine-tuned classifier, and their model."""

    path: Path
    model: LlamaEmbeddingClassifier
    info: ClassifierInfo
    zero_shot: State
    tuned: State

    def at(self, alpha: float) -> LlamaEmbeddingClassifier:
        """The model with θ(α) as its parameters."""
        self.model.load_state_dict(weighted_mean((self.zero_shot, self.tuned), (1.0 - alpha, alpha)))
        return self.model


def prepare(settings: WiseFtSettings) -> Callable[[], None]:
    """Reads the classifiers and all sets; returns the function that measures. Raises ValueError or OSError."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    base = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    lines = [read_ends(Path(path), base, settings) for path in settings.checkpoint]
    first = lines[0]
    info = dataclasses.replace(first.info, tokenizer=Path(settings.tokenizer or first.info.tokenizer))
    sets = read_sets(settings.dev, settings.shifted, first.path, first.model, info)
    Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
    alphas = [step / (settings.points - 1) for step in range(settings.points)]

    def measure() -> None:
        curves = [measure_line(ends, sets, alphas, settings.batch_size, device) for ends in lines]
        report(lines, curves, alphas, Path(settings.save_dir))

    return measure


def read_ends(path: Path, base: Path, settings: WiseFtSettings) -> Ends:
    """A fine-tuned classifier and the zero-shot classifier of the language model at `base` that it started from.

    Raises CheckpointError if the classifier has another kind of head, or belongs to another language model.
    """
    model, info = load_classifier(path)
    if not info.question:
        raise CheckpointError(f"{path} has a head without label words: train it with --head label_words")
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    named = settings.tokenizer or info.tokenizer
    tokenizer = fitting_tokenizer(base, model.llama.config.vocab_size, info.vocabulary, named)
    try:
        model.llama = from_checkpoint(read_base(base, model.llama.config))
    except (ValueError, RuntimeError):
        raise CheckpointError(f"{path} was not trained from {base}: name its language model with "
                              "--pretrained-model-path") from None  # fmt: skip
    model.start_from_label_words([tokenizer.encode(name, bos=False, eos=False) for name in info.label_names])
    zero_shot = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Ends(path, model.eval(), info, zero_shot, tuned)


def measure_line(
    ends: Ends, sets: dict[str, Examples], alphas: Sequence[float], batch_size: int | None, device: torch.device
) -> dict[str, list[float]]:
    """The accuracy of θ(α) on every set, for each α, by the set's name."""
    info = dataclasses.replace(ends.info, batch_size=batch_size or ends.info.batch_size)
    bar = tqdm(alphas, desc=ends.path.parent.name, unit="α")
    points = [accuracies(ends.at(alpha), info, sets, device) for alpha in bar]
    return {name: [point[name] for point in points] for name in sets}


def chosen_alpha(alphas: Sequence[float], dev: Sequence[float]) -> int:
    """The index of the best dev accuracy; of several, the one in their middle."""
    best = [index for index, value in enumerate(dev) if value == max(dev)]
    return best[len(best) // 2]


def report(
    lines: Sequence[Ends], curves: Sequence[dict[str, list[float]]], alphas: Sequence[float], folder: Path
) -> None:
    """Prints the table and writes it, the figure, and the model of the chosen α of every line."""
    indices = [chosen_alpha(alphas, curve["dev"]) for curve in curves]
    rows = []
    for ends, curve, index in zip(lines, curves, indices, strict=True):
        target = folder / f"{ends.path.parent.name or ends.path.stem}-wise_ft.pt"
        save_classifier(target, ends.at(alphas[index]), ends.info)
        rows.append({"checkpoint": str(ends.path), "alpha": alphas[index], "accuracy": curve, "model": target.name})
        print(f"{ends.path}: dev chooses α = {alphas[index]:g}; wrote {target}")
    for name in curves[0]:
        ends_of = {"zero-shot": 0, "fine-tuned": -1}
        figures = {label: [curve[name][at] for curve in curves] for label, at in ends_of.items()}
        figures["chosen α"] = [curve[name][index] for curve, index in zip(curves, indices, strict=True)]
        print(f"{name}: " + ", ".join(f"{label} {_spread(values)}" for label, values in figures.items()))
        gains = [chosen - tuned for chosen, tuned in zip(figures["chosen α"], figures["fine-tuned"], strict=True)]
        print(f"{name}: chosen α against fine-tuned {_spread(gains, error=True)}")
    write_json(folder / "wise_ft.json", {"alphas": list(alphas), "runs": rows})
    shifted = {name for name in curves[0] if name != "dev"}
    if shifted:
        drawn = {name: _mean_line(curves, name) for name in sorted(shifted)}
        middle = sorted(indices)[len(indices) // 2]
        interpolation(drawn, ("zero-shot (α = 0)", "fine-tuned (α = 1)"), middle, folder / "wise_ft.png")
    print(f"table and figure in {folder}" if shifted else f"table in {folder}")


def _mean_line(curves: Sequence[dict[str, list[float]]], name: str) -> list[tuple[float, float]]:
    """(dev accuracy, accuracy on the set) for each α, averaged over the runs."""
    pairs = [list(zip(curve["dev"], curve[name], strict=True)) for curve in curves]
    return [tuple(map(statistics.mean, zip(*points, strict=True))) for points in zip(*pairs, strict=True)]


def _spread(values: Sequence[float], error: bool = False) -> str:
    """Mean ± standard deviation, or ± standard error of the mean; the mean alone of a single value."""
    mean = f"{statistics.mean(values):+.3f}" if error else f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    deviation = statistics.stdev(values)
    return f"{mean} ± {deviation / len(values) ** 0.5 if error else deviation:.3f}"
