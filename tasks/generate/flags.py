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

SAMPLING = (  # flags of sampling and of its fast steps, which contrastive and beam search do not use
    "temperature", "top_p", "top_k", "min_p", "epsilon", "typical", "repetition_penalty", "num_samples", "batch_size",
    "quantize", "dtype",
)  # fmt: skip


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
    top_k: int | None = flag(
        None, "sample from the K most likely tokens; with --contrastive: choose among them (default: 5)", type=positive,
        metavar="K",
    )  # fmt: skip
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
    repetition_penalty: float | None = flag(
        None, "make every token of the text so far less likely by this factor", type=number(float, 1.0), metavar="R"
    )
    contrastive: float | None = flag(
        None, "contrastive search instead of sampling: weight, 0 to 1, of the penalty for tokens like those before",
        type=share, metavar="ALPHA",
    )  # fmt: skip
    beams: int | None = flag(
        None, "beam search instead of sampling: the most likely continuation that N beams find", type=positive,
        metavar="N",
    )  # fmt: skip
    length_penalty: float = flag(
        1.0, "--beams: divide log-probabilities by length to this power; 0 prefers short texts", type=rate, metavar="A"
    )
    quantize: str = flag(
        "float32", "precision of the weights on a CPU; int8 is faster for large models, with a small loss in quality",
        choices=("float32", "int8"),
    )  # fmt: skip
    dtype: str = flag("float32", "compute precision", choices=("float32", "bfloat16"))
    slide: int = flag(
        64, "when the context is full, drop the oldest N tokens (1: the course's behaviour)", type=positive,
        metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuses flags that the chosen search has no use for; raises ValueError."""
        if self.contrastive is not None and self.beams is not None:
            raise ValueError("--contrastive and --beams exclude each other")
        if self.beams is None and "length_penalty" in self.given:
            raise ValueError("--length_penalty belongs to --beams")
        search = "beams" if self.beams is not None else "contrastive" if self.contrastive is not None else None
        unused = [name for name in SAMPLING if name in self.given and (name, search) != ("top_k", "contrastive")]
        if search and unused:
            raise ValueError(f"--{search} draws nothing and decodes one prompt at a time: leave out --{unused[0]}")
