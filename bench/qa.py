"""Question and answer with the shipped model: untuned, and fine-tuned by recipes/qa.toml for three seeds.

    python -m bench.qa [--use_gpu] [--seeds 1337 1338 1339]

Finished runs are kept in runs/bench_qa, and stopped ones resume.

Writes results/methods/qa.json. The recipe was chosen on dev; each model answers the test set once. Exact match is also
split by whether the story's plot occurs in training. The baseline gives the answer of the training question that shares
most words: it does not read the story.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from engine.io.files import write_json
from tasks.qa.metrics import exact_match, normalised, token_f1
from tasks.settings import ROOT

SEEDS = (1337, 1338, 1339)
RUNS, RESULT = ROOT / "runs" / "bench_qa", ROOT / "results" / "methods" / "qa.json"
MODEL = "models/stories.pt"
COMMON = ["--pretrained-model-path", MODEL, "--test", "data/qa-test.jsonl", "--save_dir", str(RUNS)]


def read_lines(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answers_of(name: str, words: list[str]) -> dict[str, list[str]]:
    """A command's answers to dev and test, which are kept in a folder `name` and not made again.

    Raises CalledProcessError if the command fails.
    """
    outputs = {split: RUNS / name / f"{split}-answers.jsonl" for split in ("dev", "test")}
    outputs["dev"].parent.mkdir(parents=True, exist_ok=True)
    if not all(path.exists() for path in outputs.values()):
        targets = [f"--{split}_out={path}" for split, path in outputs.items()]
        subprocess.run([sys.executable, "run_llama.py", *words, *COMMON, *targets], cwd=ROOT, check=True)
    return {split: [line["prediction"] for line in read_lines(path)] for split, path in outputs.items()}


def nearest_answers(train: list[dict[str, str]], rows: list[dict[str, str]]) -> list[str]:
    """For each row the answer of the training question that shares most words with its question (Jaccard index)."""

    def words(row: dict[str, str]) -> set[str]:
        return set(row["prompt"].split("Question: ")[1].split())

    def nearest(row: dict[str, str]) -> str:
        own = words(row)
        return max(train, key=lambda other: len(own & words(other)) / len(own | words(other)))["answer"]

    return [nearest(row) for row in rows]


def figures(rows: list[dict[str, str]], answers: list[str], known: set[str]) -> dict[str, float]:
    """Exact match and F1 over all questions, exact match where the plot is known from training and where not.

    Of the wrong answers, `wrong_but_in_the_story` is the share that stands in the prompt.
    """
    exact = [exact_match(text, row["answer"]) for text, row in zip(answers, rows, strict=True)]
    by_plot: dict[bool, list[float]] = {True: [], False: []}
    for value, row in zip(exact, rows, strict=True):
        by_plot[row["plot"] in known].append(value)
    f1 = statistics.fmean(token_f1(text, row["answer"]) for text, row in zip(answers, rows, strict=True))
    wrong = [(text, row) for value, text, row in zip(exact, answers, rows, strict=True) if not value]
    copied = [normalised(text) in normalised(row["prompt"]) for text, row in wrong]
    parts = {"em": exact, "em_known_plots": by_plot[True], "em_new_plots": by_plot[False]}
    parts |= {"wrong_but_in_the_story": copied or [0.0]}
    return {"f1": f1} | {name: statistics.fmean(values) for name, values in parts.items()}


def main() -> None:
    """Runs what is missing, and writes the figures of the baseline, the untuned model and every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use_gpu", action="store_true", help="run on the first CUDA device")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="SEED", help="seeds to train with")
    args = parser.parse_args()
    machine = ["--use_gpu"] if args.use_gpu else ["--threads", "1"]
    untuned = answers_of("untuned", ["--option", "prompt", "--task", "qa", *machine])
    recipe = ["--recipe", "recipes/qa.toml", "--resume", *machine]
    tuned = {str(seed): answers_of(str(seed), [*recipe, "--seed", str(seed)]) for seed in args.seeds}
    train = read_lines(ROOT / "data" / "qa-train.jsonl")
    known = {row["plot"] for row in train}
    content: dict[str, object] = {"recipe": "recipes/qa.toml", "model": MODEL}
    for split in ("dev", "test"):
        rows = read_lines(ROOT / "data" / f"qa-{split}.jsonl")
        content[split] = {
            "nearest question": figures(rows, nearest_answers(train, rows), known),
            "untuned": figures(rows, untuned[split], known),
            "fine-tuned": {seed: figures(rows, answers[split], known) for seed, answers in tuned.items()},
        }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, content)
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
