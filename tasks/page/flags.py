"""The settings of `--option page`.

    python run_llama.py --option page --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import DEFAULT_MODEL, WeightSettings, flag, input_flag, positive


@dataclass(frozen=True, kw_only=True)
class PageSettings(WeightSettings):
    """the page"""

    out: str = flag("page.html", "the HTML file to write", metavar="FILE")
    pretrained_model_path: str = input_flag(
        DEFAULT_MODEL, "checkpoint of a language model, or of an adder",
        names=("--pretrained-model-path",),
    )  # fmt: skip
    tokenizer: str | None = input_flag(
        None, "SentencePiece .model or llama2.c's tokenizer.bin, instead of the model's own"
    )
    max_parameters: int = flag(
        20_000_000, "refuse a larger model: the page holds one byte per parameter", type=positive, metavar="N"
    )
    overwrite: bool = flag(False, "allow replacing a file that ships with the project")
