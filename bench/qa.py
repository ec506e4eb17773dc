"""Question and answer with the shipped model: untuned, and fine-tuned for three seeds.

    python -m bench.qa                 (recipes/qa.toml for three seeds; finished runs are kept in runs/bench_qa)
    python -m bench.qa --final         (then, once: the test set)

Writes results/methods/qa.json. Exact match is also split by whether the story's plot occurs in training. The baseline
gives the answer of the training question that shares most words: it does not read the story.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from engine.io.files import read_json_object, write_json
from tasks.qa.metrics import exact_match, token_f1
from tasks.settings import ROOT

SEEDS = (1337, 1338, 1339)
RUNS, RESULT = ROOT / "runs" / "bench_qa", ROOT / "results" / "methods" / "qa.json"
MODEL = "models/stories.pt"


def read_lines(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run_llama(*words: str) -> None:
    """Runs a command of this project; raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "run_llama.py", *words], cwd=ROOT, check=True)


def answers_of(name: str, model: str, split: str) -> list[str]:
    """A model's answers to a split, in the file's order, from an earlier run of this program if there is one."""
    folder = RUNS / name
    target = folder / f"{split}-answers.jsonl"
    if not target.exists():
        words = ["--option", "prompt", "--task", "qa", "--pretrained-model-path", model, "--save_dir", str(folder)]
        run_llama(*words, "--dev", f"data/qa-{split}.jsonl", "--dev_out", str(target))
    return [line["prediction"] for line in read_lines(target)]


def tuned_model(seed: int) -> str:
    """The best model of the recipe with this seed, trained if it is not there."""
    folder = RUNS / "finetune" / f"finetune-qa-0.0003-10-{seed}-model=stories"
    if not (folder / "result.json").exists():
        words = ["--pretrained-model-path", MODEL, "--seed", str(seed), "--save_dir", str(RUNS / "finetune")]
        run_llama("--recipe", "recipes/qa.toml", "--resume", *words)
    return str(folder / "best.pt")


def nearest_answers(train: list[dict[str, str]], rows: list[dict[str, str]]) -> list[str]:
    """For each row the answer of the training question that shares most words with its question (Jaccard index)."""

    def words(row: dict[str, str]) -> set[str]:
        return set(row["prompt"].split("Question: ")[1].split())

    def nearest(row: dict[str, str]) -> str:
        own = words(row)
        return max(train, key=lambda other: len(own & words(other)) / len(own | words(other)))["answer"]

    return [nearest(row) for row in rows]


def figures(rows: list[dict[str, str]], answers: list[str], known: set[str]) -> dict[str, float]:
    """Exact match and F1 over all questions, and exact match where the plot is known from training and where not."""
    exact = [exact_match(text, row["answer"]) for text, row in zip(answers, rows, strict=True)]
    by_plot = {True: [], False: []}
    for value, row in zip(exact, rows, strict=True):
        by_plot[row["plot"] in known].append(value)
    f1 = statistics.fmean(token_f1(text, row["answer"]) for text, row in zip(answers, rows, strict=True))
    parts = {"em": exact, "em_known_plots": by_plot[True], "em_new_plots": by_plot[False]}
    return {"f1": f1} | {name: statistics.fmean(values) for name, values in parts.items()}


def measure(split: str) -> dict[str, object]:
    """The figures of the baseline, the untuned model and every seed on a split."""
    train, rows = read_lines(ROOT / "data" / "qa-train.jsonl"), read_lines(ROOT / "data" / f"qa-{split}.jsonl")
    known = {row["plot"] for row in train}
    measured: dict[str, object] = {"nearest question": figures(rows, nearest_answers(train, rows), known)}
    measured["untuned"] = figures(rows, answers_of("untuned", MODEL, split), known)
    tuned = {str(seed): figures(rows, answers_of(f"tuned-{seed}", tuned_model(seed), split), known) for seed in SEEDS}
    return measured | {"fine-tuned": tuned}


def main() -> None:
    """Measures dev, or with --final test, and adds the figures to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--final", action="store_true", help="measure the test set")
    split = "test" if parser.parse_args().final else "dev"
    content = read_json_object(RESULT) if RESULT.exists() else {}
    RUNS.mkdir(parents=True, exist_ok=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, content | {"recipe": "recipes/qa.toml", "model": MODEL, split: measure(split)})
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
