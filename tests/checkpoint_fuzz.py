"""Seeded fuzzing of the checkpoint reader: it must load a broken or malicious file, or refuse it in one line.

    python -m tests.checkpoint_fuzz 200 --seed 0

Runs in a process of its own: at most 2 GB more than torch takes, and an audit hook that sees code being run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import types
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

from engine.io.checkpoint import CheckpointError, read_checkpoint
from llama import from_checkpoint
from tests.oracles import random_llama
from tests.test_checkpoint import FIELDS, course_checkpoint, foreign, write_bin
from tests.test_checkpoint_formats import write_version_1, write_version_2

LIMIT = 2 << 30  # bytes of memory beyond those of the imports
SLOW = 5.0  # processor seconds for one small file are too many
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.mkdir", "os.remove",
             "os.rename", "shutil.rmtree", "socket.connect", "ctypes.dlopen")  # fmt: skip
CALLS = {  # what a malicious pickle would call, by module and name, with its arguments
    ("os", "system"): ("touch exploded",), ("posix", "system"): ("touch exploded",), ("nt", "system"): ("dir",),
    ("os", "mkdir"): ("exploded",), ("subprocess", "Popen"): (["touch", "exploded"],),
    ("builtins", "eval"): ("__import__('os').mkdir('exploded')",), ("builtins", "exec"): ("open('exploded', 'w')",),
    ("builtins", "getattr"): ("x", "upper"), ("builtins", "__import__"): ("antigravity",),
    ("builtins", "open"): ("exploded", "w"), ("importlib", "import_module"): ("this",), ("shutil", "rmtree"): (".",),
    ("torch", "load"): ("exploded.pt",), ("torch.hub", "load"): ("a/b", "c"), ("torch", "save"): (1, "exploded"),
    ("torch.serialization", "load"): ("x",), ("pickle", "loads"): (b"cos\nsystem\n(S'touch exploded'\ntR.",),
    ("webbrowser", "open"): ("http://localhost",), ("runpy", "run_path"): ("x.py",), ("timeit", "timeit"): ("1",),
    ("builtins", "bytearray"): (10**11,), ("torch", "Tensor"): (10**5, 10**5), ("torch", "FloatTensor"): (10**10,),
    ("numpy", "ndarray"): ((10**11,),), ("numpy", "zeros"): (10**11,), ("numpy", "dtype"): ("V2000000000",),
    ("numpy._core.multiarray", "_reconstruct"): (np.ndarray, (10**11,), b"b"), ("numpy", "ones"): (10**10,),
    ("numpy.core.multiarray", "scalar"): (np.dtype("f8"), b"123"), ("collections", "Counter"): ("aab",),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): (torch.float32, (10**9, 10**9), (1, 1), False),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): (np.zeros(2), torch.float32, "cpu", False),
    ("model", "ModelArgs"): (), ("config", "LlamaConfig"): (7,), ("transformers", "LlamaConfig"): (), ("a", "B"): (),
}  # fmt: skip


class Call:
    """Pickles as a call of a global function, which need not exist here."""

    def __init__(self, module: str, name: str, arguments: tuple):
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """A pickler in protocol 2, as torch's, that writes a `Call` as what it stands for, and tensors as storages."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[bytes] = []

    def persistent_id(self, value: object) -> tuple | None:
        if isinstance(value, torch.storage.TypedStorage):
            self.storages.append(bytes(value.untyped()))
            return "storage", torch.FloatStorage, str(len(self.storages) - 1), "cpu", value.size()
        return None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if not isinstance(value, Call):
            super().save(value, save_persistent_id)
            return
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        super().save(value.arguments)
        self.write(pickle.REDUCE)


def junk(draw: random.Random, depth: int = 0) -> object:
    """A value that does not belong in a checkpoint."""
    deep: list = []
    for _ in range(draw.choice((1, 3, 400))):
        deep = [deep]
    values = [
        None, True, -1, 0, 3, 10**6, 10**9, 2**62, 10**5000, -(10**30), 1e308, float("nan"), float("inf"), "", "wide",
        "\ud800", "a\nb", "x" * 5000, b"\xff", (), [1, "a"], {}, {1: 2, None: 3}, {"\ud800\n": 1}, deep, {1, 2}, 1j,
        torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.zeros(1).expand(10**9), torch.tensor(float("nan")),
        torch.zeros(2, 2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool), np.float64(2.5), np.int64(7),
        np.zeros(3), argparse.Namespace(dim=3), types.SimpleNamespace(n_layers=10**7), OrderedDict(a=1),
    ]  # fmt: skip
    if depth < 2 and draw.random() < 0.2:
        return {str(index): junk(draw, depth + 1) for index in range(3)}
    return draw.choice(values)


def odd_content(draw: random.Random, base: dict) -> object:
    """A checkpoint with entries, names, shapes and types changed at random."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for _ in range(draw.randint(1, 3)):
        tables = [content, *(value for value in content.values() if isinstance(value, dict) and value)]
        table = draw.choice(tables)
        key = draw.choice(list(table)) if table else "model"
        change = draw.randrange(6)
        if change == 0:
            table.pop(key, None)
        elif change == 1:
            table[key] = junk(draw)
        elif change == 2:
            table[draw.choice((1, None, "", "a\nb", "\ud800", "layers.999999999.norm.weight", (1, 2)))] = junk(draw)
        elif change == 3 and isinstance(value := table.get(key), torch.Tensor) and value.dim():
            table[key] = draw.choice((value[:1], value.T, value.double(), value[None], value[:0], value.to(torch.int8)))
        elif change == 4 and isinstance(key, str):
            table["module." * draw.randrange(3) + key] = table.pop(key, None)
        else:
            table[key] = draw.choice((0, -1, 10**6, 10**8, 10**12, 2.5, "8", None, True))
    return draw.choice((content, content, content, content.get("model"), [content]))


def written(draw: random.Random, content: object, path: Path) -> None:
    """Writes a file in one of torch's formats."""
    try:
        torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.7)
    except (UnicodeError, RuntimeError, OverflowError, ValueError, RecursionError):
        path.write_bytes(b"\x80\x02}.")


def malicious(draw: random.Random, base: dict, path: Path) -> None:
    """Writes a checkpoint with a call in it: a zip, or a bare pickle."""
    (module, name), arguments = draw.choice(list(CALLS.items()))
    call = Call(module, name, arguments)
    spots = [call, {"model": call, "model_args": {}}, base | {"extra": call}, base | {"model_args": call}, [call]]
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(draw.choice(spots))
    if draw.random() < 0.2:
        path.write_bytes(buffer.getvalue())
    else:
        write_archive(path, buffer.getvalue(), pickler.storages)


def write_archive(path: Path, pickled: bytes, storages: list[bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", content)
        for index, content in enumerate(storages):
            archive.writestr(f"archive/data/{index}", content)


def mutated_pickle(draw: random.Random, base: dict, path: Path) -> None:
    """A valid archive, with right checksums, whose pickle is broken at random places."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(base)
    pickled = bytearray(buffer.getvalue())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(pickled))
        change = draw.randrange(4)
        if change == 0:
            pickled[place] = draw.randrange(256)
        elif change == 1:
            del pickled[place : place + draw.randint(1, 8)]
        elif change == 2:
            pickled[place:place] = draw.randbytes(draw.randint(1, 8))
        else:
            pickled[place : place + 4] = struct.pack("<I", draw.choice((2**31 - 1, 2**32 - 1, 10**8, 0)))
    write_archive(path, bytes(pickled), pickler.storages)


def mutated_bytes(draw: random.Random, path: Path) -> None:
    """Breaks a file at random places, most of them in its first bytes, or cuts it."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(content), draw.choice((40, 300, len(content)))))
        number = struct.pack("<i", draw.choice((10**6, 10**8, -1)))
        content[place : place + 4] = draw.choice((draw.randbytes(4), number))
    path.write_bytes(content if draw.random() < 0.7 else content[: draw.randrange(len(content))])


def write_case(draw: random.Random, folder: Path) -> Path:
    """Writes one file; the seed of `draw` decides which."""
    path = folder / draw.choice(("case.pt", "case.bin"))
    model = random_llama(**FIELDS | {"norm_type": "rmsnorm"})
    base = draw.choice((foreign, lambda _: course_checkpoint(), own))(model)
    way = draw.randrange(6)
    if way == 0:
        malicious(draw, base, path)
    elif way == 1:
        mutated_pickle(draw, base, path)
    elif way == 2:
        writers = (write_bin, write_version_1, lambda path, model: write_version_2(path, model, 8))
        draw.choice(writers)(path, model)
        mutated_bytes(draw, path)
    elif way == 3:
        written(draw, base, path)
        mutated_bytes(draw, path)
    else:
        written(draw, odd_content(draw, base), path)
    return path


def own(model) -> dict:
    return {"format": "min-llama", "config": model.config.to_dict(), "tokenizer": None, "model": model.state_dict()}


def outcome(path: Path) -> str:
    """`loaded`, or `refused` in one printable line; anything else is an error."""
    try:
        model = from_checkpoint(read_checkpoint(path, n_heads=None))
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) < 1000, str(error)[:2000]
        return "refused"
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long))
    return "loaded"


def fuzz(cases: range) -> dict[str, float]:
    """The outcomes of all cases, the most memory in bytes, and the slowest case in processor seconds.

    Raises what a case raised, and AssertionError if one ran code, made a file or took too long.
    """
    reading: list[int] = []
    ran: list[tuple[int, str]] = []

    def hook(event: str, arguments: tuple) -> None:
        text = event == "exec" and getattr(arguments[0], "co_filename", "<string>") == "<string>"  # no import
        if reading and (text or event in RUNS_CODE):
            ran.append((reading[0], event))

    sys.addaudithook(hook)
    outcomes: Counter[str] = Counter(loaded=0, refused=0)
    slowest = 0.0
    for case in cases:
        path = write_case(random.Random(case), Path.cwd())
        files, started = set(os.listdir()), time.process_time()
        reading[:] = [case]
        try:
            outcomes[outcome(path)] += 1
        except BaseException:
            print(f"case {case}: {path.name}", file=sys.stderr)
            raise
        reading.clear()
        slowest = max(slowest, time.process_time() - started)
        assert slowest < SLOW, f"case {case} took {slowest:.1f} s"
        assert set(os.listdir()) == files, f"case {case} made a file"
        assert not ran, f"code ran: {ran}"
        path.unlink()
    return outcomes | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "slowest": slowest}


def main(argv: list[str] | None = None) -> int:
    """Fuzzes and prints the outcomes as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    random_llama(**FIELDS)  # everything is imported before the limit and the hook
    if sys.platform == "linux":  # where a process can say how much address space it has
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        print(json.dumps(fuzz(range(args.seed, args.seed + args.count))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
