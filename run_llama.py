"""The course's entry point: parses the flags and hands them to the task that `--option` names.

    python run_llama.py --option generate
"""

from __future__ import annotations

import importlib
import sys

import cli

TASKS = {  # option: module and function that checks everything and returns the work
    "generate": ("generate", "prepare"),
    "prompt": ("sentiment", "prepare_prompt"),
    "finetune": ("sentiment", "prepare_training"),
    "lora": ("sentiment", "prepare_training"),
    "tokenizer": ("pretrain", "prepare_tokenizer"),
    "pretrain": ("pretrain", "prepare"),
    "vectors": ("vectors", "prepare"),
    "evaluate": ("evaluate", "prepare"),
    "addition": ("addition_run", "prepare"),
    "submission": ("submission", "prepare"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the task. Bad input ends in one line and exit code 2 before any work, a full disk in 1, Ctrl-C in 130."""
    args = cli.parse_args(argv)
    module, function = TASKS[args.option]
    try:
        work = getattr(importlib.import_module(module), function)(args)
    except (ValueError, OSError) as error:
        print(f"run_llama.py: {error}", file=sys.stderr)
        return 2
    try:
        work()
    except OSError as error:
        print(f"run_llama.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
