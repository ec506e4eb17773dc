"""The model a task starts from: the named one, else the course's `stories42M.pt`, else the shipped one.

    python run_llama.py --option generate --pretrained-model-path stories15M.bin --norm rmsnorm
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.io.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from llama import Llama, from_checkpoint
from tasks.settings import ModelSettings
from tokenizer import TOKENIZER_MODEL, AnyTokenizer, load_tokenizer

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "stories.pt"


def load_model(settings: ModelSettings, device: torch.device, mapped: bool = True) -> tuple[Llama, AnyTokenizer, Path]:
    """The model in evaluation mode on `device`, its tokenizer, and its path; prints the reader's notes.

    `mapped` as in `read_checkpoint`. Raises OSError or ValueError if the checkpoint or tokenizer cannot be read, or the
    two do not fit.
    """
    path = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    checkpoint = read_checkpoint(path, settings.norm, mapped)
    tokenizer = _tokenizer(path, checkpoint, settings.tokenizer, settings.max_sentence_len)
    for note in checkpoint.notes:
        print(note)
    return from_checkpoint(checkpoint).to(device), tokenizer, path


def choose_path(default: str, named: bool) -> Path:
    """`default` if it was named on the command line or exists; else the shipped model, with one line that says so.

    Raises FileNotFoundError if neither exists, as in an unpacked submission.
    """
    if named or Path(default).exists():
        return Path(default)
    if not SHIPPED.exists():
        raise FileNotFoundError(
            f"no such file: {default}, nor the shipped models/{SHIPPED.name}: bash setup.sh fetches {default}, "
            "or name a checkpoint with --pretrained-model-path"
        )
    print(f"{default} is not here: the shipped story model serves in its place")
    return SHIPPED


def _tokenizer(path: Path, checkpoint: Checkpoint, named: str | None, max_len: int | None) -> AnyTokenizer:
    """The named tokenizer, else the checkpoint's, else the course's; its size must be the model's vocabulary size."""
    tokenizer = load_tokenizer(named or checkpoint.tokenizer or TOKENIZER_MODEL, max_len)
    if tokenizer.n_words != checkpoint.config.vocab_size:
        raise CheckpointError(
            f"{tokenizer.model_path} has {tokenizer.n_words} pieces, but {path} has a vocabulary "
            f"of {checkpoint.config.vocab_size}: name its tokenizer with --tokenizer"
        )
    return tokenizer
