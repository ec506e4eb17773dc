"""The settings of `--option export`.

    python run_llama.py --option export --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import CpuSettings, ModelSettings, flag


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings, CpuSettings):
    """the exported folder"""

    out: str = flag("", "folder to write; it must be new or empty", metavar="DIR", required=True)
    format: str = flag(
        "huggingface", "a folder for transformers and peft, or files for llama2.c", choices=("huggingface", "llama2c")
    )
    overwrite: bool = flag(False, "write into a folder that has files already")
    base_model: str | None = flag(
        None, "where an adapter's users find its base model: a repository of the hub or a folder; without it, a copy "
        "goes into the folder `base`", metavar="NAME",
    )  # fmt: skip
    data: str | None = flag(None, "what the model was trained on, for the model card", metavar="TEXT")
    licence: str | None = flag(None, "licence of the weights, for the model card (mit, apache-2.0, …)", metavar="NAME")
    prompt: str = flag("Once upon a time", "beginning of the model card's sample", metavar="TEXT")
    push: str | None = flag(None, "upload the folder to this repository of the Hugging Face hub", metavar="USER/NAME")
    dry_run: bool = flag(False, "--push: only list the files")

    def __post_init__(self) -> None:
        """Raises ValueError for flags that do not go together."""
        if self.dry_run and self.push is None:
            raise ValueError("--dry_run is for --push: name a repository")
        if self.push is not None and self.push.count("/") != 1:
            raise ValueError(f"--push {self.push}: a repository is USER/NAME")
