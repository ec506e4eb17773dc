"""Predicted labels, their accuracy, macro-F1 and confusion matrix, and the files that hold them.

    python run_llama.py --option prompt --dev data/reviews-dev.txt --test data/reviews-test.txt \\
        --label-names data/reviews-label-mapping.json --dev_out reviews-dev-prompting-output.txt \\
        --test_out reviews-test-prompting-output.txt
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import Tensor, nn
from tqdm import tqdm

from engine.io.files import write_json, write_text
from engine.train import distributed
from tasks import plots
from tasks.sentiment.data import Examples, SentenceBatches

Labels = Sequence[int] | np.ndarray


def predict_labels(
    model: nn.Module, batches: SentenceBatches, device: torch.device, in_file_order: bool = False
) -> np.ndarray:
    """The most likely label (examples,) of every example, in the order of the file.

    Batches hold sentences of similar length or, with `in_file_order`, neighbours in the file, which matters to a
    model that reads padding. Several processes share the batches; each returns all predictions.
    """
    predictions = np.zeros(len(batches.examples), dtype=np.int64)
    for batch, scores in scored_batches(model, batches, device, in_file_order):
        predictions[batch] = scores.argmax(dim=1).cpu().numpy()
    return distributed.sum_array(predictions)


def scored_batches(
    model: nn.Module, batches: SentenceBatches, device: torch.device, in_file_order: bool = False
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """This process's batches, as example numbers (rows,), with the model's scores (rows, labels)."""
    model.eval()
    own = distributed.share(batches.in_file_order() if in_file_order else batches.longest_first())
    for batch in tqdm(own, desc="eval", leave=False, disable=not distributed.is_first()):
        with torch.inference_mode():
            scores = model(batches.tensors(batch)[0].to(device))
        yield batch, scores


def accuracy_and_f1(labels: Sequence[int], predictions: Labels, num_labels: int) -> dict[str, float]:
    """Accuracy and macro-F1: the mean over all labels of the mapping; a label that never occurs counts 0."""
    names = range(num_labels)
    return {
        "acc": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, labels=names, average="macro", zero_division=0.0)),
    }


def confusion_counts(labels: Sequence[int], predictions: Labels, num_labels: int) -> list[list[int]]:
    """Counts [true label][predicted label]."""
    return confusion_matrix(labels, predictions, labels=range(num_labels)).tolist()


def write_predictions(path: str | Path, examples: Examples, predictions: np.ndarray, suffix: str = "") -> None:
    """Writes the course's file: `{prediction} ||| {sentence}` per line, with the prompt's question if given."""
    end = f" {suffix}" if suffix else ""
    rows = zip(predictions, examples.sentences, strict=True)
    write_text(path, "".join(f"{prediction} ||| {sentence}{end}\n" for prediction, sentence in rows))


def report_split(
    split: str, examples: Examples, predictions: np.ndarray, label_names: Sequence[str], folder: Path, title: str
) -> tuple[list[str], dict[str, float]]:
    """The lines to print about a split, and its figures by name. Writes the confusion matrix as PNG and JSON.

    Placeholder labels give no figures, and one line that says so. `title` and the accuracy head the drawn matrix.
    """
    if examples.placeholder:
        line = f"{split}: every label of {examples.path} is {examples.labels[0]}, a placeholder: the predictions are "
        return [line + f"written, no {split} accuracy is claimed"], {}
    figures = accuracy_and_f1(examples.labels, predictions, len(label_names))
    matrix = confusion_counts(examples.labels, predictions, len(label_names))
    heading = f"{title}: accuracy {figures['acc']:.3f}"
    plots.confusion_matrix(matrix, label_names, folder / f"{split}-confusion.png", heading)
    write_json(folder / f"{split}-confusion.json", {"names": list(label_names), "matrix": matrix}, indent=None)
    lines = [f"{split} acc :: {figures['acc']:.3f}", f"{split} macro-F1 :: {figures['macro_f1']:.3f}"]
    return lines, {f"{split}_{name}": value for name, value in figures.items()}


def seeds_summary(results: Sequence[dict[str, float]], seeds: Sequence[int]) -> list[str]:
    """One line per figure: mean and sample standard deviation over the seeds."""
    lines = [f"over {len(seeds)} seeds ({', '.join(map(str, seeds))}), mean ± standard deviation:"]
    for name in results[0]:
        values = [result[name] for result in results]
        shown = name.replace("_acc", " acc").replace("_macro_f1", " macro-F1")
        lines.append(f"{shown} :: {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
    return lines
