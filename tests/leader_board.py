"""Writes the leader boards of addition_models/README.md from the models' JSON files and the public figures.

    python -m tests.leader_board
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.io.files import write_text
from tasks.addition.report import PUBLIC
from tests.tiny import ROOT

MODELS = ROOT / "addition_models"
COURSE_ONLY = {"norm_type": "layernorm", "rope_theta": 10000.0, "head_size": None, "ffn_type": "swiglu"}
TEXT = """# Adders: the leader boards

All models answer `a+b=c` with four-digit operands, most significant digit first, greedily: the course's format. They
are sorted by size. `python -m tests.leader_board` writes this page from the JSON files of the models.

- `best_model` is the smallest perfect one of all.
- `course_best` is the smallest perfect one whose configuration differs from the defaults only in the course's twelve
  fields, so that the course's own `addition_run.py` runs it.

Test a model with `python addition_run.py test --checkpoint addition_models/NAME/best_model.pth`; train it again with
`python addition_run.py train --recipe recipes/NAME.toml --save_dir runs/NAME` (`best_adder.toml` for `best_model`).

## Perfect on the 10,000 problems of data/addition_test.txt

{perfect}
## The other experiments

{others}
## Public models

As reported in public repositories of the course, on 10,000 problems.

{public}"""


def models() -> list[dict]:
    """Name, parameters, shape, accuracy and exhaustive result of every shipped model, smallest first."""
    rows = []
    for path in MODELS.glob("*/experiment_summary.json"):
        summary = json.loads(path.read_text("utf-8"))
        config = summary["model_config"]
        exhaustive = summary.get("exhaustive")
        fields = all(config.get(name, value) == value for name, value in COURSE_ONLY.items())
        rows.append({
            "name": path.parent.name, "parameters": summary["num_params"], "accuracy": summary["accuracy"],
            "shape": f"{config['dim']}/{config['n_layers']}/{config['n_heads']}/{config['n_kv_heads']}",
            "all": "" if exhaustive is None else f"{exhaustive['asked'] - exhaustive['wrong']:,}",
            "fields": "the course's twelve" if fields else "ours too",
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["parameters"], -row["accuracy"], row["name"]))


def table(rows: list[list[str]], header: list[str]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """The whole page."""
    rows = models()
    header = ["model", "parameters", "dim/layers/heads/kv", "fields changed", "accuracy", "right of all 81,000,000"]

    def cells(perfect: bool) -> list[list[str]]:
        return [
            [row["name"], f"{row['parameters']:,}", row["shape"], row["fields"], f"{row['accuracy']:.4f}", row["all"]]
            for row in rows if (row["accuracy"] == 1.0) == perfect
        ]  # fmt: skip

    public = [[f"{parameters:,}", shape, f"{accuracy:.3f}"] for parameters, shape, accuracy in PUBLIC]
    return TEXT.format(
        perfect=table(cells(True), header), others=table(cells(False), header),
        public=table(public, ["parameters", "dim/layers/heads/kv", "accuracy"]),
    )  # fmt: skip


def main() -> int:
    """Rewrites the page."""
    write_text(Path(MODELS / "README.md"), page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
