"""The ablations of the adder: trains and tests every `recipes/ablation_*.toml` whose folder is missing.

    python -m bench.addition_ablations                 # all that are missing; the short ones take an hour of one core
    python -m bench.addition_ablations --only 4 5

1 to 12 start from the model of 1,784 parameters, 17 to 23 from the seed search of ablation 26. Within a group all
have the same budget, too short for some: they show how fast a setting learns. The others are runs in full.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RECIPES = {int(path.stem.removeprefix("ablation_")): path for path in Path("recipes").glob("ablation_*.toml")}


def commands(number: int, folder: Path, threads: int) -> list[list[str]]:
    """The commands that train and test an ablation."""
    train = ["train", "--recipe", str(RECIPES[number]), "--save_dir", f"{folder}/"]
    test = ["test", "--checkpoint", f"{folder}/best_model.pth"]
    return [[sys.executable, "addition_run.py", *words, "--threads", str(threads)] for words in (train, test)]


def main() -> None:
    """Trains and tests the missing ablations, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", choices=sorted(RECIPES), help="run only these ablations")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    for number in args.only or sorted(RECIPES):
        folder = Path(f"addition_models/ablation_{number}")
        if (folder / "experiment_summary.json").exists():
            continue
        print(RECIPES[number].read_text("utf-8").split("\n")[0].removeprefix("# "), flush=True)
        for command in commands(number, folder, args.threads):
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
