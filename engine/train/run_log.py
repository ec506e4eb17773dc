"""A run's log: one JSON object a line, appended as the run goes, readable while it runs.

    python -c "from engine.train import run_log; print(run_log.read('models/stories.jsonl')[-1])"
"""

from __future__ import annotations

import json
from pathlib import Path


class RunLog:
    """Appends records to a JSON-lines file; with `path=None` it writes nothing."""

    def __init__(self, path: str | Path | None):
        self.path = Path(path) if path is not None else None

    def write(self, **record) -> None:
        """Appends one line; numbers, strings, lists and None only."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record) + "\n")

    def cut_after(self, step: int) -> None:
        """Drops the records of steps later than `step`: a resumed run writes them anew."""
        if self.path is None or not self.path.exists():
            return
        kept = [record for record in read(self.path) if record.get("step", 0) <= step]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8", newline="\n")


def read(path: str | Path) -> list[dict]:
    """All records of a log; a last line cut short by an interruption is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def examples_seen(training: dict) -> int:
    """Examples that an adder saw, by its `training_config.json`: those of its trial count, too."""
    return (training.get("examples") or 0) + (training.get("trial_examples") or 0)
