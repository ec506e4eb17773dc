"""A run's log: one JSON object per line, appended during the run and readable at any time.

    python -c "from engine.train import run_log; print(run_log.read('models/stories.jsonl')[-1])"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.io.files import without_infinities, write_text


class RunLog:
    """Appends records to a JSON-lines file; with `path=None` it writes nothing."""

    def __init__(self, path: str | Path | None):
        self.path = Path(path) if path is not None else None

    def write(self, **record: Any) -> None:
        """Appends one line of numbers, strings, lists and None; a number that is not finite becomes null."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(_line(record))

    def cut_after(self, step: int) -> None:
        """Drops the records of steps after `step`, which a resumed run writes again; the rewriting is atomic."""
        if self.path is None or not self.path.exists():
            return
        write_text(self.path, "".join(_line(record) for record in read(self.path) if record.get("step", 0) <= step))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(without_infinities(record)) + "\n"


def read(path: str | Path) -> list[dict[str, Any]]:
    """All records of a log. A damaged line, such as one cut short by an interruption, is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def examples_seen(training: dict[str, Any]) -> int:
    """Training examples of an adder according to its `training_config.json`, including its seed search."""
    return (training.get("examples") or 0) + (training.get("trial_examples") or 0)
