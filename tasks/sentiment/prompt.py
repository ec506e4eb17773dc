"""`--option prompt`: zero-shot classification with the language model's own probabilities of the label names.

    python run_llama.py --option prompt --dev data/reviews-dev.txt --test data/reviews-test.txt \\
        --label-names data/reviews-label-mapping.json --dev_out reviews-dev-prompting-output.txt \\
        --test_out reviews-test-prompting-output.txt
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from classifier import LlamaZeroShotClassifier
from tasks.provenance import hand_in_path
from tasks.run_folders import data_set_name
from tasks.sentiment.data import content_free_ids
from tasks.sentiment.experiment import load_experiment, variant_suffix, write_results
from tasks.sentiment.flags import PromptSettings


def prepare(settings: PromptSettings) -> Callable[[], None]:
    """Checks and loads everything; returns the function that classifies. Raises ValueError or OSError."""
    settings = dataclasses.replace(
        settings, dev_out=hand_in_path(settings, "dev_out"), test_out=hand_in_path(settings, "test_out")
    )
    experiment = load_experiment(settings, ("dev", "test"))
    suffix = experiment.question
    # in sequence scoring a label's first token carries the space
    question = suffix if settings.label_scoring == "course" else suffix.rstrip()
    model = LlamaZeroShotClassifier(
        experiment.classifier_config(), experiment.tokenizer, experiment.label_names, experiment.llama,
        settings.label_scoring,
    ).eval()  # fmt: skip
    longest_label = max(map(len, model.label_name_ids))
    experiment.tokenise_splits(experiment.llama.config.max_seq_len - longest_label, question)
    data_set = data_set_name(settings.dev)
    folder = Path(settings.save_dir) / f"prompt-{data_set}{variant_suffix(settings, data_set)}"
    folder.mkdir(exist_ok=True)

    def classify() -> None:
        if settings.calibrate:
            shares = model.calibrate(content_free_ids(experiment.tokenizer, question)).tolist()
            pairs = zip(experiment.label_names, shares, strict=True)
            listed = ", ".join(f"{name} {share:.3f}" for name, share in pairs)
            print(f"calibrated with the probabilities after content-free prompts: {listed}")
        write_results(experiment, model, folder, {"dev": settings.dev_out, "test": settings.test_out}, suffix)

    return classify
