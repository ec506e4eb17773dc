"""The settings of the methods that combine trained models, and of the comparison of decoding methods.

    python run_llama.py --option wise_ft --help
    python run_llama.py --option soup --help
    python -m tasks.methods.decoding --help
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.settings import (
    DEFAULT_MODEL,
    MachineSettings,
    ModelSettings,
    count,
    flag,
    input_flag,
    number,
    positive,
    thread_count,
)
from tasks.stories.flags import CorpusSettings


@dataclass(frozen=True, kw_only=True)
class SoupSettings(MachineSettings):
    """classifiers to average and the sets that judge them"""

    option: ClassVar[str] = "soup"

    checkpoint: list[str] = flag(
        [], "best.pt of finetune runs or merged.pt of lora runs, of the same model and labels", metavar="FILE",
        nargs="+", required=True,
    )  # fmt: skip
    dev: str = input_flag("", "dev set of the data that they were trained on; it chooses", required=True)
    shifted: list[str] = input_flag([], "further sets, looked at only", nargs="+")
    batch_size: int | None = flag(None, "sentences per batch, default: the training's", type=positive, metavar="N")
    save_dir: str = flag("runs/soup", "folder for the soups, uniform.pt and greedy.pt, and soup.json", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class WiseFtSettings(MachineSettings):
    """fine-tuned classifiers and the sets that judge them"""

    option: ClassVar[str] = "wise_ft"

    checkpoint: list[str] = flag(
        [], "best.pt of finetune runs with --head label_words, or merged.pt of lora runs; several are averaged over",
        metavar="FILE", nargs="+", required=True,
    )  # fmt: skip
    pretrained_model_path: str = input_flag(
        DEFAULT_MODEL, "the language model that they were trained from", names=("--pretrained-model-path",)
    )
    tokenizer: str | None = input_flag(None, "tokenizer, default: the training's")
    dev: str = input_flag("", "dev set of the data that it was trained on; it chooses α", required=True)
    shifted: list[str] = input_flag([], "test sets from elsewhere, looked at only", nargs="+")
    points: int = flag(11, "number of values of α from 0 to 1", type=number(int, 2, 101), metavar="N")
    batch_size: int | None = flag(None, "sentences per batch, default: the training's", type=positive, metavar="N")
    save_dir: str = flag("runs/wise_ft", "folder for the table, the figure and the chosen models", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(CorpusSettings, ModelSettings, MachineSettings):
    """the comparison of decoding methods"""

    threads: int | None = flag(1, "CPU threads", type=thread_count, metavar="N")
    stories: int = flag(200, "documents to continue", type=positive, metavar="N")
    prompt_tokens: int = flag(32, "tokens of a document in the prompt", type=positive, metavar="N")
    max_new_tokens: int = flag(64, "tokens per continuation", type=positive, metavar="N")
    draws: int = flag(
        2, "samples of each story by methods that sample; a later run with more adds to them", type=positive,
        metavar="N",
    )  # fmt: skip
    timed: int = flag(3, "stories decoded one at a time for the speed; 0: leave it out", type=count, metavar="N")
    out: str = flag("runs/methods", "folder for decoding.json and decoding.png", metavar="DIR")
