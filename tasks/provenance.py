"""How a file was made: the command, its flags, the model and the data by content, kept in `runs/made/`.

    python run_llama.py --option generate && cat runs/made/generated-sentence-temp-0.txt.*.json

A record is found by the name and the content of the file: a file that was edited afterwards has none.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.io.files import read_json_object, sha256_of, write_json
from tasks.settings import Settings, default_of

FOLDER = Path("runs") / "made"
NEUTRAL = {  # flags that change no output, and paths: those files are compared by content
    "use_gpu", "threads", "save_dir", "save_every", "resume", "compile", "dev_out", "test_out",
    "generated_sentence_low_temp_out", "generated_sentence_high_temp_out",
    "pretrained_model_path", "train", "dev", "test", "label_names", "checkpoint", "test_file", "exhaustive",
    "no_compile",
}  # fmt: skip
OF_MODEL = {"tokenizer", "norm", "batch_size"}  # flags that an experiment is not known by


def record(
    outputs: Iterable[str | os.PathLike],
    program: str,
    option: str,
    settings: Settings,
    model_path: str | os.PathLike,
    data_paths: Iterable[str | os.PathLike] = (),
) -> None:
    """Records how each file of `outputs` was made. Raises OSError for a file that cannot be read or written."""
    outputs = [Path(output) for output in outputs]
    if not outputs:
        return
    made = {
        "command": command_line(program, option, settings),
        "option": option,
        "flags": flag_values(settings),
        "model": {"path": str(model_path), "sha256": digest(model_path)},
        "data": {str(path): digest(path) for path in data_paths},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for output in outputs:
        write_json(FOLDER / _name(output), made | {"output": str(output)})


def find(path: str | os.PathLike, root: str | os.PathLike = ".") -> dict[str, Any] | None:
    """The record of the file at `path` among those of the project in `root`; None if its content was not recorded."""
    try:
        made = read_json_object(Path(root) / FOLDER / _name(Path(path)))
    except (OSError, ValueError):
        return None
    return made if _is_record(made) else None


def _is_record(made: dict[str, Any]) -> bool:
    flags, model, data = made.get("flags"), made.get("model"), made.get("data")
    if not all(isinstance(table, dict) for table in (flags, model, data)):
        return False
    return all(isinstance(text, str) for text in (model.get("path"), model.get("sha256"), *data.values()))


def flag_values(settings: Settings) -> dict[str, Any]:
    """Every flag of a settings object and its value, whether or not it was given."""
    return {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings) if entry.metadata}


def hand_in_path(settings: Settings, name: str) -> str:
    """The output file of the flag `name`: in runs/ for an experiment that did not name it, so that the hand-in stays.

    An experiment is a run with any other value than the default in a flag that changes outputs.
    """
    path = getattr(settings, name)
    entries = [entry for entry in dataclasses.fields(settings) if "help" in entry.metadata]
    changed = [entry.name for entry in entries if getattr(settings, entry.name) != default_of(entry)]
    if name in settings.given or not set(changed) - NEUTRAL - OF_MODEL:
        return path
    Path("runs").mkdir(exist_ok=True)
    return str(Path("runs") / path)


def command_line(program: str, option: str, settings: Settings) -> str:
    """The command that gives these settings: the option and the flags that were given."""
    words = ["python", program, *(["--option", option] if program == "run_llama.py" else [option])]
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if entry.name in settings.given and value not in (None, False):
            words.append((entry.metadata["names"] or (f"--{entry.name}",))[0])
            words += [] if value is True else map(str, value if isinstance(value, list | tuple) else [value])
    return shlex.join(words)


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, recomputed only when its size or modification time changes; of a folder, always recomputed."""
    if os.path.isdir(path):
        return sha256_of(path)
    status = os.stat(path)
    return _digest(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _digest(path: str, _mtime: int, _size: int) -> str:
    return sha256_of(path)


def _name(output: Path) -> str:
    return f"{output.name}.{digest(output)[:16]}.json"
