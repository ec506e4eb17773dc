"""A run's log: one JSON object per line, appended during the run and readable at any time; TensorBoard if asked for.

    python -c "from engine.train import run_log; print(run_log.read('models/stories.jsonl')[-1])"
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from engine.io.files import FileError, json_text, parse_json, write_text

NUMBERS = ("step", "epoch", "loss", "lr", "score", "held_out_loss", "accuracy")  # what a record may also leave out


class RunLog:
    """Appends records to a JSON-lines file; with `path=None` it writes nothing.

    With `tensorboard`, a folder, the numbers of every record also go there, as scalars in a folder named like the run.
    """

    def __init__(self, path: str | Path | None, tensorboard: str | Path | None = None):
        self.path = Path(path) if path is not None else None
        self.board = None if self.path is None or tensorboard is None else Path(tensorboard) / _run_name(self.path)
        self._writer: Any = None  # opened by the first record, so only by the process that logs
        self._step = 0

    def write(self, **record: Any) -> None:
        """Appends one line of plain values; a number that is not finite becomes null. Raises OSError on a full disk."""
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(line_of(record))
        except OSError as error:
            raise type(error)(f"cannot write {self.path}: {error.strerror}") from error
        if self.board is not None:
            self._add_scalars(self.board, record)

    def begin(self) -> None:
        """Drops the records of an earlier run."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def cut_after(self, step: int) -> None:
        """Drops the records of steps after `step`, which a resumed run writes again; the rewriting is atomic."""
        self._step = step
        if self.path is None or not self.path.exists():
            return
        write_text(self.path, "".join(line_of(record) for record in read(self.path) if record.get("step", 0) <= step))

    def close(self) -> None:
        """Writes what TensorBoard's writer still holds in memory; the log can be written to again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add_scalars(self, folder: Path, record: dict[str, Any]) -> None:
        if self._writer is None:  # purge_step hides the points of an earlier run, or of the steps that are done again
            board: Any = importlib.import_module("torch.utils.tensorboard")
            self._writer = board.SummaryWriter(str(folder), purge_step=self._step + 1, flush_secs=10)
        self._step = record.get("step", self._step)
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                self._writer.add_scalar(name, value, self._step)


def _run_name(log: Path) -> Path:
    """The name of the log's folder; `RUN/trial` for a seed search, which is a run inside another."""
    parts = log.resolve().parent.parts
    return Path(*parts[-2:] if parts[-1] == "trial" else parts[-1:])


def line_of(record: dict[str, Any]) -> str:
    """A record as a line of a log; a number that is not finite becomes null at any depth."""
    return json_text(record) + "\n"


def read(path: str | Path) -> list[dict[str, Any]]:
    """All records of a log. A damaged line, such as one cut short by an interruption, is named and left out."""
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        try:
            if line:
                records.append(_checked(parse_json(line, "the line")))
        except FileError as error:
            print(f"{path}, line {number} is left out: {error}", file=sys.stderr)
    return records


def _checked(record: Any) -> dict[str, Any]:
    """The record of a line; FileError if it is not an object, or what is read as a number is something else."""
    if not isinstance(record, dict):
        raise FileError("the line is not a JSON object")
    for name in NUMBERS:
        value = record.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float | None) or value != value:
            raise FileError(f"its {name} is not a number")
    if not isinstance(record.get("step", 0), int):
        raise FileError("its step is not a whole number")
    return record


def examples_seen(training: dict[str, Any]) -> int:
    """Training examples of an adder according to its `training_config.json`, the stages before its run included."""
    return examples_before(training) + (training.get("examples") or 0)


def examples_before(training: dict[str, Any]) -> int:
    """Those of the stages alone: a seed search's rounds, SEEDS:EXAMPLES[@RATE], and shrinking, WIDTH:FFN:EXAMPLES."""
    stages = [*(training.get("trial_rounds") or []), *(training.get("shrink") or [])]
    counts = [int(stage.partition("@")[0].rpartition(":")[2]) for stage in stages]
    return (training.get("trial_examples") or 0) + sum(counts)
