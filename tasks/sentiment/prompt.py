"""`--option prompt`: zero-shot classification with the language model's own probabilities of the label names.

    python run_llama.py --option prompt --dev data/reviews-dev.txt --test data/reviews-test.txt \\
        --label-names data/reviews-label-mapping.json --dev_out reviews-dev-prompting-output.txt \\
        --test_out reviews-test-prompting-output.txt

A file of prompts (`--prompts`) has one question per line, `question ||| word, word` if its answers are other words than
the label names. The log-probabilities of the labels after all prompts are averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classifier import LlamaZeroShotClassifier
from engine.io.files import check_readable, read_text, write_json
from tasks.provenance import hand_in_path
from tasks.run_folders import data_set_name
from tasks.sentiment.data import SEPARATOR, Examples, content_free_ids, prompt_suffix, tokenise
from tasks.sentiment.experiment import Experiment, load_experiment, variant_suffix, write_results
from tasks.sentiment.flags import PromptSettings
from tasks.sentiment.report import accuracy_and_f1


@dataclass(frozen=True)
class Prompt:
    """A question that follows a sentence, with a space at its end, and the word that answers it for each label."""

    question: str
    words: Sequence[str]


def prepare(settings: PromptSettings) -> Callable[[], None]:
    """Checks and loads everything; returns the function that classifies. Raises ValueError or OSError."""
    settings = dataclasses.replace(
        settings, dev_out=hand_in_path(settings, "dev_out"), test_out=hand_in_path(settings, "test_out")
    )
    experiment = load_experiment(settings, ("dev", "test"))
    prompts = [Prompt(experiment.question, experiment.label_names)]
    if settings.prompts is not None:
        prompts = read_prompts(settings.prompts, experiment.label_names)
    models = [_classifier(experiment, prompt) for prompt in prompts]
    for prompt, model in zip(prompts, models, strict=True):
        _check_room(experiment, prompt, model)
    data_set = data_set_name(settings.dev)
    folder = Path(settings.save_dir) / f"prompt-{data_set}{variant_suffix(settings, data_set)}"
    folder.mkdir(exist_ok=True)
    targets = {"dev": settings.dev_out, "test": settings.test_out}

    def classify() -> None:
        scores = []
        for prompt, model in zip(prompts, models, strict=True):
            experiment.tokenise_splits(_room(experiment, model), _question(experiment, prompt))
            _calibrate(experiment, prompt, model)
            scores.append({split: experiment.score_split(model, split) for split in targets})
        if settings.prompts is not None:
            _report_prompts(experiment, prompts, [each["dev"] for each in scores], folder)
        predictions = {split: mean_scores([each[split] for each in scores]).argmax(axis=1) for split in targets}
        write_results(experiment, predictions, folder, targets, prompts[0].question)

    return classify


def read_prompts(path: str | Path, label_names: Sequence[str]) -> list[Prompt]:
    """The prompts of a file: lines `question` or `question ||| word, word`; blank lines and `#` lines are skipped.

    `{names}` in a question stands for the listed words, which are the label names if the line has none. Raises OSError
    for a file that cannot be read, and ValueError, with the line, for words that are not one per label.
    """
    prompts = []
    for number, line in enumerate(read_text(check_readable(path)).split("\n"), start=1):
        question, separator, listed = (text.strip() for text in line.partition(SEPARATOR))
        if not question or question.startswith("#"):
            continue
        words = [word.strip() for word in listed.split(",")] if separator else list(label_names)
        if len(words) != len(label_names) or len(set(words)) < len(words) or not all(words):
            needed = f"{len(label_names)} different words, one per label ({', '.join(label_names)})"
            raise ValueError(f"{path}, line {number}: {SEPARATOR!r} must be followed by {needed}, with commas between")
        prompts.append(Prompt(prompt_suffix(words, question + " "), words))
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def mean_scores(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over prompts of log-probabilities (examples, labels), each normalised over the labels."""
    return np.mean([score - np.logaddexp.reduce(score, axis=1, keepdims=True) for score in scores], axis=0)


def _classifier(experiment: Experiment, prompt: Prompt) -> LlamaZeroShotClassifier:
    return LlamaZeroShotClassifier(
        experiment.classifier_config(), experiment.tokenizer, prompt.words, experiment.llama,
        experiment.settings.label_scoring,
    ).eval()  # fmt: skip


def _question(experiment: Experiment, prompt: Prompt) -> str:
    """The question as it is tokenised: in sequence scoring a label's first token carries the space."""
    return prompt.question if experiment.settings.label_scoring == "course" else prompt.question.rstrip()


def _room(experiment: Experiment, model: LlamaZeroShotClassifier) -> int:
    """The positions that the longest label leaves to a sentence and its question."""
    return experiment.llama.config.max_seq_len - max(map(len, model.label_name_ids))


def _check_room(experiment: Experiment, prompt: Prompt, model: LlamaZeroShotClassifier) -> None:
    """Raises ValueError, before any work, if a prompt leaves no position to a sentence."""
    nothing, question = Examples(Path(), [], []), _question(experiment, prompt)
    tokenise(nothing, experiment.tokenizer, _room(experiment, model), None, question)


def _calibrate(experiment: Experiment, prompt: Prompt, model: LlamaZeroShotClassifier) -> None:
    """Contextual calibration or, with `--pmi`, division by the probabilities after the question alone.

    The domain-conditional pointwise mutual information of a label and a sentence is log P(label | sentence, question) −
    log P(label | question) (Holtzman et al. 2021, section 4).
    """
    settings, question = experiment.settings, _question(experiment, prompt)
    if settings.pmi:
        model.calibrate([experiment.tokenizer.encode(question, bos=True, eos=False)])
    elif settings.calibrate:
        shares = model.calibrate(content_free_ids(experiment.tokenizer, question)).tolist()
        listed = ", ".join(f"{word} {share:.3f}" for word, share in zip(prompt.words, shares, strict=True))
        print(f"calibrated with the probabilities after content-free prompts: {listed}")


def _report_prompts(experiment: Experiment, prompts: Sequence[Prompt], dev: Sequence[np.ndarray], folder: Path) -> None:
    """Prints the dev accuracy of every prompt by itself, best first, and writes them to `prompts.json`."""
    examples, count = experiment.splits["dev"], len(experiment.label_names)
    rows = [{"question": prompt.question.strip(), "words": list(prompt.words)} for prompt in prompts]
    if not examples.placeholder:
        for row, scores in zip(rows, dev, strict=True):
            row["dev_acc"] = accuracy_and_f1(examples.labels, scores.argmax(axis=1), count)["acc"]
        rows.sort(key=lambda row: -row["dev_acc"])
        for row in rows:
            print(f"dev acc :: {row['dev_acc']:.3f} by itself: {row['question']} ({', '.join(row['words'])})")
    write_json(folder / "prompts.json", rows)
