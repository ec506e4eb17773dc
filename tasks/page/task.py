"""`--option page`: a model in one HTML file that runs and explains it offline.

    python run_llama.py --option page --out page.html
    python run_llama.py --option page --pretrained-model-path addition_models/best_model/best_model.pth \
        --out docs/adder.html --overwrite
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.io.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from engine.io.files import check_writable, read_text, write_text
from engine.io.vocabulary import read_vocabulary
from tasks.cli import Work
from tasks.page.build import SOURCES, build, check_sources
from tasks.page.flags import PageSettings
from tasks.page.pack import check_config, pack
from tasks.pretrained import choose_path, without_padding
from tasks.shipped import check_not_shipped

BEST_ADDER = SOURCES.parents[1] / "addition_models" / "best_model" / "best_model.pth"
ADDER_VOCABULARY, ADDER_POSITIONS = 13, 16  # the end token and `+0123456789=`; `9999+9999=19998` after the start
MOST_ADDER_PARAMETERS = 100_000  # all of them are drawn


def prepare(settings: PageSettings) -> Work:
    """Checks the settings, reads and packs the models; returns what writes the page. Raises ValueError or OSError."""
    check_sources()
    out = check_writable(settings.out)
    check_not_shipped(out, settings.overwrite, "--out")
    path = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    models = packed_models(path, settings)
    page = build(models)

    def work() -> None:
        write_text(out, page)
        sizes = ", ".join(f"{role} model of {content['model']['parameters']:,}" for role, content in models.items())
        print(f"wrote {out}: {len(page.encode()) / 1e6:.1f} MB, {sizes} parameters")

    return work


def packed_models(path: Path, settings: PageSettings) -> dict[str, dict[str, Any]]:
    """The models of the page by role: the named one, and the shipped adder beside a language model."""
    checkpoint = read_checkpoint(path, **settings.unsaid())
    _check(path, checkpoint, settings.max_parameters)
    if is_adder(checkpoint):
        models = {"adder": _adder(path, checkpoint, settings.max_parameters)}
    else:
        models = {"language": _language_model(path, checkpoint, settings.tokenizer)}
    for note in checkpoint.notes:
        print(note)
    if "adder" not in models and BEST_ADDER.exists():
        models["adder"] = _adder(BEST_ADDER, read_checkpoint(BEST_ADDER), settings.max_parameters)
    return models


def is_adder(checkpoint: Checkpoint) -> bool:
    """An adder has the course's thirteen tokens and no tokenizer."""
    return checkpoint.config.vocab_size == ADDER_VOCABULARY and checkpoint.tokenizer is None


def _check(path: Path, checkpoint: Checkpoint, most: int) -> None:
    """Raises ValueError for a model that is too large, or that the engine does not know."""
    state, tied = checkpoint.state_dict, checkpoint.config.tie_embeddings
    count = sum(tensor.numel() for name, tensor in state.items() if not (tied and name == "output.weight"))
    if count > most:
        raise CheckpointError(
            f"{path} has {count:,} parameters, more than {most:,}: "
            f"raise --max_parameters for a page of {count / 7.5e5:.0f} MB"
        )
    check_config(checkpoint.config)


def _language_model(path: Path, checkpoint: Checkpoint, named: str | None) -> dict[str, Any]:
    tokenizer = without_padding(path, checkpoint, named)
    packed = pack(checkpoint.config, checkpoint.state_dict)
    return {"name": path.name, "model": packed, "vocabulary": read_vocabulary(tokenizer)}


def _adder(path: Path, checkpoint: Checkpoint, most: int) -> dict[str, Any]:
    """An adder, with what is known of its heads if it is the one that docs/addition.md describes."""
    _check(path, checkpoint, min(most, MOST_ADDER_PARAMETERS))
    if checkpoint.config.max_seq_len < ADDER_POSITIONS:
        raise CheckpointError(f"{path} has {checkpoint.config.max_seq_len} positions; an adder needs {ADDER_POSITIONS}")
    packed = pack(checkpoint.config, checkpoint.state_dict)
    known = json.loads(read_text(SOURCES / "best_adder.json"))
    matches = hashlib.sha256(packed["bytes"].encode()).hexdigest() == known["sha256"]
    heads = known["heads"] if matches else {}
    return {"name": path.name, "model": packed, "characters": "+0123456789=", "heads": heads}
