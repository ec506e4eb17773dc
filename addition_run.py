"""Addition, the course's pretraining task: trains a Llama that adds four-digit numbers, and tests it.

    python addition_run.py train --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10
    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth
"""

from __future__ import annotations

import sys

from tasks import cli
from tasks.addition.workload import evaluate_loss, train_one_epoch
from tasks.cli import Option, Program

__all__ = ["PROGRAM", "evaluate_loss", "main", "train_one_epoch"]
OPTIONS = {
    "train": Option(
        "train a model", settings="tasks.addition.flags:AdderTraining", door="tasks.addition.train:prepare"
    ),
    "test": Option(
        "test a trained model", settings="tasks.addition.flags:AdderTest", door="tasks.addition.evaluate:prepare_test"
    ),
}
PROGRAM = Program("addition_run.py", "A Llama that adds four-digit numbers: train one, test one.", OPTIONS)


def main(argv: list[str] | None = None) -> int:
    """Runs `train` or `test`; see `cli.carry_out` for the exit codes."""
    name, settings = cli.parse(PROGRAM, argv)
    return cli.carry_out(PROGRAM.name, lambda: OPTIONS[name].prepare(settings))


if __name__ == "__main__":
    sys.exit(main())
