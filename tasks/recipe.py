"""Recipes: the flags of a run in a TOML file, so that a long command becomes `--recipe FILE`. No torch.

    python run_llama.py --recipe recipes/stories.toml --corpus stories.txt

A recipe names its `program` and `option` and has a table `[flags]`. Flags on the command line win.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Collection
from typing import Any

from engine.io.files import read_text
from tasks.settings import Settings, input_file

NOT_REPEATED = ("resume", "recipe", "tensorboard")  # how a run was continued or watched


def read_recipe(path: str | os.PathLike, program: str, options: Collection[str]) -> tuple[str, list[str]]:
    """The option and the flags of a recipe, as words of a command line.

    A recipe is a TOML file with `program`, `option` and a table `flags`. Raises OSError for a file that cannot be
    read and ValueError for one that is no recipe of this program.
    """
    try:
        content = parse_toml(read_text(input_file(os.fspath(path))))
    except FileNotFoundError:
        raise FileNotFoundError(f"--recipe {path}: no such file (the recipes that ship are in recipes/)") from None
    except ValueError as error:
        raise ValueError(f"--recipe {path} is not TOML: {error}") from None
    if content.get("program") != program:
        raise ValueError(f"--recipe {path} is for {content.get('program', 'another program')}, not {program}")
    option, flags = str(content.get("option")), content.get("flags", {})
    if option not in options or not isinstance(flags, dict):
        raise ValueError(f"--recipe {path} needs an `option` of {program} and a table [flags]")
    return option, [word for name, value in flags.items() for word in words_of(name, value)]


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text; ValueError for any other."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python refuses to convert very long numbers
        raise ValueError("a number has too many digits") from None


def words_of(name: str, value: Any) -> list[str]:
    """A flag and its value, as in a recipe, as words of a command line."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def recipe_text(program: str, option: str, settings: Settings) -> str:
    """A recipe that repeats a run: the flags that were given on the command line, and the seed."""
    entries = {entry.name: entry for entry in dataclasses.fields(settings) if "help" in entry.metadata}
    lines = [f'program = "{program}"', f'option = "{option}"', "", "[flags]"]
    for name, entry in entries.items():
        value = getattr(settings, name)
        if name in NOT_REPEATED or value is None or not (name in settings.given or name == "seed"):
            continue
        spelled = (entry.metadata["names"] or (f"--{name}",))[0].removeprefix("--")
        lines.append(f"{spelled} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
