"""The adders side by side: a table of all tested models in a folder, accuracy against parameters as a figure, and
what the heads of one of them look at.

    python addition_report.py --models addition_models --out docs/addition_accuracy.png
    python addition_report.py --heads_of addition_models/best_model/best_model.pth --out docs/addition_heads.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import plots
from addition_fast import problem_tokens
from addition_problems import sample_problems
from addition_testing import load_adder
from attention_maps import attention_weights
from files import check_writable

PUBLIC = [  # parameters and accuracy on the course's test that public solutions of the course report
    (3_288, 1.0), (16_880, 1.0), (25_312, 1.0), (134_880, 1.0), (25_200, 1.0), (25_200, 0.085), (1_176, 0.022),
    (28_560, 0.70),
]  # fmt: skip
POSITION_NAMES = ("start", "a3", "a2", "a1", "a0", "+", "b3", "b2", "b1", "b0", "=", "c4", "c3", "c2", "c1", "c0")
LOOKED_AT = 200  # problems whose attention is averaged


def read_models(folder: Path) -> list[dict]:
    """What `addition_run.py test` and `train` wrote of every model, the smallest first. Raises ValueError for none."""
    found = []
    for path in sorted(folder.glob("*/experiment_summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        training, model = summary["train_config"], summary["model_config"]
        result = training.get("result", {})
        at_the_end = result.get("seed_accuracies_at_the_end", [])
        trial = result.get("trial", {})
        tried = training.get("trial_seeds") or len(at_the_end)
        found.append({
            "name": path.parent.name,
            "parameters": summary["num_params"],
            "shape": f"{model['dim']}/{model['n_layers']}/{model['n_heads']}/{model['n_kv_heads']}",
            "examples": training.get("examples", 0) + (training.get("trial_examples") or 0),
            "minutes": round(result.get("minutes", 0) + trial.get("minutes", 0), 2),
            "seeds": f"{sum(accuracy == 1 for accuracy in at_the_end)} of {tried}",
            "accuracy": summary["accuracy"],
            "wrong_of_81_million": summary.get("exhaustive", {}).get("wrong"),
        })  # fmt: skip
    if not found:
        raise ValueError(f"{folder} holds no tested model: run addition_run.py test first")
    return sorted(found, key=lambda model: (model["parameters"], -model["accuracy"]))


def table(models: list[dict]) -> str:
    """A Markdown table, one model a line."""
    names = list(models[0])
    rows = [[_cell(model[name]) for name in names] for model in models]
    heads = [name.replace("_", " ") for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(names), *rows])


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_heads(checkpoint: Path, out: Path) -> None:
    """Each head's attention, the mean over `LOOKED_AT` problems whose answers have five digits, as heat maps.

    Positions bear the names of their digits: a3 is the thousands of a, c0 the units of the answer.
    """
    model = load_adder(checkpoint, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(8 * LOOKED_AT, 0))
    long = a + b >= 10000
    rows = problem_tokens(a[long][:LOOKED_AT], b[long][:LOOKED_AT]).T
    maps = torch.stack([attention_weights(model, row) for row in rows]).mean(dim=0)
    plots.attention_maps(maps.tolist(), POSITION_NAMES, out)


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes the figure; bad input ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="addition_models", help="folder of the models' folders")
    parser.add_argument("--heads_of", metavar="CHECKPOINT", help="draw what the heads of this model look at instead")
    parser.add_argument("--out", help="figure to write (PNG)")
    args = parser.parse_args(argv)
    try:
        out = check_writable(args.out) if args.out else None
        if args.heads_of is None:
            _report(read_models(Path(args.models)), out)
        elif out is None:
            raise ValueError("--heads_of draws a figure: name its file by --out")
        else:
            draw_heads(Path(args.heads_of), out)
    except (ValueError, OSError) as error:
        print(f"addition_report.py: {error}", file=sys.stderr)
        return 2
    if out is not None:
        print(f"wrote {out}")
    return 0


def _report(models: list[dict], out: Path | None) -> None:
    print(table(models))
    if out is not None:
        plots.accuracy_by_parameters([(model["parameters"], model["accuracy"]) for model in models], PUBLIC, out)


if __name__ == "__main__":
    sys.exit(main())
