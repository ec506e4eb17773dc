"""Uploads an exported folder to the Hugging Face hub, by the package `huggingface_hub`.

    python run_llama.py --option export --out runs/folder --push USER/NAME --dry_run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.io.packages import needed


def check_hub(repository: str) -> Any:
    """A logged-in `HfApi`. Raises ValueError where the package is missing, nobody is logged in, or the hub is away."""
    api = needed("huggingface_hub", "uploads with --push").HfApi()
    try:
        api.whoami()
    except Exception as error:  # the package raises many kinds, of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"--push {repository}: the hub knows nobody here; run hf auth login ({reason})") from None
    return api


def listed(folder: Path) -> list[str]:
    """One line per file of the folder: its size and name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [f"{path.stat().st_size / 1e6:9.3f} MB  {path.relative_to(folder).as_posix()}" for path in files]


def upload(api: Any, folder: Path, repository: str) -> None:
    """Makes the repository if it is new, and uploads the folder as one commit. Raises OSError if the hub refuses."""
    try:
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by min-llama")
    except Exception as error:
        raise OSError(f"--push {repository}: {' '.join(str(error).split())}") from None
    print(f"uploaded to {commit.commit_url}")
