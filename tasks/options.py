"""What a program can do: its options, named by strings, so that only the chosen one is imported. No torch.

    python -c "import run_llama; print(*(name for name, _ in run_llama.PROGRAM.all_options()))"
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import start

Work = Callable[[], None]


@dataclass(frozen=True)
class Option:
    """What a program can do: a summary, its settings as "module:class" and its door as "module:function".

    The door checks everything and returns the work. `together`: several processes can share it under torchrun.
    `by_task`: a value of `--task` whose settings and door are others than the option's own.
    """

    summary: str
    settings: str
    door: str
    together: bool = False
    by_task: Mapping[str, Option] = field(default_factory=dict)

    def of_task(self, task: str | None) -> Option:
        """The option as it is with this `--task`."""
        return self.by_task.get(task or "", self)

    def settings_class(self) -> type:
        """Imports the settings, which takes no torch."""
        return _named(self.settings)

    def prepare(self, settings: Any) -> Work:
        """Imports the task and calls its door."""
        door = _named(self.door)
        start.ready()
        return door(settings)


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Program:
    """A command: the flag or word that chooses an option, the options, and the flags that some options only tolerate.

    An option of `lenient` accepts every flag of `tolerated` that it has no use for, as the course's parser does.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    selector: str | None = None  # "--option"; None: the option is the first word
    default: str | None = None
    lenient: Sequence[str] = ()
    tolerated: Sequence[str] = ()

    def command(self, option: str) -> str:
        """How the option is called."""
        return f"{self.name} {self.selector + ' ' if self.selector else ''}{option}"

    def all_options(self) -> Iterator[tuple[str, Option]]:
        """Every option by its name, and with `--task` those that a task changes."""
        for name, option in self.options.items():
            yield name, option
            yield from ((f"{name} --task {task}", other) for task, other in option.by_task.items())
