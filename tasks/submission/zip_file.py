"""The zip: which files go in, writing it the same byte for byte, and unpacking one that nobody vouches for.

    python -c "from tasks.submission import zip_file as s; print(*s.imported_files('.', ['run_llama', 'addition_run']))"
"""

from __future__ import annotations

import ast
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from tasks.submission.files import CHECKS, MODELS, Course

SCRIPTS = ("run_llama", "addition_run", *(name.removesuffix(".py") for name in CHECKS), "tasks.course_files")
LEFT_OUT = re.compile(r"\..*|__pycache__|cache|last\.pt|seed_.*\.pth|.*\.(pyc|zip|tmp|np[yz])")  # in addition_models
NEEDLESS = re.compile(r"(.*/)?(\.[^/]*|__pycache__)(/.*)?|data/.*|.*\.(pyc|bin)|[^/]*\.(pt|model)|models/.*")
MAC = "__MACOSX"  # what the Finder adds
BAD_ZIP = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError)
UNPACKED_LIMIT = 500_000_000  # bytes; no honest submission comes near
DATE = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes


def imported_files(root: str | Path, starts: Iterable[str] = SCRIPTS) -> list[str]:
    """The project's own Python files, relative to `root`, that the modules `starts` import, however indirectly.

    Imports within functions count, and so do the "module:name" strings of a table named OPTIONS, and the
    `__init__.py` of every package on the way.
    """
    root, found, waiting = Path(root).resolve(), set(), list(starts)
    while waiting:
        for file in _sources(root, waiting.pop()):
            if file not in found:
                found.add(file)
                waiting += _named_modules(file)
    return sorted(file.relative_to(root).as_posix() for file in found)


def _sources(root: Path, module: str) -> list[Path]:
    """The file of a dotted module name and the `__init__.py` of the packages around it; none if it is not ours."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return []
    packages = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
    return [file, *(package for package in packages if package.is_file())]


def _named_modules(path: Path) -> set[str]:
    """Dotted names that a file may import: `from a import b` names `a` and `a.b`. Nothing where it cannot be parsed."""
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
            names |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {part.value for part in node.args if isinstance(part, ast.Constant)}
    return {name.partition(":")[0] for name in names if isinstance(name, str) and name}


def collect(root: Path, course: Course, andrew_id: str) -> tuple[dict[str, Path], list[str]]:
    """The files to pack by their names in the folder, and what is wrong with those that cannot be taken.

    What is not there is left out silently: the check of the zip names it.
    """
    names = {*course.required, *course.optional(andrew_id), *imported_files(root)}
    if course.addition:
        names |= set(_model_files(root))
    files, problems = {}, []
    for name in sorted(names):
        path = root / name
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            problems.append(f"{name} is a link that leads outside {root}: put the file itself there")
        elif path.is_file():
            files[name] = path
    return files, problems


def _model_files(root: Path) -> list[str]:
    """The files below `addition_models`, but for caches, hidden files and what only training needs."""
    found = []
    for folder, folders, names in os.walk(root / MODELS):
        folders[:] = [name for name in folders if not LEFT_OUT.fullmatch(name)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]  # never entered
        for name in names + links:
            if not LEFT_OUT.fullmatch(name):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return found


def write_zip(path: Path, top: str, files: Mapping[str, Path]) -> None:
    """Writes `files` under the one folder `top`, sorted and undated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in sorted(files.items()):
            info = zipfile.ZipInfo(f"{top}/{name}", DATE)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            archive.writestr(info, source.read_bytes())


def check_archive(path: Path, andrew_id: str) -> tuple[str | None, list[str]]:
    """The one top-level folder of a zip, None where it may not be unpacked, and what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            problems = [problem for entry in entries for problem in _unsafe(entry)]
            if sum(entry.file_size for entry in entries) > UNPACKED_LIMIT:
                problems.append(f"unpacked it would have more than {UNPACKED_LIMIT:,} bytes")
            if not problems and (damaged := archive.testzip()) is not None:
                problems.append(f"{damaged} is damaged in the zip: make it again")
    except BAD_ZIP as error:
        return None, [f"{path.name} is no zip file, or one cut short ({error}): make it again"]
    names = [entry.filename for entry in entries]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    problems += [f"{name} stands twice in the zip" for name in twice]
    tops = sorted({name.split("/")[0] for name in names} - {MAC})
    if problems or not tops:
        return None, problems or [f"{path.name} is empty"]
    if len(tops) > 1 or f"{tops[0]}/" not in {name[: len(tops[0]) + 1] for name in names}:
        shown = ", ".join(tops[:5]) + (f" and {len(tops) - 5} more" if len(tops) > 5 else "")
        return None, [f"the zip must hold one folder, {andrew_id}/, and all files in it; at its top stand {shown}"]
    wrong = f"the folder in the zip is {tops[0]}/, but the ANDREWID is {andrew_id}: one of them is wrong"
    return tops[0], [] if tops[0] == andrew_id else [wrong]


def _unsafe(entry: zipfile.ZipInfo) -> list[str]:
    """Why an entry must not be unpacked."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or PureWindowsPath(name).drive or "\\" in name or "\0" in name:
        return [f"{name!r} in the zip is an absolute path or has a backslash: nothing is unpacked"]
    if ".." in PurePosixPath(name).parts:
        return [f"{name!r} in the zip leads outside its folder: nothing is unpacked"]
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "neither file nor folder"
        return [f"{name!r} in the zip is {what}: nothing is unpacked; put the file itself there"]
    return [f"{name!r} is encrypted"] if entry.flag_bits & 1 else []


def unpack(path: Path, into: Path) -> None:
    """Unpacks a zip in which `check_archive` found nothing unsafe. OSError where a file is also another's folder."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or entry.filename.split("/")[0] == MAC:
                continue
            target = into / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
