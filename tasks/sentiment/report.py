"""What a classifier of sentences predicts and how well: predictions, accuracy, macro-F1, confusion, and their files.

    python run_llama.py --option prompt --dev data/reviews-dev.txt --test data/reviews-test.txt \\
        --label-names data/reviews-label-mapping.json --dev_out reviews-dev-prompting-output.txt \\
        --test_out reviews-test-prompting-output.txt
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn
from tqdm import tqdm

from engine.io.files import write_text
from engine.train import distributed
from tasks import plots
from tasks.sentiment.data import Examples, SentenceBatches


def predict(model: nn.Module, batches: SentenceBatches, device: torch.device, as_filed: bool = False) -> np.ndarray:
    """The likeliest label (examples,) of every example, in the file's order.

    Batches are of like length, or, `as_filed`, of neighbours in the file: that matters to a model which reads
    padding as text. Several processes share the batches, and each of them returns all predictions.
    """
    model.eval()
    predictions = np.zeros(len(batches.examples), dtype=np.int64)
    own = distributed.share(batches.as_filed() if as_filed else batches.in_order())
    with torch.inference_mode():
        for batch in tqdm(own, desc="eval", leave=False, disable=not distributed.is_first()):
            ids, _ = batches.tensors(batch)
            predictions[batch] = model(ids.to(device)).argmax(dim=1).cpu().numpy()
    return distributed.sum_array(predictions)


def measure(examples: Examples, predictions: np.ndarray, num_labels: int) -> dict[str, float]:
    """Accuracy and macro-F1 (the mean over all labels of the mapping; one never seen nor predicted counts 0)."""
    labels = range(num_labels)
    return {
        "acc": float(accuracy_score(examples.labels, predictions)),
        "macro_f1": float(f1_score(examples.labels, predictions, labels=labels, average="macro", zero_division=0.0)),
    }


def write_predictions(path: str | Path, examples: Examples, predictions: np.ndarray, suffix: str = "") -> None:
    """The course's file: `{prediction} ||| {sentence}` a line, the sentence with the prompt's question if any."""
    behind = f" {suffix}" if suffix else ""
    rows = zip(predictions, examples.sentences, strict=True)
    write_text(path, "".join(f"{prediction} ||| {sentence}{behind}\n" for prediction, sentence in rows))


def report(
    split: str, examples: Examples, predictions: np.ndarray, label_names: Sequence[str], folder: Path
) -> tuple[list[str], dict[str, float]]:
    """The lines to print on a split, and its figures by name; the confusion matrix goes to `folder`, drawn and as JSON.

    Placeholder labels give no figure, only the line that says so.
    """
    if examples.placeholder:
        line = f"{split}: every label of {examples.path} is {examples.labels[0]}, a placeholder: the predictions are "
        return [line + f"written, no {split} accuracy is claimed"], {}
    figures = measure(examples, predictions, len(label_names))
    matrix = confusion_matrix(examples.labels, predictions, labels=range(len(label_names)))
    plots.confusion_matrix(matrix.tolist(), label_names, folder / f"{split}-confusion.png")
    counts = {"names": list(label_names), "matrix": matrix.tolist()}  # rows: true labels
    write_text(folder / f"{split}-confusion.json", json.dumps(counts) + "\n")
    lines = [f"{split} acc :: {figures['acc']:.3f}", f"{split} macro-F1 :: {figures['macro_f1']:.3f}"]
    return lines, {f"{split}_{name}": value for name, value in figures.items()}


def seeds_summary(results: Sequence[dict[str, float]], seeds: Sequence[int]) -> list[str]:
    """Mean and sample standard deviation over seeds of every figure, a line each."""
    lines = [f"over {len(seeds)} seeds ({', '.join(map(str, seeds))}), mean ± standard deviation:"]
    for name in results[0]:
        values = [result[name] for result in results]
        shown = name.replace("_acc", " acc").replace("_macro_f1", " macro-F1")
        lines.append(f"{shown} :: {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
    return lines
