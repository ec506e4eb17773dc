"""Names of run folders: the data set, and what differs from the option's usual settings.

    python -c "from tasks.run_folders import data_set_name; print(data_set_name('data/sst-dev.txt'))"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tasks.settings import Settings, default_of

NOT_IN_FOLDER_NAME = frozenset(  # already in the name, data and outputs, or without influence on the results
    "seed use_gpu threads train dev test label_names dev_out test_out save_dir seeds lr epochs save_every resume "
    "compile tensorboard".split()
)


def data_set_name(path: str | Path) -> str:
    """`data/sst-dev.txt` -> `sst`."""
    return Path(path).stem.removesuffix("-train").removesuffix("-dev").removesuffix("-test")


def variant_suffix(settings: Settings, usual: Mapping[str, object]) -> str:
    """What differs from the usual values, as the end of a folder name: `-batch_size=16-lora_rank=8`, or "".

    A value that is not in `usual` is compared with its default.
    """
    parts = []
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if "help" not in entry.metadata or entry.name in NOT_IN_FOLDER_NAME:
            continue
        if value != usual.get(entry.name, default_of(entry)):
            name = entry.name.replace("pretrained_model_path", "model")
            parts.append(name if value is True else f"{name}={_short(value)}")
    return "".join(f"-{part}" for part in parts)


def _short(value: object) -> str:
    """Numbers without trailing zeros; of a path only the file's name without its ending."""
    return f"{value:g}" if isinstance(value, int | float) else Path(str(value)).stem
