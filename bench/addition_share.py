"""Share of seeds that an adder's recipe makes perfect on dev, with a 95 % interval, and the minutes they take.

    python -m bench.addition_share --recipe recipes/best_adder.toml --first 100 --runs 16 --out runs/share.json
    python -m bench.addition_share --recipe recipes/best_adder.toml --runs 16 --flags --optimizer muon --init_std 0.3

Every run is `addition_run.py train` with a seed of its own, so that no two runs share a model of their seed searches. A
run whose folder has a result is not repeated. `--flags` (last) adds flags of `train` to the recipe's, for an ablation.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from engine.io.files import write_json

Z = 1.959964  # of a standard normal distribution: 95 % lie between −Z and Z


def wilson(successes: int, runs: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927)."""
    share, spread = successes / runs, Z * Z / runs
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / runs + spread / (4 * runs))
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


def result_of(recipe: Path, seed: int, folder: Path, flags: list[str]) -> dict:
    """Trains one seed, unless its folder has a result; returns its dev accuracy and minutes, search included."""
    described = folder / "training_config.json"
    if not described.exists():
        words = ["train", "--recipe", str(recipe), "--seed", str(seed), "--save_dir", str(folder), "--no_data_files"]
        subprocess.run([sys.executable, "addition_run.py", *words, *flags], check=True)
    result = json.loads(described.read_text("utf-8"))["result"]
    minutes = result["minutes"] + result.get("trial", {}).get("minutes", 0.0)
    return {"seed": seed, "accuracy": result["accuracy"], "minutes": round(minutes, 2)}


def summary(results: list[dict]) -> dict:
    """Number of perfect runs, their share with its interval, and all results."""
    perfect = sum(result["accuracy"] == 1.0 for result in results)
    low, high = wilson(perfect, len(results))
    share = {"share": round(perfect / len(results), 4), "interval_95": [round(low, 4), round(high, 4)]}
    return {"runs": len(results), "perfect": perfect} | share | {"results": results}


def main() -> None:
    """Trains all seeds, prints a line for each, and writes the summary after every run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="recipe of `addition_run.py train`")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first run")
    parser.add_argument("--step", type=int, default=1000, help="distance between seeds: at least the seeds of a search")
    parser.add_argument("--runs", type=int, default=16, help="number of runs")
    parser.add_argument("--out", type=Path, default=Path("runs/addition_share.json"), help="JSON file to write")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of `train`")
    args = parser.parse_args()
    results = []
    for seed in range(args.first, args.first + args.runs * args.step, args.step):
        results.append(result_of(args.recipe, seed, args.out.with_suffix("") / str(seed), args.flags))
        found = summary(results)
        write_json(args.out, found | {"recipe": str(args.recipe), "flags": args.flags}, indent=2)
        print(f"{results[-1]}; perfect {found['perfect']} of {found['runs']}, 95 % {found['interval_95']}", flush=True)


if __name__ == "__main__":
    main()
