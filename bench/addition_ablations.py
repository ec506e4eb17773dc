"""The ablations of the adder: one flag changed at a time, each trained and tested into a folder of its own.

    python -m bench.addition_ablations                 # all, an hour of one core; what is done is not done again
    python -m bench.addition_ablations --only 3 4

1 to 13 start from the model of 1,784 parameters, 17 on from the trial of the model of 570. All of a kind have the same
budget, too short for some of them: what they show is how fast a setting learns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BASE = {
    "--dim": 8, "--n_layers": 4, "--n_heads": 2, "--n_kv_heads": 1, "--head_dim": 4, "--hidden_dim": 8,
    "--rope_theta": 0.6333, "--init_std": 0.02, "--batch_size": 128, "--lr": 1e-2, "--schedule": "cosine",
    "--warmup_steps": 500, "--max_grad_norm": 1, "--nines": 0.3, "--seeds": 3, "--seed": 1,
    "--examples": 768_000, "--epochs": 1, "--evaluate_every": 500, "--save_every": 3000,
}  # fmt: skip
TRIAL = BASE | {
    "--dim": 6, "--n_layers": 2, "--hidden_dim": 4, "--rope_theta": 30, "--init_std": 0.1, "--lr": 3e-2,
    "--seed": 8, "--seeds": 16, "--examples": 1_536_000, "--evaluate_every": 4000, "--save_every": 4000,
}  # fmt: skip
ABLATIONS = {
    1: ("nothing changed", {}),
    2: ("two layers", {"--n_layers": 2}),
    3: ("three layers", {"--n_layers": 3}),
    4: ("width 6", {"--dim": 6}),
    5: ("one head", {"--n_heads": 1}),
    6: ("two key/value heads", {"--n_kv_heads": 2}),
    7: ("feed-forward of 4", {"--hidden_dim": 4}),
    8: ("RoPE theta 10,000", {"--rope_theta": 10_000}),
    9: ("RoPE theta 10", {"--rope_theta": 10}),
    10: ("learning rate 1e-3", {"--lr": 1e-3}),
    11: ("RMSNorm", {"--norm_type": "rmsnorm"}),
    12: ("half the examples", {"--examples": 384_000}),
    13: ("no more nines than chance", {"--nines": 0}),
    17: ("sixteen other seeds", TRIAL | {"--seed": 24}),
    18: ("feed-forward of 10", TRIAL | {"--hidden_dim": 10}),
    19: ("width 8, rate 4e-2", TRIAL | {"--dim": 8, "--lr": 4e-2}),
    20: ("width 8, rate 2e-2", TRIAL | {"--dim": 8, "--lr": 2e-2}),
    21: ("width 8, rate 1e-2, RoPE theta 100", TRIAL | {"--dim": 8, "--lr": 1e-2, "--rope_theta": 100}),
    22: ("width 8, rate 1e-2, RoPE theta 10", TRIAL | {"--dim": 8, "--lr": 1e-2, "--rope_theta": 10}),
    23: ("width 8, rate 1e-2, first weights of 0.3", TRIAL | {"--dim": 8, "--lr": 1e-2, "--init_std": 0.3}),
}


def command(number: int, folder: Path, threads: int) -> list[str]:
    """The training command of an ablation."""
    flags = BASE | ABLATIONS[number][1] | {"--save_dir": f"{folder}/", "--threads": threads}
    said = [str(part) for pair in flags.items() for part in pair]
    return [sys.executable, "addition_run.py", "train", *said, "--dev_examples", "10000", "--no_data_files"]


def main() -> None:
    """Trains and tests what is not done yet, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", choices=ABLATIONS, help="these ablations alone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    for number in args.only or ABLATIONS:
        folder = Path(f"addition_models/ablation_{number}")
        if (folder / "experiment_summary.json").exists():
            continue
        print(f"ablation {number}: {ABLATIONS[number][0]}", flush=True)
        subprocess.run(command(number, folder, args.threads), check=True)
        tested = ["test", "--checkpoint", f"{folder}/best_model.pth", "--threads", str(args.threads)]
        subprocess.run([sys.executable, "addition_run.py", *tested], check=True)


if __name__ == "__main__":
    main()
