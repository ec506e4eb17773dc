"""The zip: choosing its files, writing it reproducibly, and unpacking an untrusted one safely.

    python -c "from tasks.submission import zip_file as s; print(*s.imported_files('.', ['run_llama', 'addition_run']))"
"""

from __future__ import annotations

import ast
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from engine.io.files import check_readable, read_text
from tasks.submission.files import CHECKS, MODELS, Course

SCRIPTS = ("run_llama", "addition_run", *(name.removesuffix(".py") for name in CHECKS), "tasks.course_files")
LEFT_OUT = re.compile(r"\..*|__pycache__|cache|last\.pt|seed_.*\.pth|.*\.(pyc|zip|tmp|np[yz])")  # in addition_models
NEEDLESS = re.compile(r"(.*/)?(\.[^/]*|__pycache__)(/.*)?|data/.*|.*\.(pyc|bin|pt|model)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")  # of Markdown, pictures included
READ_AS_TEXT = (".js", ".css", ".html", ".json", ".cpp")
MAC = "__MACOSX"  # added by the Finder
BAD_ZIP = (  # what zipfile raises for damaged archives
    zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError, EOFError, OSError, ValueError, LookupError,
    RuntimeError, OverflowError,
)  # fmt: skip
UNPACKED_LIMIT = 500_000_000  # bytes, far above any real submission
ENTRIES_LIMIT = 10_000
DATE = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes


def imported_files(root: str | Path, starts: Iterable[str] = SCRIPTS) -> list[str]:
    """The project's own Python files, relative to `root`, that the modules `starts` import, directly or not.

    Included are imports within functions, the "module:name" strings of a table named OPTIONS, and the `__init__.py`
    of every package.
    """
    root, files, waiting = Path(root).resolve(), set(), list(starts)
    while waiting:
        for file in _sources(root, waiting.pop()):
            if file not in files:
                files.add(file)
                waiting += _named_modules(file)
    return sorted(file.relative_to(root).as_posix() for file in files)


def _sources(root: Path, module: str) -> list[Path]:
    """The file of a dotted module name and the `__init__.py` of its packages; empty if it is not in `root`."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return []
    packages = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
    return [file, *(package for package in packages if package.is_file())]


def _named_modules(path: Path) -> set[str]:
    """Dotted names that a file may import: `from a import b` names `a` and `a.b`. Empty if it cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "OPTIONS" for target in node.targets):
            names |= {child.value for child in ast.walk(node) if isinstance(child, ast.Constant)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(":")[0] for name in names if isinstance(name, str) and name}


def collect(root: Path, course: Course, andrew_id: str) -> tuple[dict[str, Path], list[str]]:
    """The files to pack, by their names in the zip's folder, and the problems of those that cannot be packed.

    Missing files are skipped: the check of the zip reports them.
    """
    code = imported_files(root, SCRIPTS + course.scripts)
    names = {*course.required, *course.optional(andrew_id), *code, *_beside(root, code), *linked_files(root)}
    if course.addition:
        names |= set(_model_files(root))
    files, problems = {}, []
    for name in sorted(names):
        path = root / name
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            problems.append(f"{name} is a link that leads outside {root}: replace it by the file")
        elif path.is_file():
            files[name] = path
    made = root / course.made if course.made else None
    if made is not None:
        files |= {path.relative_to(made).as_posix(): path for path in sorted(made.rglob("*")) if path.is_file()}
    return files, problems


def linked_files(root: Path, start: str = "README.md") -> list[str]:
    """The existing files that README links to, with those that its pages link to; no weights and no data."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found and (root / name).is_file() and not NEEDLESS.fullmatch(name):
            found.add(name)
            waiting += links(root, name) if name.endswith(".md") else []
    return sorted(found)


def links(root: Path, page: str) -> list[str]:
    """The files in `root` that a Markdown page links to or shows, whether or not they exist."""
    try:
        targets = LINK.findall(read_text(root / page))
    except (OSError, ValueError):
        return []
    paths = [(root / page).parent / target for target in targets if ":" not in target]
    names = [Path(os.path.normpath(path)) for path in paths]
    return [path.relative_to(root).as_posix() for path in names if path.is_relative_to(root) and not path.is_dir()]


def _beside(root: Path, code: Iterable[str]) -> set[str]:
    """Scripts, styles and data in the folders of imported packages, and the recipes: what the code reads as text."""
    folders = {(root / name).parent for name in code} - {root}
    files = [path for folder in sorted(folders) for path in folder.glob("*") if path.suffix in READ_AS_TEXT]
    recipes = [path for ending in ("toml", "txt") for path in (root / "recipes").rglob(f"*.{ending}")]
    return {path.relative_to(root).as_posix() for path in [*files, *recipes]}


def _model_files(root: Path) -> list[str]:
    """The files in `addition_models`, except caches, hidden files and what only training needs."""
    files = []
    for folder, folders, names in os.walk(root / MODELS):
        folders[:] = [name for name in folders if not LEFT_OUT.fullmatch(name)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]  # os.walk does not enter them
        for name in names + links:
            if not LEFT_OUT.fullmatch(name):
                files.append((Path(folder) / name).relative_to(root).as_posix())
    return files


def write_zip(path: Path, top: str, files: Mapping[str, Path]) -> None:
    """Writes `files` into one folder `top`, sorted and with a fixed date."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in sorted(files.items()):
            info = zipfile.ZipInfo(f"{top}/{name}", DATE)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            info.file_size = source.stat().st_size  # decides, before writing, whether the large format is needed
            with open(source, "rb") as content, archive.open(info, "w") as member:
                shutil.copyfileobj(content, member)


def check_archive(path: Path, andrew_id: str) -> tuple[str | None, list[str]]:
    """The top-level folder of a zip, or None if it must not be unpacked, and its problems."""
    check_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            problems = [problem for entry in entries for problem in _unsafe(entry)]
            if len(entries) > ENTRIES_LIMIT:
                problems = [f"the zip has {len(entries):,} entries, more than {ENTRIES_LIMIT:,}"]
            if sum(entry.file_size for entry in entries) > UNPACKED_LIMIT:
                problems.append(f"unpacked, it would have more than {UNPACKED_LIMIT:,} bytes")
            if not problems and (damaged := archive.testzip()) is not None:
                problems.append(f"{damaged} is damaged in the zip: make it again")
    except BAD_ZIP as error:
        return None, [f"{path.name} is not a zip file, or it is cut short ({error}): make it again"]
    names = [entry.filename for entry in entries]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    problems += [f"{name} is in the zip twice" for name in twice]
    tops = sorted({name.split("/")[0] for name in names} - {MAC})
    if problems or not tops:
        return None, problems or [f"{path.name} is empty"]
    if len(tops) > 1 or f"{tops[0]}/" not in {name[: len(tops[0]) + 1] for name in names}:
        shown = ", ".join(tops[:5]) + (f" and {len(tops) - 5} more" if len(tops) > 5 else "")
        return None, [f"the zip must hold one folder, {andrew_id}/, with all files in it; at its top are {shown}"]
    wrong = f"the folder in the zip is {tops[0]}/, but the ANDREWID is {andrew_id}: one of them is wrong"
    return tops[0], [] if tops[0] == andrew_id else [wrong]


def _unsafe(entry: zipfile.ZipInfo) -> list[str]:
    """Why an entry must not be unpacked; empty if it may."""
    name, file_type = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or PureWindowsPath(name).drive or "\\" in name or "\0" in name:
        return [f"{name!r} in the zip is an absolute path or has a backslash: nothing is unpacked"]
    if ".." in PurePosixPath(name).parts:
        return [f"{name!r} in the zip leads outside its folder: nothing is unpacked"]
    if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if file_type == stat.S_IFLNK else "neither file nor folder"
        return [f"{name!r} in the zip is {what}: nothing is unpacked; replace it by the file"]
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return [f"{name!r} is compressed in a way that not every program can unpack: make the zip again"]
    return [f"{name!r} is encrypted"] if entry.flag_bits & 1 else []


def unpack(path: Path, into: Path) -> None:
    """Unpacks a zip that passed `check_archive`. Raises OSError if a name is both a file and a folder."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or entry.filename.split("/")[0] == MAC:
                continue
            target = into / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as content, open(target, "wb") as file:  # no more than the entry's size
                shutil.copyfileobj(content, file)
