"""Which model a task starts from: the one named, else the course's `stories42M.pt`, else the one that ships here.

    python run_llama.py --option generate --pretrained-model-path stories15M.bin --norm rmsnorm
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from engine.io.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from llama import Llama, from_checkpoint
from tokenizer import TOKENIZER_MODEL, AnyTokenizer, load_tokenizer

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "stories.pt"


class ModelFlags(Protocol):
    """What the command line says about the model; `given` names the flags that stood there."""

    pretrained_model_path: str
    tokenizer: str | None
    norm: str | None
    max_sentence_len: int | None
    given: frozenset[str]


def load_model(args: ModelFlags, device: torch.device, mapped: bool = True) -> tuple[Llama, AnyTokenizer, Path]:
    """The model in evaluation mode on `device`, its tokenizer, and the path it came from; prints the reader's notes.

    `mapped` as in `checkpoint.read_checkpoint`. Raises OSError or ValueError for a checkpoint or tokenizer that
    cannot be read, or if the two do not fit.
    """
    path = choose_path(args.pretrained_model_path, named="pretrained_model_path" in args.given)
    found = read_checkpoint(path, args.norm, mapped)
    tokenizer = _tokenizer(path, found, args.tokenizer, args.max_sentence_len)
    for note in found.notes:
        print(note)
    return from_checkpoint(found).to(device), tokenizer, path


def choose_path(default: str, named: bool) -> Path:
    """`default` if it was named on the command line or is there; else the shipped model, which one line tells.

    Raises FileNotFoundError where neither is there, as in a submission that is unpacked alone.
    """
    if named or Path(default).exists():
        return Path(default)
    if not SHIPPED.exists():
        raise FileNotFoundError(
            f"no such file: {default}, nor the shipped models/{SHIPPED.name}: bash setup.sh fetches {default}, "
            "or name a checkpoint by --pretrained-model-path"
        )
    print(f"{default} is not here: the shipped story model serves in its place")
    return SHIPPED


def _tokenizer(path: Path, found: Checkpoint, named: str | None, max_len: int | None) -> AnyTokenizer:
    """The tokenizer named, else the checkpoint's own, else the course's; its size must be the model's vocabulary."""
    tokenizer = load_tokenizer(named or found.tokenizer or TOKENIZER_MODEL, max_len)
    if tokenizer.n_words != found.config.vocab_size:
        raise CheckpointError(
            f"{tokenizer.model_path} has {tokenizer.n_words} pieces, but {path} a vocabulary of "
            f"{found.config.vocab_size}: name the tokenizer that fits by --tokenizer"
        )
    return tokenizer
