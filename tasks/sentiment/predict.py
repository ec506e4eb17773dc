"""`--option predict`: labels and probabilities of new sentences from a trained classifier.

    python run_llama.py --option predict --checkpoint runs/finetune-reviews-0.0003-5-1337/best.pt --text "I loved it."
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from classifier import LlamaEmbeddingClassifier
from engine.io.files import check_readable, decode_text, read_text
from tasks.pretrained import fitting_tokenizer
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier
from tasks.sentiment.data import UNLABELLED, Examples, SentenceBatches, parse_sentences, tokenise
from tasks.sentiment.data_sets import TABLES, read_data_set
from tasks.sentiment.flags import PredictSettings
from tasks.sentiment.huggingface import read_classifier
from tasks.sentiment.report import accuracy_and_f1, confusion_counts, scored_batches
from utils import DTYPES, autocast, set_up

CHUNK = 4096  # sentences that are sorted by length together; their predictions are printed before the next chunk


@dataclass
class Predictor:
    """A trained classifier with everything that prediction needs."""

    model: LlamaEmbeddingClassifier
    label_names: list[str]
    batch_size: int
    dtype: torch.dtype
    device: torch.device

    def probabilities(self, examples: Examples) -> np.ndarray:
        """Probabilities (examples, labels) of tokenised examples, in their order."""
        batches = SentenceBatches(examples, self.batch_size, self.model.pad_id)
        in_file_order = self.model.pooling == "last_column"
        probabilities = np.zeros((len(examples), len(self.label_names)))
        with autocast(self.device, self.dtype):
            for batch, log_probs in scored_batches(self.model, batches, self.device, in_file_order):
                probabilities[batch] = log_probs.double().exp().cpu().numpy()
        return probabilities


def prepare(settings: PredictSettings) -> Callable[[], None]:
    """Loads the classifier and reads the input; returns the function that predicts. Raises ValueError or OSError."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    load = read_classifier if Path(settings.checkpoint).is_dir() else load_classifier
    model, info = load(settings.checkpoint, settings.pretrained_model_path)
    config = model.llama.config
    tokenizer = fitting_tokenizer(
        settings.checkpoint, config.vocab_size, info.vocabulary, settings.tokenizer or info.tokenizer
    )
    sets = read_input(settings, info)
    for examples in sets:
        tokenise(examples, tokenizer, config.max_seq_len, info.max_sentence_len, info.question)
        if examples.truncated:
            print(f"{examples.truncated} of {len(examples)} sentences are cut to fit", file=sys.stderr)
    dtype = DTYPES[settings.dtype or info.dtype]
    batch_size = settings.batch_size or info.batch_size
    predictor = Predictor(model.to(device), list(info.label_names), batch_size, dtype, device)

    def work() -> None:
        for examples in sets:
            predict(predictor, examples, settings.json, named=len(sets) > 1)

    return work


def read_input(settings: PredictSettings, info: ClassifierInfo) -> list[Examples]:
    """The sentences of `--text`, of each `--input` or of standard input, with labels if the input has them."""
    if settings.text is not None:
        if not all(text.strip() for text in settings.text):
            raise ValueError("--text: the sentence is empty")
        sentences = [" ".join(text.split()) for text in settings.text]
        return [Examples(Path("--text"), [UNLABELLED] * len(sentences), sentences)]
    if settings.input is not None:
        return [_read_file(path, info) for path in settings.input]
    if sys.stdin.isatty():
        print("reading sentences from standard input, one per line", file=sys.stderr)
    text = decode_text(sys.stdin.buffer.read(), "standard input")
    return [parse_sentences(text, Path("standard input"), len(info.label_names))]


def _read_file(path: str, info: ClassifierInfo) -> Examples:
    if path.endswith(TABLES):
        return read_data_set(path, info.task, info.label_names)
    return parse_sentences(read_text(check_readable(path)), Path(path), len(info.label_names))


def predict(predictor: Predictor, examples: Examples, as_json: bool, named: bool = False) -> None:
    """Prints one line per sentence and, if the examples are labelled, the figures, with the file's name if `named`."""
    predictions: list[int] = []
    for start in range(0, len(examples), CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = Examples(examples.path, examples.labels[rows], examples.sentences[rows], examples.ids[rows])
        probabilities = predictor.probabilities(chunk)
        labels = probabilities.argmax(axis=1).tolist()
        predictions += labels
        for index, label in enumerate(labels):
            line = _json_line if as_json else _text_line
            print(line(predictor.label_names, label, probabilities[index].tolist(), chunk, index))
    if not examples.placeholder:
        name = str(examples.path) if named else None
        print("\n".join(_figures(predictor.label_names, examples.labels, predictions, as_json, name)))
    elif set(examples.labels) != {UNLABELLED}:
        print(f"every label is {examples.labels[0]}, a placeholder: no accuracy is claimed", file=sys.stderr)


def _text_line(names: list[str], label: int, probabilities: list[float], chunk: Examples, index: int) -> str:
    """Label, probabilities and sentence, separated by tabs."""
    listed = " ".join(f"{name} {share:.4f}" for name, share in zip(names, probabilities, strict=True))
    return f"{names[label]}\t{listed}\t{chunk.sentences[index]}"


def _json_line(names: list[str], label: int, probabilities: list[float], chunk: Examples, index: int) -> str:
    entry = {"sentence": chunk.sentences[index], "label": names[label]}
    entry |= {"probabilities": dict(zip(names, probabilities, strict=True))}
    if (true_label := chunk.labels[index]) != UNLABELLED:
        entry["true_label"] = names[true_label]
    return json.dumps(entry, ensure_ascii=False)


def _figures(
    names: list[str], labels: list[int], predictions: list[int], as_json: bool, file: str | None
) -> list[str]:
    """Accuracy, macro-F1 and confusion matrix, as one JSON object or as text; the file's name stands first."""
    figures = accuracy_and_f1(labels, predictions, len(names))
    matrix = confusion_counts(labels, predictions, len(names))
    if as_json:
        summary = {"input": file} if file else {}
        summary |= {"examples": len(labels), "accuracy": figures["acc"], "macro_f1": figures["macro_f1"]}
        return [json.dumps(summary | {"label_names": names, "confusion_matrix": matrix}, ensure_ascii=False)]
    width = max(9, *map(len, names))
    header = " ".join(f"{cell:>{width}}" for cell in ("true\\pred", *names))
    rows = [" ".join(f"{cell:>{width}}" for cell in (name, *row)) for name, row in zip(names, matrix, strict=True)]
    title = [file] if file else []
    return [*title, f"acc :: {figures['acc']:.3f}", f"macro-F1 :: {figures['macro_f1']:.3f}", header, *rows]
