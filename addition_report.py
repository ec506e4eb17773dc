"""The adders side by side: a table of all tested models in a folder, and accuracy against parameters as a figure.

    python addition_report.py --models addition_models --out docs/addition_accuracy.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import plots
from files import check_writable

PUBLIC = [  # parameters and accuracy on the course's test that public solutions of the course report
    (3_288, 1.0), (16_880, 1.0), (25_312, 1.0), (134_880, 1.0), (25_200, 1.0), (25_200, 0.085), (1_176, 0.022),
    (28_560, 0.70),
]  # fmt: skip


def read_models(folder: Path) -> list[dict]:
    """What `addition_run.py test` and `train` wrote of every model, the smallest first. Raises ValueError for none."""
    found = []
    for path in sorted(folder.glob("*/experiment_summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        training, model = summary["train_config"], summary["model_config"]
        result = training.get("result", {})
        at_the_end = result.get("seed_accuracies_at_the_end", [])
        found.append({
            "name": path.parent.name,
            "parameters": summary["num_params"],
            "shape": f"{model['dim']}/{model['n_layers']}/{model['n_heads']}/{model['n_kv_heads']}",
            "examples": training.get("examples"),
            "minutes": result.get("minutes"),
            "seeds": f"{sum(accuracy == 1 for accuracy in at_the_end)} of {len(at_the_end)}",
            "accuracy": summary["accuracy"],
            "wrong_of_81_million": summary.get("exhaustive", {}).get("wrong"),
        })  # fmt: skip
    if not found:
        raise ValueError(f"{folder} holds no tested model: run addition_run.py test first")
    return sorted(found, key=lambda model: (model["parameters"], -model["accuracy"]))


def table(models: list[dict]) -> str:
    """A Markdown table, one model a line."""
    names = list(models[0])
    rows = [[f"{model[name]:,}" if isinstance(model[name], int) else str(model[name]) for name in names]
            for model in models]  # fmt: skip
    heads = [name.replace("_", " ") for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(names), *rows])


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes the figure; bad input ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="addition_models", help="folder of the models' folders")
    parser.add_argument("--out", help="figure to write (PNG)")
    args = parser.parse_args(argv)
    try:
        models = read_models(Path(args.models))
        out = check_writable(args.out) if args.out else None
    except (ValueError, OSError) as error:
        print(f"addition_report.py: {error}", file=sys.stderr)
        return 2
    print(table(models))
    if out is not None:
        plots.accuracy_by_parameters([(model["parameters"], model["accuracy"]) for model in models], PUBLIC, out)
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
