"""Makes the table of sentiment results (data sets × methods × seeds) with the commands that a user would type.

Two runs at a time, one thread each. Finished runs are kept, so an interrupted table continues where it stopped. Results
are merged into docs/sentiment_results.json, with the precision of each training; the table is printed.

    python -m bench.sentiment_table --data data/sst data/cfimdb --model models/stories.pt --seeds 1337 1338 1339
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.tfidf import tfidf_figures
from engine.io.files import write_text

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZES = {"sst": 80, "cfimdb": 10}  # of the course's training commands
PROMPT_BATCH_SIZE = 10  # of the course's prompting commands; it decides what `--pooling last_column` reads
OUTPUT = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}
ZERO_SHOT = {  # row: flags
    "zero-shot, the course's reading": ["--pooling", "last_column"],
    "zero-shot, last token": [],
    "zero-shot, last token, calibrated": ["--calibrate"],
    "zero-shot, sequence scoring": ["--label_scoring", "sequence"],
    "zero-shot, sequence scoring, calibrated": ["--label_scoring", "sequence", "--calibrate"],
}
TRAINED = {  # row: flags; the course uses a constant rate of 2e-5, and rank 4 on the attention matrices
    "finetune, rate 2e-5": ["--lr", "2e-5"],
    "finetune, rate 3e-4": ["--lr", "3e-4"],
    "lora, rate 2e-5": ["--lr", "2e-5"],
    "lora, rate 2e-3": ["--lr", "2e-3"],
    "lora, all matrices, rank 8, cosine from 2e-3": [
        "--lr", "2e-3", "--schedule", "cosine", "--warmup_steps", "50", "--lora_rank", "8", "--lora_alpha", "8",
        "--lora_targets", "all",
    ],
}  # fmt: skip
REFERENCES = {  # the course's READMEs (Fall 2025, Spring 2026): mean (deviation) over 10 seeds with stories42M
    "sst": {"prompt": "0.197 / 0.176", "finetune": "0.411 (0.025) / 0.399 (0.023)",
            "lora": "0.275 (0.024) / 0.269 (0.020)"},
    "cfimdb": {"prompt": "0.514", "finetune": "0.833 (0.060)", "lora": "0.510 (0.051)"},
}  # fmt: skip
HEADER = "| | precision | seeds | dev acc | dev macro-F1 | test acc | test macro-F1 |"


@dataclass(frozen=True)
class Job:
    """One command and its row in the table."""

    data: str
    row: str
    option: str
    seed: int
    flags: tuple[str, ...]

    @property
    def key(self) -> str:
        """The run's name in the results file."""
        return f"{Path(self.data).name} | {self.row} | {self.seed}"


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """All commands of the table, zero-shot first because it is fast."""
    jobs = []
    for data in args.data:
        size = str(BATCH_SIZES.get(Path(data).name, 8))
        for row, flags in ZERO_SHOT.items():
            jobs.append(Job(data, row, "prompt", args.seeds[0], ("--batch_size", str(PROMPT_BATCH_SIZE), *flags)))
        common = ("--batch_size", size, "--epochs", str(args.epochs), "--dtype", args.dtype)
        for row, flags in TRAINED.items():
            jobs += [Job(data, row, row.split(",")[0], seed, (*common, *flags)) for seed in args.seeds]
    chosen = [job for job in jobs if any(part in job.row for part in args.rows)]
    return sorted(chosen, key=lambda job: job.option != "prompt")


def run(job: Job, args: argparse.Namespace) -> dict[str, float]:
    """Runs the command in its own folder, with its output in a log there, and returns its figures."""
    folder = args.save_dir / job.key.replace(" | ", "-").replace(" ", "_").replace(",", "").replace("'", "")
    folder.mkdir(parents=True, exist_ok=True)
    stem, method = Path(job.data).name, OUTPUT[job.option]
    command = [sys.executable, "run_llama.py", "--option", job.option, "--pretrained-model-path", args.model]
    command += [word for split in ("train", "dev", "test") for word in (f"--{split}", f"{job.data}-{split}.txt")]
    command += ["--label-names", f"{job.data}-label-mapping.json", "--seed", str(job.seed), *job.flags]
    for split in ("dev", "test"):
        command += [f"--{split}_out", str(folder / f"{stem}-{split}-{method}-output.txt")]
    command += ["--save_dir", str(folder), "--threads", "1", *(["--resume"] if job.option != "prompt" else [])]
    started = time.perf_counter()
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, stdout=output, stderr=subprocess.STDOUT, env=environment)
    figures = json.loads(next(folder.glob("*/result.json")).read_text(encoding="utf-8"))
    figures["dev_confusion"] = json.loads(next(folder.glob("*/dev-confusion.json")).read_text(encoding="utf-8"))
    for state in folder.glob("*/last.pt"):  # three times the model's size, and no longer needed
        state.unlink()
    precision = {} if job.option == "prompt" else {"dtype": args.dtype}
    return figures | precision | {"seconds": round(time.perf_counter() - started)}


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Runs the jobs that the results file lacks (with `args.again`: all) and saves the results after each."""
    lock, results = threading.Lock(), _read(args).get("runs", {})
    missing = [job for job in jobs if args.again or job.key not in results]

    def work(job: Job) -> None:
        figures = run(job, args)
        with lock:
            results[job.key] = figures
            _write(args, runs=results)
            shown = {name: value for name, value in figures.items() if name != "dev_confusion"}
            print(f"{job.key}: {shown}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        for future in [pool.submit(work, job) for job in missing]:
            future.result()
    return results


def _recipe(args: argparse.Namespace) -> dict[str, object]:
    """What all results in a file have in common. A training's precision is stored with each run."""
    return {"model": Path(args.model).name, "epochs": args.epochs}


def _write(args: argparse.Namespace, **tables: dict[str, dict]) -> None:
    """Merges `tables` ("runs", "tfidf") into the results file."""
    args.results.parent.mkdir(exist_ok=True)
    content = _recipe(args) | {"tfidf": {}, "runs": {}} | _read(args)
    for name, entries in tables.items():
        content[name] = dict(sorted((content[name] | entries).items()))
    write_text(args.results, json.dumps(content, indent=2) + "\n")


def _read(args: argparse.Namespace) -> dict:
    """The results file, or {} if there is none; SystemExit if its model or number of epochs differ."""
    if not args.results.exists():
        return {}
    content = json.loads(args.results.read_text(encoding="utf-8"))
    if any(content.get(name) != value for name, value in _recipe(args).items()):
        raise SystemExit(f"{args.results} holds results of another model or recipe: name another file with --results")
    return content


def table(data: str, jobs: Sequence[Job], results: dict[str, dict[str, float]], baseline: dict) -> list[str]:
    """The Markdown lines of one data set; `baseline` holds TF-IDF's figures on it."""
    name = Path(data).name
    lines = [f"**{name}**", "", HEADER, "|---|" + "---|" * 6]
    for row in dict.fromkeys(job.row for job in jobs if job.data == data):
        runs = [results[job.key] for job in jobs if (job.data, job.row) == (data, row) and job.key in results]
        cells = [_mean(runs, figure) for figure in ("dev_acc", "dev_macro_f1", "test_acc", "test_macro_f1")]
        precision = ", ".join(sorted({run["dtype"] for run in runs if "dtype" in run}))
        lines.append(f"| {row} | {precision} | {len(runs)} | {' | '.join(cells)} |")
    cells = [_mean([baseline], figure) for figure in ("dev_acc", "dev_macro_f1", "test_acc", "test_macro_f1")]
    lines.append(f"| TF-IDF and logistic regression | | 1 | {' | '.join(cells)} |")
    for option, figures in REFERENCES.get(name, {}).items():
        lines.append(f"| the course's reference, {option} (dev / test) | | 10 | {figures} | | | |")
    return [*lines, ""]


def _mean(runs: Sequence[dict], figure: str) -> str:
    values = [run[figure] for run in runs if run.get(figure) is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def parse_args() -> argparse.Namespace:
    """Reads the flags; the module docstring explains them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["data/sst", "data/cfimdb"], metavar="STEM")
    parser.add_argument("--model", default="models/stories.pt", metavar="FILE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338, 1339])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=[""], metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument("--again", action="store_true", help="repeat runs that the results file holds already")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save-dir", type=Path, default=Path("runs/table"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "sentiment_results.json", metavar="FILE")
    args = parser.parse_args()
    args.model, args.save_dir = str(Path(args.model).resolve()), args.save_dir.resolve()
    args.data = [str(Path(stem).resolve()) for stem in args.data]
    return args


def main() -> None:
    """Runs the missing jobs and prints the table."""
    args = parse_args()
    jobs = jobs_of(args)
    results = run_all(jobs, args)
    baselines = {Path(data).name: tfidf_figures(data) for data in args.data}
    _write(args, tfidf=baselines)
    for data in args.data:
        print("\n".join(table(data, jobs, results, baselines[Path(data).name])))


if __name__ == "__main__":
    main()
