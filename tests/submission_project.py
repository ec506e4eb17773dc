"""A small project that is ready to be handed in: the real code, a few made-up sentences, untrained adders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from config import LlamaConfig
from tasks.submission.files import BEST, DATA_SETS, DOCUMENTS, GENERATED, METHODS, MODELS, SUPPORT
from tests.tiny import ROOT, write_tiny_checkpoint

NAMES = {"sst": ["awful", "bad", "average", "good", "excellent"], "cfimdb": ["bad", "good"]}
ADDER = LlamaConfig(vocab_size=13, dim=4, n_layers=1, n_heads=1, n_kv_heads=1, max_seq_len=20, hidden_dim=2)
OPENING = "I have wanted to see this thriller for a while, and it didn't disappoint."


def write_project(folder: Path) -> Path:
    """Fills `folder` with all that both courses want; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    code = [path for pattern in ("*.py", "engine/**/*.py", "tasks/**/*.*") for path in ROOT.glob(pattern)]
    for path in [*(path for path in code if path.suffix != ".pyc"), *(ROOT / name for name in SUPPORT)]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in DOCUMENTS:
        (folder / name).write_text("something\n", encoding="utf-8")
    for name in GENERATED:
        (folder / name).write_text(OPENING + " He was glad.", encoding="utf-8")
    write_data(folder)
    write_predictions(folder)
    write_adders(folder)
    return folder


def sentences(data: str, split: str) -> list[str]:
    """Sentences with what trips readers up: separators, quotes, another script, a line separator of Unicode."""
    count = {"train": 12, "dev": 9, "test": 7}[split]
    return [f"{data} {split} film {i} ||| is « bon » , n't it ?\u2028 or 悪い" for i in range(count)]


def write_data(folder: Path) -> None:
    """The course's data files, small."""
    (folder / "data").mkdir(exist_ok=True)
    for data, labels in DATA_SETS.items():
        (folder / "data" / f"{data}-label-mapping.json").write_text(json.dumps(NAMES[data]))
        for split in ("train", "dev", "test"):
            rows = [f"{i % labels} ||| {text}\n" for i, text in enumerate(sentences(data, split))]
            (folder / "data" / f"{data}-{split}.txt").write_text("".join(rows), encoding="utf-8")


def write_predictions(folder: Path) -> None:
    """Every prediction file, each predicting 0; prompting's with the question behind the sentence."""
    for data, names in NAMES.items():
        listed = " or ".join(names) if len(names) == 2 else ", ".join(names[:-1]) + f", or {names[-1]}"
        for method in METHODS.values():
            behind = f" Is this movie {listed}? This movie is " if method == "prompting" else ""
            for split in ("dev", "test"):
                rows = [f"0 ||| {text}{behind}\n" for text in sentences(data, split)]
                (folder / f"{data}-{split}-{method}-output.txt").write_text("".join(rows), encoding="utf-8")


def write_adders(folder: Path) -> None:
    """Five ablations and the best model; the first two ablations short of 100 %."""
    for name in (*(f"ablation_{n}" for n in range(1, 6)), BEST):
        place = folder / MODELS / name
        place.mkdir(parents=True)
        write_tiny_checkpoint(place / "best_model.pth", ADDER, tokenizer=None)
        accuracy = 0.25 if name in ("ablation_1", "ablation_2") else 1.0
        summary = {"accuracy": accuracy, "num_params": 164, "model_config": ADDER.to_dict(), "wrong": []}
        (place / "experiment_summary.json").write_text(json.dumps(summary))
        for other in ("model_config.json", "training_config.json"):
            (place / other).write_text("{}")
        (place / "predictions.json").write_text("[]")
        (place / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
        (place / "loss_curve.png").write_bytes(b"a plot")
