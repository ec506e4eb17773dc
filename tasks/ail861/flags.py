"""The settings of `python -m tasks.ail861.run` and of `python -m tasks.ail861.hand_in`.

    python -m tasks.ail861.run --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import LogSettings, Settings, flag, input_flag, thread_count


@dataclass(frozen=True, kw_only=True)
class Ail861Settings(LogSettings):
    """the AIL861 assignment"""

    corpus: str = input_flag("", "training stories", required=True)
    valid: str = input_flag("", "validation stories: measured, never trained on", required=True)
    size: str = flag("small", "recipes/ail861_SIZE.toml; small: two cores, large: a GPU",
                     choices=("tiny", "small", "large"))  # fmt: skip
    save_dir: str = flag("runs/ail861/results", "folder for tables and figures", metavar="DIR")
    runs: str = flag("runs/ail861", "folder for checkpoints and logs", metavar="DIR")
    use_gpu: bool = flag(False, "run on the first CUDA device")
    dtype: str | None = flag(None, "compute precision; by default the size's", choices=("float32", "bfloat16"))
    threads: int | None = flag(None, "CPU threads", type=thread_count, metavar="N")
    show: bool = flag(False, "print the commands and do nothing")


@dataclass(frozen=True, kw_only=True)
class HandInSettings(Settings):
    """the hand-in of AIL861"""

    entry: str = flag("", "your entry number: names the zip and the folder in it", metavar="ID", required=True)
    hub: str | None = flag(None, "the trained model on the Hugging Face hub, or a link to it", metavar="USER/REPO")
    results: str | None = flag(
        None, "folder of the run's tables and figures; by default runs/ail861/results, else the shipped results/ail861",
        metavar="DIR",
    )  # fmt: skip
    discussion: str | None = input_flag(None, "your own words, a text shown before the results")
