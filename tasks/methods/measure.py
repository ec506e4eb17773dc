"""The sets that judge combined classifiers, and the accuracy of a classifier on them.

    python run_llama.py --option soup --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from classifier import LlamaEmbeddingClassifier
from tasks.pretrained import fitting_tokenizer
from tasks.sentiment.checkpoint import ClassifierInfo
from tasks.sentiment.data import Examples, tokenise
from tasks.sentiment.data_sets import read_data_set
from tasks.sentiment.predict import Predictor
from tasks.sentiment.report import accuracy_and_f1
from utils import DTYPES


def read_sets(
    dev: str, shifted: Sequence[str], path: Path, model: LlamaEmbeddingClassifier, info: ClassifierInfo
) -> dict[str, Examples]:
    """The dev set ("dev") and every shifted set, by the names of their files, tokenised for the classifier at `path`.

    Raises OSError or ValueError for a set that cannot be read or has no labels.
    """
    config = model.llama.config
    tokenizer = fitting_tokenizer(path, config.vocab_size, info.vocabulary, info.tokenizer)
    sets = {"dev": read_data_set(dev, info.task, info.label_names)}
    for file in shifted:
        name = Path(file).stem
        if name in sets:
            raise ValueError(f"two sets are named {name}: rename one of the files")
        sets[name] = read_data_set(file, info.task, info.label_names)
    for examples in sets.values():
        if examples.placeholder:
            raise ValueError(f"{examples.path} has no labels to compare with")
        tokenise(examples, tokenizer, config.max_seq_len, info.max_sentence_len, info.question)
    return sets


def accuracies(
    model: LlamaEmbeddingClassifier, info: ClassifierInfo, sets: Mapping[str, Examples], device: torch.device
) -> dict[str, float]:
    """The classifier's accuracy on every set, by the set's name, in the precision and batch size of `info`."""
    names = list(info.label_names)
    predictor = Predictor(model.to(device), names, info.batch_size, DTYPES[info.dtype], device)
    return {
        name: accuracy_and_f1(examples.labels, predictor.probabilities(examples).argmax(axis=1), len(names))["acc"]
        for name, examples in sets.items()
    }
