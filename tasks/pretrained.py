"""The model a task starts from: the named one, else the course's `stories42M.pt`, else the shipped one.

    python run_llama.py --option generate --pretrained-model-path stories15M.bin --norm rmsnorm
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.io.checkpoint import Checkpoint, CheckpointError, is_padding, read_checkpoint
from llama import Llama, from_checkpoint
from tasks.settings import ModelSettings, input_file
from tokenizer import TOKENIZER_MODEL, AnyTokenizer, load_tokenizer, vocabulary_digest

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "stories.pt"


def load_model(
    settings: ModelSettings, device: torch.device, mapped: bool = True, max_len: int | None = None
) -> tuple[Llama, AnyTokenizer, Path]:
    """The model in evaluation mode on `device`, its tokenizer, and its path; prints the reader's notes.

    `mapped` as in `read_checkpoint`; `max_len` limits the tokens of a text. Raises OSError or ValueError if the
    checkpoint or tokenizer cannot be read, or the two do not fit.
    """
    path = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    checkpoint = read_checkpoint(path, mapped=mapped, **settings.unsaid())
    tokenizer = without_padding(path, checkpoint, settings.tokenizer, max_len)
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


def without_padding(
    path: str | Path, checkpoint: Checkpoint, named: str | None, max_len: int | None = None
) -> AnyTokenizer:
    """The tokenizer of a checkpoint, or the named one; the embedding's rows beyond it are dropped as padding.

    Raises as `fitting_tokenizer`.
    """
    tokenizer = _load(path, named or checkpoint.tokenizer, max_len)
    size, rows = tokenizer.n_words, checkpoint.config.vocab_size
    if is_padding(rows, size):
        checkpoint.cut_vocabulary(size)
        checkpoint.notes.append(f"{path}: dropped {rows - size} of {rows} tokens: padding, which the tokenizer lacks")
    _check_pieces(path, checkpoint.config.vocab_size, checkpoint.vocabulary, tokenizer)
    return tokenizer


def fitting_tokenizer(
    model_path: str | Path,
    vocab_size: int,
    vocabulary: str | None,
    tokenizer_path: str | Path | None,
    max_len: int | None = None,
) -> AnyTokenizer:
    """The tokenizer at a path (None: the course's), which must have the pieces that the model was trained with.

    `vocabulary` is their digest; None for checkpoints without one, where only the number of pieces is compared.
    Raises OSError or ValueError if it cannot be read, and CheckpointError if it is another tokenizer.
    """
    tokenizer = _load(model_path, tokenizer_path, max_len)
    _check_pieces(model_path, vocab_size, vocabulary, tokenizer)
    return tokenizer


def _load(model_path: str | Path, tokenizer_path: str | Path | None, max_len: int | None) -> AnyTokenizer:
    if tokenizer_path is None and Path(model_path).is_dir():
        raise FileNotFoundError(f"{model_path} has no tokenizer.json or tokenizer.model: name one with --tokenizer")
    return load_tokenizer(tokenizer_path or input_file(TOKENIZER_MODEL), max_len)


def _check_pieces(model_path: str | Path, vocab_size: int, vocabulary: str | None, tokenizer: AnyTokenizer) -> None:
    if tokenizer.n_words != vocab_size:
        raise CheckpointError(
            f"{tokenizer.model_path} has {tokenizer.n_words} pieces, but {model_path} has a vocabulary of "
            f"{vocab_size}: name its tokenizer with --tokenizer"
        )
    if vocabulary is not None and vocabulary_digest(tokenizer) != vocabulary:
        raise CheckpointError(
            f"{tokenizer.model_path} has as many pieces as the tokenizer that {model_path} was trained with, but "
            "other ones: name its own with --tokenizer"
        )
