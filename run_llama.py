"""The course's entry point: parses the flags and runs the task that `--option` names.

    python run_llama.py --option generate
    python run_llama.py --help
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import importlib
import os
import random
import sys
from typing import Any

from tasks import cli
from tasks.options import Option, Program

OPTIONS = {
    "generate": Option(
        "continue a sentence, greedily and by sampling",
        "tasks.generate.flags:GenerateSettings", "tasks.generate.task:prepare",
    ),
    "prompt": Option(
        "classify sentences zero-shot, with the language model's own words; with --task qa, answer prompts",
        "tasks.sentiment.flags:PromptSettings", "tasks.sentiment.prompt:prepare",
        by_task={"qa": Option(
            "answer prompts with a model as it is, and score the answers",
            "tasks.qa.flags:AnswerSettings", "tasks.qa.task:prepare_answers",
        )},
    ),
    "finetune": Option(
        "train the model and a classification head; with --task qa, train it to answer prompts", together=True,
        settings="tasks.sentiment.flags:FinetuneSettings", door="tasks.sentiment.training:prepare",
        by_task={"qa": Option(
            "train the model to answer prompts", together=True,
            settings="tasks.qa.flags:TuneSettings", door="tasks.qa.task:prepare",
        )},
    ),
    "lora": Option(
        "train low-rank factors and a classification head", together=True,
        settings="tasks.sentiment.flags:LoraSettings", door="tasks.sentiment.training:prepare",
    ),
    "predict": Option(
        "classify sentences with a trained classifier",
        "tasks.sentiment.flags:PredictSettings", "tasks.sentiment.predict:prepare",
    ),
    "wise_ft": Option(
        "interpolate a zero-shot and a fine-tuned classifier (WiSE-FT)",
        "tasks.methods.flags:WiseFtSettings", "tasks.methods.wise_ft:prepare",
    ),
    "soup": Option(
        "average several fine-tuned classifiers (model soups)",
        "tasks.methods.flags:SoupSettings", "tasks.methods.soup:prepare",
    ),
    "addition": Option(
        "answer --prompt 1234+5678= with the shipped adder, or test it",
        "tasks.addition.flags:AdditionSettings", "tasks.addition.evaluate:prepare",
    ),
    "tokenizer": Option(
        "train a SentencePiece tokenizer, or count the words of a vocabulary",
        "tasks.stories.flags:TokenizerSettings", "tasks.stories.train_tokenizer:prepare",
    ),
    "pretrain": Option(
        "train a language model on a corpus, from scratch or from a checkpoint", together=True,
        settings="tasks.stories.flags:PretrainSettings", door="tasks.stories.pretrain:prepare",
    ),
    "vectors": Option(
        "train FastText vectors for a vocabulary of words",
        "tasks.stories.flags:VectorSettings", "tasks.stories.vectors:prepare",
    ),
    "evaluate": Option(
        "measure bits per byte and perplexity on a text",
        "tasks.stories.flags:EvaluateSettings", "tasks.stories.evaluate:prepare",
    ),
    "export": Option(
        "write a folder for transformers and peft, or files for llama2.c",
        "tasks.export.flags:ExportSettings", "tasks.export.task:prepare",
    ),
    "submission": Option(
        "run the course's commands that are missing, then make and check the zip",
        "tasks.submission.flags:SubmissionSettings", "tasks.submission.run:prepare",
    ),
    "page": Option(
        "write one HTML file that runs and explains a model offline",
        "tasks.page.flags:PageSettings", "tasks.page.task:prepare",
    ),
}  # fmt: skip
COURSE_OPTIONS = ("generate", "prompt", "finetune", "lora", "addition")
COURSE_FLAGS = (
    "train", "dev", "test", "label_names", "pretrained_model_path", "max_sentence_len", "seed", "epochs", "use_gpu",
    "generated_sentence_low_temp_out", "generated_sentence_high_temp_out", "dev_out", "test_out", "lora_rank",
    "lora_alpha", "batch_size", "hidden_dropout_prob", "lr", "epsilon",
)  # fmt: skip
PROGRAM = Program(
    "run_llama.py", "A small Llama laboratory.", OPTIONS, "--option", "generate", COURSE_OPTIONS, COURSE_FLAGS
)


def seed_everything(seed: int = 11711) -> None:
    """The course's name: seeds Python's, NumPy's and torch's generators."""
    import numpy as np  # here, so that --help need not wait for them
    import torch

    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)


def main(argv: list[str] | None = None) -> int:
    """Runs the option that the flags choose; see `cli.carry_out` for the exit codes."""
    name, settings = cli.parse(PROGRAM, argv)
    option = OPTIONS[name].of_task(getattr(settings, "task", None))

    def prepare() -> cli.Work:
        return option.prepare(settings)

    def prepare_together() -> cli.Work:
        if not option.together:
            raise ValueError(f"--option {name} runs in one process: start it without torchrun")
        distributed: Any = importlib.import_module("engine.train.distributed")
        return distributed.prepare_together(prepare, settings.use_gpu)

    ready = prepare if cli.process_count() == 1 else prepare_together
    return cli.carry_out(PROGRAM.name, ready, resumable=hasattr(settings, "resume"))


if __name__ == "__main__":
    code = main()
    if cli.process_count() > 1:  # skip teardown: a gloo thread that still waits for another process would abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
