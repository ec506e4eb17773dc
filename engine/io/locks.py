"""Locks that end with the process that holds them: one run per folder, and temporary files that nobody writes any more.

    python -c "from engine.io import locks; locks.hold_folder('runs'); input('held until Enter ')"
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is locked there
    fcntl = None

NAME = ".lock"
_held: dict[Path, int] = {}  # the folders that this process holds, and their open lock files


def lock(handle: int) -> bool | None:
    """Locks an open file for this process; False if another process holds it, None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


def hold_folder(folder: str | os.PathLike) -> None:
    """Reserves a folder for this process until `release`, and removes what a killed run left half-written in it.

    Raises BlockingIOError if another process holds it.
    """
    path = Path(folder).resolve()
    if path in _held:
        return
    handle = os.open(path / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    if lock(handle) is False:
        owner = os.read(handle, 100).decode("ascii", "replace").strip()
        os.close(handle)
        raise BlockingIOError(f"another run works in {folder} (process {owner}): wait for it, or name another folder")
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    _held[path] = handle
    remove_abandoned(path)


def release() -> None:
    """Gives back every folder that this process holds."""
    while _held:
        os.close(_held.popitem()[1])


def remove_abandoned(folder: Path, start: str = ".", end: str = ".tmp") -> None:
    """Removes the temporary files `start…end` in a folder whose writer has ended: their locks are free."""
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for path in paths:
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:  # renamed or removed meanwhile, or not ours
            continue
        if lock(handle):
            Path(path).unlink(missing_ok=True)
        os.close(handle)
