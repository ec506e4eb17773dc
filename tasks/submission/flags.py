"""The settings of `--option submission`.

    python run_llama.py --option submission --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import MachineSettings, ModelSettings, flag, positive


@dataclass(frozen=True, kw_only=True)
class SubmissionSettings(ModelSettings, MachineSettings):
    """the hand-in"""

    andrewid: str = flag("", "names the zip and the folder in it", metavar="ID", required=True)
    course: str = flag("spring2026", "edition of the course", choices=("spring2026", "fall2025"))
    zero_shot_pooling: str = flag(
        "last_token", "hidden state that zero-shot classification reads: the last real token's, or the last column of "
        "the batch, as in the course's own program and its reference figures", choices=("last_token", "last_column"),
    )  # fmt: skip
    epochs: int | None = flag(
        None, "fine-tuning and LoRA: train for N epochs instead of the course's 5, to try the hand-in quickly; the "
        "summary says so", type=positive, metavar="N",
    )  # fmt: skip
