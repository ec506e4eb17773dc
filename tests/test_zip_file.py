"""Zips are streamed and counted, and broken ones are refused without a traceback."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.submission import zip_file
from tasks.submission.zip_file import check_archive, unpack, write_zip
from tests.tiny import ROOT

LARGE = 40 << 20  # bytes
FOREIGN = ("safetensors", "tokenizers", "transformers", "peft", "gguf", "huggingface_hub")
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({packages}))  # an import of None fails
import run_llama
sys.exit(run_llama.main({flags}))
"""


@pytest.mark.parametrize("option", ["generate", "prompt", "finetune"])
def test_the_course_s_options_need_no_package_of_other_formats(tmp_path, option):
    flags = {"generate": ["--max_new_tokens", "3"], "finetune": ["--help"]}.get(option, [])
    if option == "prompt":
        for split in ("train", "dev", "test"):
            (tmp_path / f"tiny-{split}.txt").write_text("1 ||| A film to remember.\n0 ||| It is dull.\n", "utf-8")
            flags += [f"--{split}", f"tiny-{split}.txt"]
        flags += ["--label-names", str(ROOT / "data" / "reviews-label-mapping.json")]
        flags += [f"--{split}_out=tiny-{split}-prompting-output.txt" for split in ("dev", "test")]
    program = WITHOUT.format(packages=FOREIGN, flags=["--option", option, "--threads", "1", *flags])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_members_are_streamed(tmp_path):
    source, packed = tmp_path / "large.bin", tmp_path / "jdoe.zip"
    with open(source, "wb") as file:
        file.truncate(LARGE)
    (tmp_path / "out").mkdir()
    assert peak_of(lambda: write_zip(packed, "jdoe", {"large.bin": source})) < 4 << 20
    assert peak_of(lambda: check_archive(packed, "jdoe")) < 4 << 20
    assert peak_of(lambda: unpack(packed, tmp_path / "out")) < 4 << 20
    assert (tmp_path / "out" / "jdoe" / "large.bin").stat().st_size == LARGE


def test_a_streamed_zip_has_the_bytes_of_one_written_at_once(tmp_path):
    files = {}
    for index, size in enumerate((0, 1, 70_000, 400_000)):
        files[f"{index}.txt"] = tmp_path / f"{index}.txt"
        files[f"{index}.txt"].write_bytes(bytes(random.Random(index).choices(b"some text", k=size)))
    write_zip(tmp_path / "streamed.zip", "jdoe", files)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in files.items():
            info = zipfile.ZipInfo(f"jdoe/{name}", zip_file.DATE)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, source.read_bytes())
    assert (tmp_path / "streamed.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()


def zip_of(path: Path, count: int, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for index in range(count):
            archive.writestr(f"jdoe/{index}.py", f"x = {index}\n" * 9)
    return path


def test_too_many_entries_and_rare_compressions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_file, "ENTRIES_LIMIT", 5)
    assert check_archive(zip_of(tmp_path / "few.zip", 5), "jdoe") == ("jdoe", [])
    top, problems = check_archive(zip_of(tmp_path / "many.zip", 6), "jdoe")
    assert top is None and problems == ["the zip has 6 entries, more than 5"]
    top, problems = check_archive(zip_of(tmp_path / "lzma.zip", 1, zipfile.ZIP_LZMA), "jdoe")
    assert top is None and "not every program can unpack" in problems[0]


@pytest.mark.parametrize("seed", range(4))
def test_broken_zips_are_refused_or_unpacked(tmp_path, seed):
    whole, draw = zip_of(tmp_path / "whole.zip", 6).read_bytes(), random.Random(seed)
    path, refused = tmp_path / "jdoe.zip", 0
    for case in range(100):
        content = bytearray(whole if draw.random() < 0.8 else whole[: draw.randrange(len(whole))])
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content) + 1)
            content[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((1, 1, 4)))
        path.write_bytes(content)
        top, problems = check_archive(path, "jdoe")
        refused += top is None
        assert top is not None or problems
        if top is not None:
            (tmp_path / str(case)).mkdir()
            try:
                unpack(path, tmp_path / str(case))
            except OSError:
                refused += 1
    assert refused > 50
