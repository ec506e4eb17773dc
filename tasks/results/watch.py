"""Curves of a running training: a table in the terminal and a figure, redrawn from the run's log until Ctrl-C.

    python -m tasks.results.watch runs/mine
    python -m tasks.results.watch runs/mine runs/other --every 30 --out runs/curves.png
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import check_writable
from engine.train import run_log
from tasks import cli, plots
from tasks.settings import Settings, flag, number

LOG = "log.jsonl"
ROWS = 12  # evaluations in the table
HIDDEN = ("step", "epoch", "targets", "seconds", "processor_seconds", "score", "done")  # of an evaluation's columns


@dataclass(frozen=True, kw_only=True)
class WatchSettings(Settings):
    """what to watch"""

    out: str | None = flag(None, "the figure; by default watch.png in the first run's folder", metavar="FILE")
    every: float = flag(5.0, "seconds between two looks", type=number(float, 0.1), metavar="SECONDS")
    once: bool = flag(False, "look once")


def log_of(run: str) -> Path:
    """The log of a run, which is a folder or the log itself. Raises OSError if there is none."""
    path = Path(run) / LOG if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise FileNotFoundError(f"no log yet: {path} (name the folder of a training run)")
    return path


def evaluations(records: Sequence[dict]) -> list[dict]:
    """The records of evaluations."""
    return [record for record in records if "score" in record]


def table(records: Sequence[dict]) -> str:
    """The last evaluations as columns of text, and the last step below them."""
    measured = evaluations(records)[-ROWS:]
    names = [name for name, value in (measured[-1] if measured else {}).items()
             if name not in HIDDEN and isinstance(value, int | float)]  # fmt: skip
    rows = [["step", "minutes", *names]]
    rows += [[f"{record['step']:,}", f"{record['seconds'] / 60:.1f}", *(_number(record.get(name)) for name in names)]
             for record in measured]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*(lines if measured else []), _last_step(records)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _last_step(records: Sequence[dict]) -> str:
    steps = [record for record in records if "loss" in record]
    if not steps:
        return "no step yet"
    last = steps[-1]
    return f"step {last['step']:,}, epoch {last['epoch'] + 1}: loss {_number(last['loss'])}, rate {last['lr']:.2e}"


def look(logs: dict[str, Path], out: Path) -> str:
    """Draws the figure and returns the text of the terminal for the runs' logs, by name."""
    records = {name: run_log.read(path) for name, path in logs.items()}
    plots.run_curves(records, out)
    return "\n\n".join(f"{name}\n{table(of_run)}" for name, of_run in records.items())


def prepare(runs: Sequence[str], settings: WatchSettings) -> cli.Work:
    """Checks the logs and the figure's path; returns the watching. Raises OSError."""
    logs = {run: log_of(run) for run in runs}
    out = check_writable(settings.out or next(iter(logs.values())).parent / "watch.png")

    return lambda: _watch(logs, out, settings)


def _watch(logs: dict[str, Path], out: Path, settings: WatchSettings) -> None:
    """Looks until Ctrl-C; prints only what is new."""
    shown = None
    with suppress(KeyboardInterrupt):
        while True:
            text = look(logs, out)
            if text != shown:
                clear = "\033[H\033[2J" if sys.stdout.isatty() else "\n" if shown else ""
                print(f"{clear}{text}\ncurves: {out}", flush=True)
                shown = text
            if settings.once:
                return
            time.sleep(settings.every)


def main(argv: Sequence[str] | None = None) -> int:
    """Watches until Ctrl-C, which is its usual end; 2 for a run without a log."""
    parser = cli.settings_parser(WatchSettings, "watch", (__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of training runs, or their logs")
    parser.usage = "python -m tasks.results.watch RUN [RUN ...] [flags]"
    args = vars(parser.parse_args(argv))
    runs = args.pop("runs")
    return cli.carry_out("watch", lambda: prepare(runs, WatchSettings(**args)))


if __name__ == "__main__":
    sys.exit(main())
