"""Fetches the course's files from its addresses, or copies them from a folder, to the course's own paths.

    bash setup.sh --from DIR      (or: python -m tasks.course_files --from DIR)

Existing files are kept. Files that cannot be fetched are reported, one line for each group, with what still works
without them; that is not an error.
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

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
from tasks.cli import new_parser

COURSE = "https://raw.githubusercontent.com/ialdarmaki/anlp-spring2026-hw1/main/"
TIMEOUT = 10  # seconds without an answer or a byte of data
CHUNK = 1 << 16


@dataclass(frozen=True)
class CourseFile:
    """A file of the course: its path here, its group and its addresses."""

    path: str
    group: str
    addresses: tuple[str, ...] = ()
    name: str | None = None  # path in the course's repository, if it is another

    def sources(self) -> tuple[str, ...]:
        """The addresses to try, in order."""
        return self.addresses or (COURSE + (self.name or self.path),)


STORIES = ("https://www.cs.cmu.edu/~vijayv/stories42M.pt",
           "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories42M.pt")  # fmt: skip
WITHOUT = {  # group: what works without its files
    "weights": "the shipped models/stories.pt, which has its own tokenizer, is used instead",
    "golden values": "the three checks compare with our own golden values only",
    "data": "the shipped data/reviews*.txt and data/addition_test.txt serve to try every command",
}
SPLITS = ("train.txt", "dev.txt", "test.txt", "label-mapping.json")
GOLDEN = ("sanity_check.data", "rotary_embedding_actual.data", "optimizer_test.npy")
FILES = (
    CourseFile("stories42M.pt", "weights", STORIES),
    CourseFile("tokenizer.model", "weights"),
    *(CourseFile(name, "golden values") for name in GOLDEN),
    *(CourseFile(f"data/{name}-{split}", "data") for name in ("sst", "cfimdb") for split in SPLITS),
    CourseFile("data/course_addition_test.txt", "data", name="data/addition_test.txt"),
)


def provide(file: CourseFile, root: Path, get: Callable[[CourseFile, Path], str | None]) -> str | None:
    """Writes one file unless it exists; returns why it cannot. `get` writes to a path or returns why it cannot."""
    target = root / file.path
    if target.exists():
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(target) as temporary:
            if (reason := get(file, temporary)) is not None:
                raise OSError(reason)
    except OSError as error:
        return str(error)
    return None


def missing_lines(reasons: dict[CourseFile, str]) -> list[str]:
    """One line for each group with missing files: the files, the reasons, and what works without them."""
    lines = []
    for group, without in WITHOUT.items():
        missing = {file.path: reason for file, reason in reasons.items() if file.group == group}
        if missing:
            why = "; ".join(dict.fromkeys(missing.values()))
            lines.append(f"missing {group}: {', '.join(missing)} ({why}): {without}")
    return lines


def copier(folder: Path) -> Callable[[CourseFile, Path], str | None]:
    """Copies files from `folder`, which has the layout of the course's repository."""

    def get(file: CourseFile, target: Path) -> str | None:
        source = folder / (file.name or file.path)
        if not source.is_file():
            return f"not in {folder}"
        shutil.copyfile(source, target)
        return None

    return get


class Fetcher:
    """Fetches files; a host that could not be reached once is not tried again."""

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
    """Downloads an address into `target`; raises ConnectionError if it ends early."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response, open(target, "wb") as out:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=f"fetching {name}", unit="B", unit_scale=True) as bar:
            while chunk := response.read(CHUNK):
                bar.update(out.write(chunk))
        if size and out.tell() != size:
            raise ConnectionError(f"{address} broke off after {out.tell():,} of {size:,} bytes")


def main(argv: list[str] | None = None) -> int:
    """Provides every file; returns 0 even if some are missing, 2 for a folder that does not exist."""
    parser = new_parser("course_files.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--from", dest="folder", metavar="DIR", help="copy from this folder; nothing is fetched")
    parser.add_argument("--offline", action="store_true", help="fetch nothing; report what is missing")
    parser.add_argument("--into", default=".", metavar="DIR", help="write the files into this folder")
    args = parser.parse_args(argv)
    if args.folder is not None and not Path(args.folder).is_dir():
        print(f"course_files.py: no such folder: {args.folder}", file=sys.stderr)
        return 2
    if args.folder is not None:
        get = copier(Path(args.folder))
    else:
        get = (lambda file, target: "not fetched: --offline") if args.offline else Fetcher()
    results = {file: provide(file, Path(args.into), get) for file in FILES}
    reasons = {file: reason for file, reason in results.items() if reason is not None}
    print(*missing_lines(reasons), f"{len(FILES) - len(reasons)} of the course's {len(FILES)} files are here", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
