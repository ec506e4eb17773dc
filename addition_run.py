"""Addition, the course's pretraining task: trains a Llama that adds four-digit numbers, and tests it.

    python addition_run.py train --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10
    python addition_run.py test --checkpoint addition_models/best_model/best_model.pth
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys

import torch

from addition_lib import CharDataset
from config import LlamaConfig
from llama import Llama
from tasks import cli
from tasks.addition.course_loop import evaluate_loss, train_one_epoch
from tasks.addition.testing import answers, is_right, load_adder, parse_prompt
from tasks.addition.workload import Problems
from tasks.options import Option, Program

__all__ = [
    "PROGRAM", "check", "create_model", "evaluate_loss", "generate", "load_model", "main", "test_model",
    "train_one_epoch",
]  # fmt: skip
OPTIONS = {
    "train": Option(
        "train a model", settings="tasks.addition.flags:AdderTraining", door="tasks.addition.train:prepare"
    ),
    "test": Option(
        "test a trained model", settings="tasks.addition.flags:AdderTest", door="tasks.addition.evaluate:prepare_test"
    ),
}
PROGRAM = Program("addition_run.py", "A Llama that adds four-digit numbers: train one, test one.", OPTIONS)


def create_model(config: LlamaConfig) -> Llama:
    """A Llama with fresh weights."""
    return Llama(config)


def load_model(checkpoint: str, device: str | torch.device = "cpu") -> Llama:
    """The adder of a checkpoint, in evaluation mode. Raises OSError, or ValueError if it is no adder."""
    return load_adder(checkpoint, torch.device(device))


def generate(model: Llama, prompt: str, max_gen_len: int = 10) -> str:
    """The problem `1234+5678=` with the model's greedy answer. Raises ValueError for anything else."""
    return answers(model, Problems.of_pairs([parse_prompt(prompt)]), max_gen_len)[0]


def check(text: str) -> bool:
    """Whether `a+b=c` holds."""
    return is_right(text)


def test_model(model: Llama, dataset: CharDataset, max_gen_len: int = 10) -> tuple[float, list[str]]:
    """Share of right answers on the data set's problems, and every answer as `a+b=c`."""
    problems = Problems.of_pairs([parse_prompt(word.partition("=")[0]) for word in dataset.words])
    texts = answers(model, problems, max_gen_len)
    return sum(map(check, texts)) / len(texts), texts


def main(argv: list[str] | None = None) -> int:
    """Runs `train` or `test`; see `cli.carry_out` for the exit codes."""
    name, settings = cli.parse(PROGRAM, argv)
    return cli.carry_out(PROGRAM.name, lambda: OPTIONS[name].prepare(settings), resumable=name == "train")


if __name__ == "__main__":
    sys.exit(main())
