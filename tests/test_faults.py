"""Every way of failing is one line with the remedy and a code: Ctrl-C, full disks, damaged files, unforeseen errors."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run_llama
from engine.io.files import FileError
from tasks import cli
from tests.tiny import ROOT, TOKENIZER, write_corpus

ADDER = "addition_models/best_model/best_model.pth"
AIL861 = "-m tasks.ail861.run --corpus data/reviews-train.txt --valid data/reviews-dev.txt --show"
QUIET_END = {130, 0}  # a program that had already finished is no fault


def interrupted(words: list[str], after: int, folder: Path) -> tuple[int, str]:
    """Exit code and stderr of a command that gets SIGINT right after its `after`-th import since `engine.start`."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)},
    ) as process:  # fmt: skip
        seen, lines = 0, []
        for line in process.stderr:
            imported = line.startswith("import time:")
            seen += imported and (seen > 0 or "engine.start" in line)
            if not imported:
                lines.append(line)
            if seen == after:
                process.send_signal(signal.SIGINT)
                seen += 1
    return process.returncode, "".join(lines)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "command", ["run_llama.py --option generate", f"addition_run.py test --checkpoint {ADDER}", AIL861]
)
def test_ctrl_c_while_importing_ends_in_one_line(command, seed, tmp_path):
    after = random.Random(f"{command}{seed}").choice((3, 20, 200, 600))
    code, shown = interrupted(command.split(), after, tmp_path)
    assert code in QUIET_END
    assert "Traceback" not in shown
    assert shown.strip() in ("", "interrupted before any work was done")


PRETRAIN = "--option pretrain --dim 32 --n_layers 1 --max_seq_len 32 --batch_tokens 128 --epochs 2 --threads 1".split()


def pretrain_words(tmp_path: Path, *more: str) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus.txt")
    return [*PRETRAIN, "--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(tmp_path / "r"), *more]


@pytest.mark.parametrize("limit", [500, 700_000])  # the token file, the state
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, limit):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = subprocess.run(
        [sys.executable, "run_llama.py", *pretrain_words(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=full, check=False,
    )  # fmt: skip
    lines = [line for line in ended.stderr.split("\n") if "run_llama.py:" in line or "Traceback" in line]
    assert ended.returncode in (1, 2) and len(lines) == 1, ended.stderr
    assert "cannot write" in lines[0] and str(tmp_path / "r") in lines[0]
    assert ended.returncode == 2 or "continue with --resume" in lines[0]
    assert not list((tmp_path / "r").rglob(".*.tmp"))


def carried_out(capsys, error: BaseException, resumable: bool = True) -> tuple[int, str]:
    def work() -> None:
        raise error

    code = cli.carry_out("p", lambda: work, resumable)
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; continue with --resume"),
        (OSError("cannot write x: No space left"), 1, "p: cannot write x: No space left; continue with --resume"),
        (FileError("x is damaged"), 1, "p: x is damaged"),
        (ZeroDivisionError("the loss"), 1, "p: the loss"),
        (MemoryError(), 1, "p: there is not enough memory: try a smaller --batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "p: there is not enough"),
    ],
)
def test_each_fault_has_its_line_and_code(capsys, error, code, line):
    ended, shown = carried_out(capsys, error)
    assert ended == code and shown.startswith(line) and "\n" not in shown


def test_a_task_without_resume_does_not_offer_it(capsys):
    assert carried_out(capsys, KeyboardInterrupt(), resumable=False) == (130, "interrupted")


def test_a_fault_of_the_program_is_not_hidden(capsys):
    for error in (ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error)):
            carried_out(capsys, error)


def program(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs a small program that begins as ours do."""
    text = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom engine import start\nstart.begin(__name__)\n{body}\n"
    (folder / "program.py").write_text(text)
    words = [sys.executable, "program.py", "--flag"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_in_a_file(tmp_path):
    ended = program(tmp_path, "def inner():\n    return {}[3]\ninner()")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    (report,) = (tmp_path / "runs" / "faults").iterdir()
    assert f"report it with runs/faults/{report.name}" in ended.stderr and "KeyError: 3" in ended.stderr
    assert all(text in report.read_text() for text in ("in inner", "KeyError: 3", "program.py --flag", "Python 3"))


def test_where_no_file_can_be_written_the_traceback_is_shown(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    ended = program(tmp_path, "raise RuntimeError('odd')")
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "odd" in ended.stderr


def test_a_missing_package_is_named_with_the_set_up(tmp_path):
    ended = program(tmp_path, "import no_such_package")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "no_such_package is not installed: run bash setup.sh" in ended.stderr


def test_threads_sleep_unless_the_user_decided(tmp_path):
    show = "import os\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    assert program(tmp_path, show).stdout.strip().isdigit()
    for name, value in (("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")):
        os.environ[name] = value
        try:
            assert program(tmp_path, show).stdout.strip() == (value if name == "GOMP_SPINCOUNT" else "None")
        finally:
            del os.environ[name]


def test_reading_no_further_is_no_fault(tmp_path):
    words = [sys.executable, "run_llama.py", "--option", "addition", "--prompt", "1234+5678="]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(words, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 1 and ended.stderr == ""


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(["--save_every", "4"], "started with save_every 0, not 4"), (["--max_grad_norm", "1"], "a new run begins")],
)
def test_fine_tuning_resumed_with_a_changed_setting(tmp_path, capsys, flags, reason):
    from tests.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny.pt")
    lines = (ROOT / "data" / "reviews-dev.txt").read_text("utf-8").splitlines(keepends=True)[:12]
    (tmp_path / "few.txt").write_text("".join(lines), encoding="utf-8")
    words = ["--option", "finetune", *(f"--{split}={tmp_path}/few.txt" for split in ("train", "dev", "test"))]
    words += [f"--{split}_out={tmp_path}/few-{split}-finetuning-output.txt" for split in ("dev", "test")]
    words += [f"--label-names={ROOT}/data/reviews-label-mapping.json", f"--pretrained-model-path={tmp_path}/tiny.pt"]
    words += [f"--save_dir={tmp_path}/runs", "--threads=1", "--epochs=1", "--lr=1e-3"]
    assert run_llama.main(words) == 0
    code = run_llama.main([*words, "--resume", *flags])
    out, err = capsys.readouterr()
    assert (code, reason in err, "Traceback" in err) == (2, True, False) if flags[0] == "--save_every" else code == 0
    assert reason in out + err
    if code == 2:
        (folder,) = (tmp_path / "runs").glob("finetune-*")
        (folder / "best.pt").unlink()
        assert run_llama.main([*words, "--resume"]) == 2
        assert "the best model up to step 2, is gone: put it back, or delete last.pt" in capsys.readouterr().err
        (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-400])
        assert run_llama.main([*words, "--resume"]) == 2
        assert "cut short" in capsys.readouterr().err
