"""How a command starts and how it fails: waiting threads, Ctrl-C while importing, and errors that nobody foresaw.

Every command calls `begin(__name__)` before its other imports: the threads' setting must stand before torch loads, and
an exception from Ctrl-C within an import may be swallowed, or leave a half-imported package behind.

    python run_llama.py --help
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

SPINS = "10000"  # turns that an OpenMP thread waits actively before it sleeps; see bench/busy.py
INTERRUPTED = 130


def begin(name: str) -> None:
    """Prepares the process if `name`, the caller's `__name__`, is that of a program; otherwise it does nothing.

    A waiting thread sleeps soon, so that another busy program costs less (unless GOMP_SPINCOUNT or OMP_WAIT_POLICY is
    set); Ctrl-C ends the process at once until `ready` is called; an unforeseen error becomes one line.
    """
    if name != "__main__":
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may ignore it for a job
        signal.signal(signal.SIGINT, _stop)
    sys.excepthook = _explain


def ready() -> None:
    """Everything is imported: from now on Ctrl-C raises KeyboardInterrupt, so that files are tidied up."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end() -> None:
    """Nothing is left to tidy up: if `begin` was called, another Ctrl-C ends the process without a word."""
    if sys.excepthook is _explain and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"\ninterrupted before any work was done\n")
    os._exit(INTERRUPTED)


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints one line for an error that no code expected; its traceback goes to a file in `runs/faults`."""
    program = os.path.basename(sys.argv[0])
    if issubclass(kind, KeyboardInterrupt):
        line = "\ninterrupted"
    elif isinstance(error, ModuleNotFoundError) and "." not in (error.name or "."):
        line = f"{program}: the package {error.name} is not installed: run bash setup.sh, then use .venv/bin/python"
    else:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        line = f"{program}: {kind.__name__}: {first}; this is a fault of the program: please report it with "
        line += _keep(kind, error, trace)
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)


def _keep(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
    """Writes the command and the traceback to a new file; returns its path, or the text if it cannot be written."""
    import platform
    import time
    import traceback

    text = f"{' '.join(sys.argv)}\nPython {sys.version}\n{platform.platform()}\n"
    text += f"torch {getattr(sys.modules.get('torch'), '__version__', 'is not loaded')}\n\n"
    text += "".join(traceback.format_exception(kind, error, trace))
    path = os.path.join("runs", "faults", time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}.txt"))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        return text
    return path
