"""The settings of `--task qa`, for `--option finetune` and `--option prompt`.

    python run_llama.py --option finetune --task qa --help
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.settings import MachineSettings, ModelSettings, TrainingSettings, flag, input_flag, positive

LINES = 'JSON lines {"prompt": "…", "answer": "…"}'


@dataclass(frozen=True, kw_only=True)
class QaSettings(ModelSettings, MachineSettings):
    """prompts and answers"""

    task: str = flag("qa", "prompts that are answered with text", choices=("qa",))
    dev: str = input_flag("data/qa-dev.jsonl", f"dev set: {LINES}")
    test: str | None = input_flag(None, "test set, answered once at the end; none if not given")
    dev_out: str | None = flag(
        None, "file for the answers to --dev, default: dev-answers.jsonl in the run's folder", metavar="FILE"
    )
    test_out: str | None = flag(None, "the same for --test", metavar="FILE")
    batch_size: int = flag(8, "examples per batch, and prompts answered in parallel", type=positive, metavar="N")
    max_new_tokens: int = flag(32, "tokens of an answer at most", type=positive, metavar="N")
    save_dir: str = flag("runs", "folder for the folders of runs", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(QaSettings):
    """answers of a model as it is"""

    option: ClassVar[str] = "prompt"

    dtype: str = flag("float32", "compute precision", choices=("float32", "bfloat16", "float16"))


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainingSettings, QaSettings):
    """fine-tuning on answers"""

    option: ClassVar[str] = "finetune"

    train: str = input_flag("data/qa-train.jsonl", f"training set: {LINES}; the loss is on the answers")
