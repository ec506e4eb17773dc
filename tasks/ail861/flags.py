"""The settings of `python -m tasks.ail861.run`.

    python -m tasks.ail861.run --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import Settings, flag, positive


@dataclass(frozen=True, kw_only=True)
class Ail861Settings(Settings):
    """the AIL861 assignment"""

    corpus: str = flag("", "training stories", metavar="FILE", required=True)
    valid: str = flag("", "validation stories: measured, never trained on", metavar="FILE", required=True)
    size: str = flag("small", "recipes/ail861_SIZE.toml; small: two cores, large: a GPU",
                     choices=("tiny", "small", "large"))  # fmt: skip
    save_dir: str = flag("runs/ail861/results", "folder for tables and figures", metavar="DIR")
    runs: str = flag("runs/ail861", "folder for checkpoints and logs", metavar="DIR")
    use_gpu: bool = flag(False, "run on the first CUDA device")
    dtype: str | None = flag(None, "compute precision; by default the size's", choices=("float32", "bfloat16"))
    threads: int | None = flag(None, "CPU threads", type=positive, metavar="N")
    show: bool = flag(False, "print the commands and do nothing")
