"""What makes seeds of small adders learn: sixteen seeds of each setting, two million examples, then two measurements.

    python -m bench.addition_search --out docs/addition_search.json        # three minutes of one core per setting

The first is the share of right answers on 30,000 problems. The second is the share among those whose tens and hundreds
sum to nine, through which a carry travels: docs/addition.md says why it matters. The settings change a search with 952
parameters; "by carry, in 0.5, feed-forward of 4" is the first round of `recipes/adder_570.toml`, with a third of its
seeds. A setting whose folder has a result is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import torch

from bench.addition_share import wilson
from config import LlamaConfig
from engine.io.checkpoint import load_plain
from engine.io.files import write_json
from llama import Llama
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import sample_problems
from tasks.addition.workload import Problems, measure

RECIPE, ENOUGH = Path("recipes/adder_570.toml"), 0.98
KEPT = (
    "n_layers", "n_heads", "n_kv_heads", "head_dim", "rope_theta", "init_std", "optimizer", "schedule", "warmup_steps",
    "max_grad_norm", "dev_examples", "zeros",
)  # fmt: skip
USUAL = {"dim": 8, "hidden_dim": 8, "nines": 0.7, "nines_by": "count"}  # of every setting that does not say otherwise
SETTINGS = {
    "nothing": {},
    "by carry": {"nines_by": "carry"},
    "by carry, in 0.5": {"nines_by": "carry", "nines": 0.5},
    "by carry, in 0.5, feed-forward of 4": {"nines_by": "carry", "nines": 0.5, "hidden_dim": 4},
    "by carry, in 0.5, width 6": {"nines_by": "carry", "nines": 0.5, "dim": 6},
    "by carry, twice the examples": {"nines_by": "carry", "examples": 4_096_000},
    "four times the examples": {"examples": 8_192_000},
    "long carries in 0.3": {"nines": 0.3},
    "long carries as drawn": {"nines": 0},
    "feed-forward of 12": {"hidden_dim": 12},
    "feed-forward of 4": {"hidden_dim": 4},
    "width 6, feed-forward of 4": {"dim": 6, "hidden_dim": 4},
    "RoPE theta 100": {"rope_theta": 100},
    "AdamW": {"optimizer": "adamw"},
    "first weights of 0.1": {"init_std": 0.1},
    "no easy problems": {"zeros": 0},
}


def search_flags(recipe: dict) -> dict:
    """The flags of a run that is the first round of the recipe's seed search, with sixteen seeds from another first."""
    searched = {name: recipe[f"trial_{name}"] for name in ("examples", "lr", "batch_size")}
    once = {"seed": 0, "seeds": 16, "epochs": 1, "evaluate_every": 8000, "save_every": 8000}
    return {name: recipe[name] for name in KEPT} | USUAL | searched | once


def trained(changed: dict, folder: Path, threads: int) -> SideBySide:
    """The seeds at the end of their training, which is done unless `folder` has its result."""
    described = folder / "training_config.json"
    if not described.exists():
        usual = search_flags(tomllib.loads(RECIPE.read_text("utf-8"))["flags"])
        flags = [word for name, value in (usual | changed).items() for word in (f"--{name}", str(value))]
        words = ["train", *flags, "--no_data_files", "--threads", str(threads), "--save_dir", str(folder)]
        subprocess.run([sys.executable, "addition_run.py", *words], check=True)
    config = LlamaConfig.from_dict(json.loads((folder / "model_config.json").read_text("utf-8")))
    state = load_plain(folder / "last.pt")["model"]
    model = SideBySide([Llama(config) for _ in state])
    model.load_state_dict(state)
    return model


def shares(model: SideBySide, problems: Problems) -> list[float]:
    """Share of right answers of every seed."""
    return [right / len(problems) for right in measure(model, problems)[1]]


def measured(model: SideBySide, drawn: Problems) -> dict:
    """Both shares of every seed, and how many seeds carry through two nines, with a 95 % interval."""
    a, b = drawn.a.int(), drawn.b.int()
    through = torch.ones(len(drawn), dtype=torch.bool)
    for place in (10, 100):
        through &= a // place % 10 + b // place % 10 == 9
    everywhere, carried = shares(model, drawn), shares(model, drawn.at(through))
    good = sum(share >= ENOUGH for share in carried)
    return {
        "carry_through_two_nines": good, "seeds": len(carried),
        "interval_95": [round(bound, 3) for bound in wilson(good, len(carried))],
        "best": round(max(everywhere), 4), "median": round(statistics.median(everywhere), 4),
        "accuracies": [round(share, 4) for share in everywhere],
        "through_two_nines": [round(share, 3) for share in carried],
    }  # fmt: skip


def main() -> None:
    """Trains and measures all settings, and writes the file after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/addition_search.json"), help="JSON file to write")
    parser.add_argument("--folder", type=Path, default=Path("runs/addition_search"), help="folder for the runs")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="only these settings")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    drawn, found = Problems.of(*sample_problems(30_000, 5)), {}
    for name in args.only:
        model = trained(SETTINGS[name], args.folder / name.replace(" ", "_").replace(",", ""), args.threads)
        found[name] = {"parameters": len(model.seeds[0])} | measured(model, drawn)
        write_json(args.out, found, indent=2)
        print(f"{name}: {found[name]}", flush=True)


if __name__ == "__main__":
    main()
