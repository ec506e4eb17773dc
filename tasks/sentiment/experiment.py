"""What one sentiment command works with (data, model, device), and how it writes its predictions and figures.

    python run_llama.py --option prompt --dev data/reviews-dev.txt --test data/reviews-test.txt \\
        --label-names data/reviews-label-mapping.json --dev_out reviews-dev-prompting-output.txt \\
        --test_out reviews-test-prompting-output.txt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from engine.io.files import check_writable, write_json
from engine.train import distributed
from llama import Llama
from tasks import provenance, run_folders
from tasks.pretrained import load_model
from tasks.run_folders import data_set_name
from tasks.sentiment.data import Examples, SentenceBatches, prompt_suffix, read_label_names, tokenise
from tasks.sentiment.data_sets import DATA_SETS, read_data_set, split_off, without
from tasks.sentiment.flags import COURSE_BATCH_SIZES, FinetuneSettings, PromptSettings
from tasks.sentiment.report import predict_labels, report_split, scored_batches, write_predictions
from tokenizer import AnyTokenizer
from utils import DTYPES, autocast, set_up


@dataclass
class Experiment:
    """The settings, data, pretrained model and device that all runs of one command share."""

    settings: PromptSettings | FinetuneSettings
    device: torch.device
    label_names: list[str]
    splits: dict[str, Examples]
    llama: Llama
    tokenizer: AnyTokenizer
    model_path: Path

    def batches(self, split: str, seed: int = 0) -> SentenceBatches:
        """The batches of "train", "dev" or "test"."""
        return SentenceBatches(self.splits[split], self.settings.batch_size, self.tokenizer.pad_id, seed)

    def predict_split(self, model: nn.Module, split: str) -> np.ndarray:
        """The predicted labels (examples,) of a split, in the order of its file."""
        in_file_order = self.settings.pooling == "last_column"
        with autocast(self.device, DTYPES[self.settings.dtype]):
            return predict_labels(model, self.batches(split), self.device, in_file_order)

    def score_split(self, model: nn.Module, split: str) -> np.ndarray:
        """The model's scores (examples, labels) of a split, in the order of its file."""
        batches, in_file_order = self.batches(split), self.settings.pooling == "last_column"
        scores = np.zeros((len(batches.examples), len(self.label_names)))
        with autocast(self.device, DTYPES[self.settings.dtype]):
            for batch, rows in scored_batches(model, batches, self.device, in_file_order):
                scores[batch] = rows.double().cpu().numpy()
        return scores

    def classifier_config(self) -> SimpleNamespace:
        """The fields that the course's constructors of classifiers read."""
        names = ("hidden_dropout_prob", "option", "pooling")
        fields = {name: getattr(self.settings, name) for name in names if hasattr(self.settings, name)}
        return SimpleNamespace(num_labels=len(self.label_names), pad_id=self.tokenizer.pad_id, **fields)

    @property
    def question(self) -> str:
        """The zero-shot question of this task, with a space at its end."""
        return prompt_suffix(self.label_names, DATA_SETS[self.settings.task].question)

    def tokenise_splits(self, limit: int, suffix: str = "") -> None:
        """Tokenises all splits to at most `limit` tokens a sentence; prints how many sentences were truncated."""
        for examples in self.splits.values():
            tokenise(examples, self.tokenizer, limit, self.settings.max_sentence_len, suffix)
            if examples.truncated:
                print(f"{examples.truncated} of {len(examples)} sentences of {examples.path} are cut to fit")


def load_experiment(settings: PromptSettings | FinetuneSettings, splits: Sequence[str]) -> Experiment:
    """Reads the data, then the model, so that bad data is reported first. Raises ValueError or OSError."""
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
    for target in (settings.dev_out, settings.test_out):
        check_writable(target)
    try:
        label_names = _label_names(settings)
        data = _read_splits(settings, splits, label_names)
    except FileNotFoundError as error:
        hint = "setup.sh puts the course's data into data/, and data/reviews-*.txt are there already"
        raise FileNotFoundError(f"{error} ({hint})") from None
    for examples in data.values():
        print(f"load {len(examples)} data from {examples.path}")
    llama, tokenizer, path = load_model(settings, device)
    if settings.no_causal_mask:
        _remove_causal_mask(llama)
    return Experiment(settings, device, label_names, data, llama, tokenizer, path)


def _label_names(settings: PromptSettings | FinetuneSettings) -> list[str]:
    """The names in --label-names or, if only --task is given, the task's own."""
    names = DATA_SETS[settings.task].names
    return list(names) if names and "label_names" not in settings.given else read_label_names(settings.label_names)


def _read_splits(
    settings: PromptSettings | FinetuneSettings, splits: Sequence[str], label_names: Sequence[str]
) -> dict[str, Examples]:
    """The examples of each split, with the dev set taken from training and the further lines that flags ask for.

    Training sentences of a table, and further lines, that stand in the dev or test set are left out.
    """
    share = getattr(settings, "dev_share", 0.0)
    read = [split for split in splits if split != "dev" or not share]
    data = {split: read_data_set(getattr(settings, split), settings.task, label_names) for split in read}
    if share:
        data["train"], data["dev"] = split_off(data["train"], share, seed=0)
    held_out = [data[split] for split in ("dev", "test") if split in data]
    if "train" in data and settings.task != "reviews":
        data["train"] = _left_out(data["train"], held_out)
    if (path := getattr(settings, "extra", None)) is not None:
        extra = _left_out(read_data_set(path, settings.task, label_names), held_out)
        print(f"load {len(extra)} data from {path}")
        data["train"] = data["train"].extended(extra, settings.extra_weight)
    return {split: data[split] for split in splits}


def _left_out(examples: Examples, held_out: Sequence[Examples]) -> Examples:
    kept, dropped = without(examples, held_out)
    if dropped:
        print(f"{dropped} sentences of {examples.path} stand in the dev or test set: left out")
    return kept


def _remove_causal_mask(llama: Llama) -> None:
    llama.config.causal = False
    for layer in llama.layers:
        layer.attention.causal = False


def variant_suffix(settings: PromptSettings | FinetuneSettings, data_set: str) -> str:
    """What differs from the course's command, as the end of a folder name."""
    batch_size = COURSE_BATCH_SIZES.get(data_set, {}).get(settings.option)
    return run_folders.variant_suffix(settings, {} if batch_size is None else {"batch_size": batch_size})


def write_results(
    experiment: Experiment,
    predictions: Mapping[str, np.ndarray],
    folder: Path,
    targets: Mapping[str, str | Path],
    suffix: str = "",
    costs: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """Writes predictions of dev and test, confusion matrices and `result.json`, and prints the figures.

    `costs` stand in `result.json` too. Returns the figures by name. With several processes, only the first writes,
    and the others return {}.
    """
    figures: dict[str, float] = {}
    if not distributed.is_first():
        return figures
    for split, predicted in predictions.items():
        examples = experiment.splits[split]
        write_predictions(targets[split], examples, predicted, suffix)
        title = f"{data_set_name(examples.path)} {split}, {experiment.settings.option}"
        lines, split_figures = report_split(split, examples, predicted, experiment.label_names, folder, title)
        print("\n".join(lines))
        figures |= split_figures
    write_json(folder / "result.json", figures | dict(costs))
    settings = experiment.settings
    named = [settings.label_names] if Path(settings.label_names).exists() else []
    data = [*named, *(examples.path for examples in experiment.splits.values())]
    provenance.record(targets.values(), "run_llama.py", settings.option, settings, experiment.model_path, data)
    print(f"predictions in {' and '.join(map(str, targets.values()))}; figures in {folder}")
    return figures
