"""The settings of `--option generate`.

    python run_llama.py --option generate --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import (
    LengthSettings,
    MachineSettings,
    ModelSettings,
    flag,
    input_flag,
    number,
    positive,
    rate,
    share,
)


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(ModelSettings, LengthSettings, MachineSettings):
    """text generation"""

    generated_sentence_low_temp_out: str = flag(
        "generated-sentence-temp-0.txt", "file for the greedy continuation", metavar="FILE"
    )
    generated_sentence_high_temp_out: str = flag(
        "generated-sentence-temp-1.txt", "file for the sampled continuation", metavar="FILE"
    )
    prompt: str | None = flag(
        None, "text to continue, instead of the course's sentence; empty: start from BOS", metavar="TEXT"
    )
    prompt_file: str | None = input_flag(None, "continue every line of this file")
    num_samples: int = flag(
        1, "samples per prompt, with consecutive seeds", type=number(int, 1, 1_000_000), metavar="N"
    )
    batch_size: int = flag(8, "prompts decoded in parallel", type=positive, metavar="N")
    max_new_tokens: int = flag(75, "tokens to add", type=number(int, 0, 10_000_000), metavar="N")
    temperature: float | None = flag(
        None, "one continuation at this temperature, instead of one at 0 and one at 1", type=rate, metavar="T"
    )
    top_p: float = flag(
        0.95, "sample from the smallest set of tokens with at least this total probability",
        type=number(float, 0.0, 1.0, above=True), metavar="P",
    )  # fmt: skip
    top_k: int | None = flag(None, "sample from the K most likely tokens", type=positive, metavar="K")
    min_p: float | None = flag(
        None, "drop tokens below this share of the highest probability", type=share, metavar="P"
    )
    epsilon: float | None = flag(
        None, "drop tokens below this probability, instead of top-p", type=share, metavar="E"
    )
    typical: float | None = flag(
        None, "sample from the tokens closest to the expected surprise, up to this total probability, instead of top-p",
        type=number(float, 0.0, 1.0, above=True), metavar="P",
    )  # fmt: skip
    quantize: str = flag(
        "float32", "precision of the weights on a CPU; int8 is faster for large models, with a small loss in quality",
        choices=("float32", "int8"),
    )  # fmt: skip
    dtype: str = flag("float32", "compute precision", choices=("float32", "bfloat16"))
    slide: int = flag(
        64, "when the context is full, drop the oldest N tokens (1: the course's behaviour)", type=positive,
        metavar="N",
    )  # fmt: skip
