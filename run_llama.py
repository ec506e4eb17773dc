"""The course's entry point: parses the flags and hands them to the task that `--option` names.

    python run_llama.py --option generate
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from tasks import cli

TASKS = {  # option: module and function that checks everything and returns the work
    "generate": ("tasks.generate", "prepare"),
    "prompt": ("tasks.sentiment.task", "prepare_prompt"),
    "finetune": ("tasks.sentiment.task", "prepare_training"),
    "lora": ("tasks.sentiment.task", "prepare_training"),
    "tokenizer": ("tasks.stories.pretrain", "prepare_tokenizer"),
    "pretrain": ("tasks.stories.pretrain", "prepare"),
    "vectors": ("tasks.stories.vectors", "prepare"),
    "evaluate": ("tasks.stories.evaluate", "prepare"),
    "addition": ("addition_run", "prepare"),
    "submission": ("tasks.submission.run", "prepare"),
}


TOGETHER = ("pretrain", "finetune", "lora")  # what several processes can do, as torchrun starts them


def main(argv: list[str] | None = None) -> int:
    """Runs the task; see `cli.carry_out` for how it ends."""
    args = cli.parse_args(argv)
    module, function = TASKS[args.option]

    def prepare() -> Callable[[], None]:
        return getattr(importlib.import_module(module), function)(args)

    def prepare_together() -> Callable[[], None]:
        if args.option not in TOGETHER:
            raise ValueError(f"--option {args.option} is for one process: start it without torchrun")
        return importlib.import_module("engine.train.distributed").prepare_together(prepare, args.use_gpu)

    return cli.carry_out("run_llama.py", prepare if cli.process_count() == 1 else prepare_together)


if __name__ == "__main__":
    code = main()
    if cli.process_count() > 1:  # gloo's threads may still wait for another process, and abort one that tears them down
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
