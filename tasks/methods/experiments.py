"""Runs a list of experiments, each an ordinary command for several seeds, and compares every method with its baseline.

    make methods                                         (the list in recipes/methods.toml)
    python -m tasks.methods.experiments --quick          (small runs on the files that ship)
    python -m tasks.methods.experiments --final          (looks at the test sets and the shifted sets of finished runs)

Finished runs are skipped, and stopped ones resume. `--jobs 8` runs eight at a time. A run that fails does not stop the
others. Dev figures choose; the test and shifted sets are read by --final.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.io.files import check_readable, read_json_object, read_text
from engine.train import run_log
from tasks import cli
from tasks.methods.comparison import COSTS, write_comparison
from tasks.recipe import parse_toml, words_of
from tasks.settings import ROOT, input_file, positive, seed_number

OUTPUTS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}
OPTIONS = (*OUTPUTS, "pretrain")


@dataclass(frozen=True)
class Method:
    """A row of the list: a command's flags, the data sets it runs on, and the row it is compared with."""

    name: str
    data: Sequence[str]
    option: str
    flags: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None


@dataclass(frozen=True)
class Job:
    """One run: a method on a data set with a seed."""

    method: Method
    data: str
    seed: int
    flags: dict[str, Any]  # of the method and the data set
    files: dict[str, str]  # by flag, in the data folder
    final: dict[str, str]  # sets that only --final reads, by name

    @property
    def key(self) -> str:
        """Names the run and, by a digest, its flags: another recipe is another run, wherever the data are."""
        names = {flag: Path(path).name for flag, path in self.files.items()}
        digest = hashlib.sha256(json.dumps(self.flags | names, sort_keys=True).encode()).hexdigest()[:8]
        name = "".join(letter if letter.isalnum() else "_" for letter in self.method.name)
        return f"{self.data}-{name}-{digest}-{self.seed}"


def read_list(path: Path, data_folder: Path, seeds: Sequence[int] | None) -> tuple[list[Job], list[str]]:
    """The jobs of a list, and a line for each file that is missing, whose jobs are left out.

    The list is TOML: `seeds`, a table `[data.NAME]` with `files`, `flags` and `final`, and tables `[[method]]` with the
    fields of `Method`. Raises OSError or ValueError for a list that cannot be read or used.
    """
    try:
        content = parse_toml(read_text(check_readable(path)))
        methods = [Method(**entry) for entry in content["method"]]
        drawn = list(seeds or content["seeds"])
        sets = content["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of experiments: {error}") from None
    names = {method.name for method in methods}
    jobs, missing = [], []
    for method in methods:
        if method.option not in OPTIONS or (method.baseline is not None and method.baseline not in names):
            unknown = f"an unknown option {method.option} or baseline {method.baseline}"
            raise ValueError(f"{path}: {method.name} has {unknown}")
        for name in method.data:
            if name not in sets:
                raise ValueError(f"{path}: {method.name} names no data set {name}")
            files = sets[name]["files"] | method.flags.get("files", {})
            located = {flag: str(data_folder / file) for flag, file in files.items()}
            lacking = [file for file in located.values() if not Path(file).exists()]
            if lacking:
                missing.append(f"left out: {method.name} on {name}: no {', '.join(lacking)}")
                continue
            own = {flag: value for flag, value in method.flags.items() if flag != "files"}
            flags = sets[name].get("flags", {}) | own
            final = {shift: str(data_folder / file) for shift, file in sets[name].get("final", {}).items()}
            once = method.option == "prompt"  # nothing is drawn at random
            jobs += [Job(method, name, seed, flags, located, final) for seed in (drawn[:1] if once else drawn)]
    return jobs, missing


def run_job(job: Job, folder: Path, machine: Sequence[str]) -> dict[str, Any]:
    """Runs the command in its own folder, its output in a log there; returns dev figures, costs and seconds.

    Raises ChildProcessError, with the last line of the log, if the command fails.
    """
    work = folder / job.key
    work.mkdir(parents=True, exist_ok=True)
    flags = job.flags | job.files | {"seed": job.seed, "save_dir": work}
    for split in ("dev", "test") if job.method.option in OUTPUTS else ():
        flags[f"{split}_out"] = work / f"{job.data}-{split}-{OUTPUTS[job.method.option]}-output.txt"
    command = [sys.executable, "run_llama.py", "--option", job.method.option, *machine]
    command += [word for flag, value in flags.items() for word in words_of(flag, value)]
    command += [] if job.method.option == "prompt" else ["--resume"]
    started = time.perf_counter()
    with open(work / "output.txt", "a", encoding="utf-8") as output:
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if ended.returncode:
        last = (work / "output.txt").read_text("utf-8", "replace").strip().split("\n")[-1]
        raise ChildProcessError(f"{job.key} failed, see {work / 'output.txt'}: {last}")
    if job.method.option == "pretrain":
        figures = pretrained_figures(Path(job.files["valid"]), work, machine)
    else:
        figures = read_json_object(next(work.glob("*/result.json")))
    for state in work.glob("**/last.pt"):  # three times the model's size, and no longer needed
        state.unlink()
    dev = {name: value for name, value in figures.items() if name.startswith("dev_") or name in COSTS}
    return dev | {"seconds": round(time.perf_counter() - started)}


def pretrained_figures(valid: Path, work: Path, machine: Sequence[str]) -> dict[str, Any]:
    """Bits per byte of the best language model in `work` on the text `valid`, and training tokens per second."""
    model = ["--pretrained-model-path", str(work / "best.pt"), "--save_dir", str(work)]
    _output_of(["--option", "evaluate", "--corpus", str(valid), *model, *machine])
    last = [record for record in run_log.read(work / "log.jsonl") if "targets" in record][-1]
    speed = round(last["targets"] / last["seconds"])  # of a run by itself only if it ran alone
    return {"dev_bits_per_byte": read_json_object(work / "evaluate.json")["bits_per_byte"], "tokens_per_second": speed}


def look_at(job: Job, folder: Path, machine: Sequence[str]) -> dict[str, float]:
    """Accuracy of a finished run's best model on the test set and every shifted set, by the set's name.

    The command has predicted the test set already; the shifted sets are read here.
    """
    if job.method.option == "pretrain":
        return {}  # the validation text is its only other set
    work = folder / job.key
    figures = read_json_object(next(work.glob("*/result.json")))
    accuracies = {"test": figures["test_acc"]} if "test_acc" in figures else {}
    sets = {name: path for name, path in job.final.items() if Path(path).exists()}
    if not sets:
        return accuracies
    if job.method.option != "prompt":
        checkpoint = next(iter([*work.glob("*/merged.pt"), *work.glob("*/best.pt")]))
        words = ["--option", "predict", "--checkpoint", str(checkpoint), "--json", *machine, "--input", *sets.values()]
        summaries = [json.loads(line) for line in _output_of(words).split("\n") if '"accuracy"' in line]
        return accuracies | {name: entry["accuracy"] for name, entry in zip(sets, summaries, strict=True)}
    for name, path in sets.items():  # zero-shot: the set takes the place of the dev set
        words = ["--option", "prompt", *machine, "--save_dir", str(work / name)]
        flags = job.flags | job.files | {"dev": path, "test": path}
        flags |= {f"{split}_out": work / f"{name}-{split}-prompting-output.txt" for split in ("dev", "test")}
        _output_of([*words, *(word for flag, value in flags.items() for word in words_of(flag, value))])
        accuracies[name] = read_json_object(next((work / name).glob("*/result.json")))["dev_acc"]
    return accuracies


def _output_of(words: Sequence[str]) -> str:
    command = [sys.executable, "run_llama.py", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if ended.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed: {ended.stderr.strip().splitlines()[-1:]}")
    return ended.stdout


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a results file by their keys; a later record completes an earlier one."""
    results: dict[str, dict[str, Any]] = {}
    for record in run_log.read(path) if path.exists() else []:
        results[record["key"]] = results.get(record["key"], {}) | record
    return results


def main(argv: list[str] | None = None) -> int:
    """Runs the list; see `cli.carry_out` for the exit codes."""
    parser = cli.new_parser("methods", __doc__ or "")
    parser.add_argument("--list", type=Path, help="experiments, default: recipes/methods.toml", metavar="FILE")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data files", metavar="DIR")
    parser.add_argument("--seeds", type=seed_number, nargs="+", help="instead of the list's", metavar="SEED")
    parser.add_argument("--only", nargs="+", default=[""], help="only runs whose key contains TEXT", metavar="TEXT")
    parser.add_argument("--quick", action="store_true", help="the list in recipes/methods_quick.toml: minutes")
    parser.add_argument("--final", action="store_true", help="look at the test and shifted sets of finished runs")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at the same time", metavar="N")
    parser.add_argument("--threads", type=positive, help="threads of each run", metavar="N")
    parser.add_argument("--use_gpu", action="store_true", help="run on the first CUDA device")
    parser.add_argument("--save_dir", type=Path, default=Path("runs/methods"), help="folder of the runs", metavar="DIR")
    parser.add_argument("--out", type=Path, help="default: results/methods, or with --quick the runs' folder")
    args = parser.parse_args(argv)
    args.list = args.list or ROOT / "recipes" / ("methods_quick.toml" if args.quick else "methods.toml")
    args.out = args.out or (args.save_dir if args.quick else Path("results/methods"))
    return cli.carry_out("methods", lambda: prepare(args))


def prepare(args: Any) -> cli.Work:
    """Reads the list and the results so far; returns the work. Raises OSError or ValueError."""
    jobs, missing = read_list(args.list, Path(input_file(str(args.data))).resolve(), args.seeds)
    jobs = [job for job in jobs if any(text in job.key for text in args.only)]
    if not jobs:
        raise ValueError("\n".join([f"{args.list} has no experiment to run", *missing]))
    args.out.mkdir(parents=True, exist_ok=True)
    threads = args.threads or (max(1, (os.cpu_count() or 1) // args.jobs) if args.jobs > 1 else None)
    machine = [*(["--use_gpu"] if args.use_gpu else []), *(["--threads", str(threads)] if threads else [])]
    return lambda: run_all(jobs, missing, machine, args)


def run_all(jobs: Sequence[Job], missing: Sequence[str], machine: Sequence[str], args: Any) -> None:
    """Runs what is not finished, `args.jobs` at a time, and writes the comparison.

    Raises ChildProcessError, with a line for each run that failed, when the others have ended.
    """
    for line in missing:
        print(line)
    path = args.out / "results.jsonl"
    log, done, failures = run_log.RunLog(path), read_results(path), []
    open_jobs = [job for job in jobs if job.key not in done or (args.final and "final" not in done[job.key])]
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(open_jobs), desc="experiments", unit="run")
    with bar, ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(complete, job, done.get(job.key), log, machine, args) for job in open_jobs]
        for run in as_completed(runs):
            try:
                run.result()
            except (OSError, ValueError) as error:
                failures.append(str(error))
            bar.update()
    write_comparison(read_results(path), [job.key for job in jobs], args.out)
    if failures:
        raise ChildProcessError("\n".join(failures))


def complete(job: Job, record: dict[str, Any] | None, log: run_log.RunLog, machine: Sequence[str], args: Any) -> None:
    """Runs a job that has no record, looks at the test and shifted sets if --final asks for it, and logs both."""
    folder = args.save_dir.resolve()
    if record is None:
        record = {"method": job.method.name, "baseline": job.method.baseline, "data": job.data, "seed": job.seed}
        log.write(key=job.key, **record, **run_job(job, folder, machine))
    if args.final and "final" not in record:
        log.write(key=job.key, final=look_at(job, folder, machine))


if __name__ == "__main__":
    sys.exit(main())
