"""Brings the course's files to where the course has them: fetched from its addresses, or copied from a folder.

    bash setup.sh --from DIR      (or: python -m tasks.course_files --from DIR)

What is there already is kept. What cannot be had is named in one line with what still works; that is no error.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from engine.io.files import atomic_path

COURSE = "https://raw.githubusercontent.com/ialdarmaki/anlp-spring2026-hw1/main/"
TIMEOUT = 10  # seconds without an answer or a byte
CHUNK = 1 << 16


@dataclass(frozen=True)
class CourseFile:
    """Where a file goes, where it may come from, and what works without it."""

    path: str
    without: str
    addresses: tuple[str, ...] = ()
    name: str | None = None  # in the course's repository, where the path here is another

    def sources(self) -> tuple[str, ...]:
        """Addresses to try in turn."""
        return self.addresses or (COURSE + (self.name or self.path),)


STORIES = ("https://www.cs.cmu.edu/~vijayv/stories42M.pt",
           "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories42M.pt")  # fmt: skip
CHECK = "its check compares with our own golden values alone"
REVIEWS = "other data of the same format can be named on the command line"
PARTS = ("train.txt", "dev.txt", "test.txt", "label-mapping.json")
FILES = (
    CourseFile("stories42M.pt", "the shipped models/stories.pt serves in its place", STORIES),
    CourseFile("tokenizer.model", "only stories42M.pt needs it; the shipped model has its own"),
    CourseFile("sanity_check.data", CHECK),
    CourseFile("rotary_embedding_actual.data", CHECK),
    CourseFile("optimizer_test.npy", CHECK),
    *(CourseFile(f"data/{name}-{part}", REVIEWS) for name in ("sst", "cfimdb") for part in PARTS),
    CourseFile(
        "data/course_addition_test.txt", "the shipped data/addition_test.txt serves", name="data/addition_test.txt"
    ),
)


def bring(file: CourseFile, root: Path, get: Callable[[CourseFile, Path], str | None]) -> bool:
    """Puts one file in its place unless it is there; `get` writes it to a path or returns why it cannot."""
    target = root / file.path
    if target.exists():
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(target) as temporary:
            if (reason := get(file, temporary)) is not None:
                raise OSError(reason)
    except OSError as error:
        print(f"missing {file.path} ({error}): {file.without}")
        return False
    return True


def copier(folder: Path) -> Callable[[CourseFile, Path], str | None]:
    """Copies files from `folder`, which is laid out as the course's repository is."""

    def get(file: CourseFile, target: Path) -> str | None:
        source = folder / (file.name or file.path)
        if not source.is_file():
            return f"not in {folder}"
        shutil.copyfile(source, target)
        return None

    return get


class Fetcher:
    """Fetches files; a host that could not be reached once is not asked again."""

    def __init__(self) -> None:
        self.unreachable: set[str] = set()

    def __call__(self, file: CourseFile, target: Path) -> str | None:
        reason = None
        for address in file.sources():
            host = urlsplit(address).netloc
            if host in self.unreachable:
                reason = f"{host} cannot be reached"
                continue
            try:
                _download(address, target, file.path)
                return None
            except urllib.error.HTTPError as error:
                reason = f"{host} answers {error.code}"
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException):
                self.unreachable.add(host)
                reason = f"{host} cannot be reached"
        return reason


def _download(address: str, target: Path, name: str) -> None:
    """Writes what is at the address; raises ConnectionError where it ends early."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response, open(target, "wb") as out:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=f"fetching {name}", unit="B", unit_scale=True) as bar:
            while chunk := response.read(CHUNK):
                bar.update(out.write(chunk))
        if size and out.tell() != size:
            raise ConnectionError(f"{address} broke off after {out.tell():,} of {size:,} bytes")


def main(argv: list[str] | None = None) -> int:
    """Brings every file; returns 0 whether or not all could be had, 2 for a folder that does not exist."""
    parser = argparse.ArgumentParser(prog="course_files.py", description=__doc__.split("\n")[0])
    parser.add_argument("--from", dest="folder", metavar="DIR", help="copy from this folder; nothing is fetched")
    parser.add_argument("--offline", action="store_true", help="only say what is missing")
    parser.add_argument("--into", default=".", metavar="DIR", help="where the files go")
    args = parser.parse_args(argv)
    if args.folder is not None and not Path(args.folder).is_dir():
        print(f"course_files.py: no such folder: {args.folder}", file=sys.stderr)
        return 2
    if args.folder is not None:
        get = copier(Path(args.folder))
    else:
        get = (lambda file, target: "not fetched: --offline") if args.offline else Fetcher()
    there = [bring(file, Path(args.into), get) for file in FILES]
    print(f"{sum(there)} of the course's {len(there)} files are here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
