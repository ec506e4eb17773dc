"""A good submission passes; every way of breaking one is refused with its reason, and no zip is left behind."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

import prepare_submit
import run_llama
from tasks import cli, provenance
from tasks.submission.check import check_zip, make_zip, packer_leaves_out
from tasks.submission.files import BEST, COURSES, MODELS, TESTED, TRAINED, steps
from tasks.submission.zip_file import collect, imported_files, write_zip
from tests.submission_project import write_project
from tests.tiny import ROOT

SPRING, FALL = COURSES["spring2026"], COURSES["fall2025"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project that is ready; tests that break it take a copy."""
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def packed(project) -> dict[str, Path]:
    """The files that would go into the zip of Spring 2026, by name."""
    files, problems = collect(project, SPRING, "jdoe")
    assert problems == []
    return files


@pytest.fixture
def broken(project, tmp_path) -> Path:
    """A copy of the project to break."""
    return Path(shutil.copytree(project, tmp_path / "broken"))


def check_files(tmp_path: Path, project: Path, files: dict[str, Path], course=SPRING) -> list[str]:
    """What is wrong with a zip of these files."""
    write_zip(tmp_path / "jdoe.zip", "jdoe", files)
    return check_zip(tmp_path / "jdoe.zip", "jdoe", course, project / "data", run=False).problems


def refuse(broken: Path, capsys, monkeypatch, course: str = "spring2026") -> str:
    """Packs a broken project by the command line: exit code 1, no zip; returns what was said."""
    monkeypatch.chdir(broken)
    assert prepare_submit.main([str(broken), "jdoe", "--course", course], run=False) == 1
    assert not list(broken.glob("*.zip")) and not list(broken.glob(".jdoe*"))
    said = capsys.readouterr().err
    return said if "Traceback" not in said else pytest.fail(said)


@pytest.mark.parametrize("course", COURSES)
def test_a_good_project_makes_a_good_zip(project, tmp_path, monkeypatch, capsys, course):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "data", tmp_path / "data")
    assert prepare_submit.main([str(project), "jdoe", "--course", course], run=False) == 0
    said = capsys.readouterr().out
    assert f"jdoe.zip is good for {course}" in said and "sst-dev-prompting-output.txt: accuracy 0.222" in said
    first = (tmp_path / "jdoe.zip").read_bytes()
    assert prepare_submit.main(["jdoe.zip", "jdoe", "--course", course], run=False) == 0
    assert prepare_submit.main([str(project), "jdoe", "--course", course], run=False) == 0
    assert (tmp_path / "jdoe.zip").read_bytes() == first
    names = zipfile.ZipFile("jdoe.zip").namelist()
    assert {name.split("/")[0] for name in names} == {"jdoe"}
    assert set(COURSES[course].required) <= {name.removeprefix("jdoe/") for name in names}
    assert any(MODELS in name for name in names) == (course == "spring2026")


def test_the_zip_holds_what_the_code_imports_and_nothing_else(broken):
    for name in (".secret", "stories42M.pt", "data/more.txt", "__pycache__/llama.pyc", "notes.py", "runs/last.pt"):
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).write_text("x")
    for name in ("last.pt", ".hidden", "seed_3.pth", "cache/big.npy"):
        (broken / MODELS / BEST / name).parent.mkdir(exist_ok=True)
        (broken / MODELS / BEST / name).write_text("x")
    names, problems = collect(broken, SPRING, "jdoe")
    assert problems == []
    assert not [name for name in names if names[name].read_text("utf-8", "replace") == "x"]
    modules = {"engine/train/trainer.py", "tasks/sentiment/data.py", "tasks/addition/batched_model.py"}
    assert modules | {"tests/golden/rope.npz", "tasks/page/page.html", "tasks/page/engine.js"} <= set(names)


def test_imports_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "a.py").write_text("import os\ndef f():\n    from b import x\nOPTIONS = {'t': Option('c:prepare')}\n")
    (tmp_path / "b.py").write_text("import importlib\nimportlib.import_module('d').run()\nimport pack.part\n")
    (tmp_path / "c.py").write_text("this is no Python")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "part.py").write_text("import e\n")
    for name in "dexy":
        (tmp_path / f"{name}.py").write_text("")
    found = imported_files(tmp_path, ["a"])
    assert found == ["a.py", "b.py", "c.py", "d.py", "e.py", "pack/__init__.py", "pack/part.py"]


def test_the_task_modules_of_the_dispatcher_are_found():
    import run_llama

    modules = {option.door.partition(":")[0].replace(".", "/") for option in run_llama.OPTIONS.values()}
    assert {f"{module}.py" for module in modules} <= set(imported_files(ROOT))


@pytest.mark.parametrize("course", COURSES)
def test_each_missing_file_is_refused_with_its_command(project, tmp_path, course):
    files, _ = collect(project, COURSES[course], "jdoe")
    for name in COURSES[course].required:
        kept = {other: path for other, path in files.items() if other != name}
        problems = check_files(tmp_path, project, kept, COURSES[course])
        told = [problem for problem in problems if problem.startswith(f"missing {name}: ")]
        assert len(told) == 1 and ("python " in told[0] or "git restore" in told[0] or "setup.sh" in told[0])


@pytest.mark.parametrize("name", TRAINED + TESTED)
def test_each_missing_file_of_a_model_is_refused(project, packed, tmp_path, name):
    kept = {other: path for other, path in packed.items() if other != f"{MODELS}/ablation_3/{name}"}
    problems = check_files(tmp_path, project, kept)
    assert problems[0].startswith(f"missing {MODELS}/ablation_3/{name}: python addition_run.py t")


def test_all_that_is_missing_is_told_at_once(broken, capsys, monkeypatch):
    for name in ("llama.py", "generated-sentence-temp-0.txt", "cfimdb-test-prompting-output.txt"):
        (broken / name).unlink()
    shutil.rmtree(broken / MODELS / BEST)
    said = refuse(broken, capsys, monkeypatch)
    assert "missing llama.py" in said
    assert "python run_llama.py --option generate" in said
    assert "--test_out cfimdb-test-prompting-output.txt" in said
    assert "addition_run.py train --capacity 5808844800000 --dim 16" in said


DEV = "sst-dev-prompting-output.txt"


def lines_of(broken: Path) -> list[str]:
    return (broken / DEV).read_text("utf-8").split("\n")[:-1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: lines[:-1], "8 lines, not 9"),
        (lambda lines: [*lines, lines[0]], "10 lines, not 9"),
        (lambda lines: [*lines[:-1], lines[-1][:9]], "line 9: not the data's sentence"),
        (lambda lines: ["5" + lines[0][1:], *lines[1:]], "line 1 predicts '5', not a label"),
        (lambda lines: ["-1" + lines[0][1:], *lines[1:]], "line 1 predicts '-1', not a label"),
        (lambda lines: ["good" + line[1:] for line in lines], "(and 8 more lines are wrong)"),
        (lambda lines: [lines[0].replace("|||", "|"), *lines[1:]], "line 1 has no '|||'"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: the sentences are the data's, but in another order"),
    ],
)  # fmt: skip
def test_broken_predictions_are_refused(broken, capsys, monkeypatch, change, reason):
    lines = change(lines_of(broken))
    if "|||" in reason:
        lines[0] = lines[0].replace("|||", "")
    (broken / DEV).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    said = refuse(broken, capsys, monkeypatch)
    assert reason in said and f"--dev_out {DEV}" in said
    assert said.count("\n- ") == 1


def test_predictions_that_are_no_text_are_refused(broken, capsys, monkeypatch):
    (broken / DEV).write_bytes("0 ||| caf\xe9\n".encode("latin-1"))
    assert "not UTF-8" in refuse(broken, capsys, monkeypatch)


def test_without_the_data_the_courses_numbers_of_lines_hold(project, packed, tmp_path):
    write_zip(tmp_path / "jdoe.zip", "jdoe", packed)
    problems = check_zip(tmp_path / "jdoe.zip", "jdoe", SPRING, tmp_path / "no data", run=False).problems
    assert len(problems) == 4 and f"{DEV}: 9 lines, not 1101" in problems[2]


def test_a_continuation_of_something_else_is_refused(broken, capsys, monkeypatch):
    (broken / "generated-sentence-temp-1.txt").write_text("Once upon a time")
    assert "does not begin with the course's sentence" in refuse(broken, capsys, monkeypatch)


def test_too_few_ablations_or_too_good_ones_are_refused(broken, capsys, monkeypatch):
    for name in ("ablation_1", "ablation_2"):
        summary = broken / MODELS / name / "experiment_summary.json"
        summary.write_text(summary.read_text().replace("0.25", "1.0"))
    assert "0 ablations are below 100 %" in refuse(broken, capsys, monkeypatch)
    shutil.rmtree(broken / MODELS / "ablation_4")
    said = refuse(broken, capsys, monkeypatch)
    assert "holds 4 ablations, not 5" in said and "--save_dir addition_models/ablation_4" in said


def test_a_cut_checkpoint_and_a_cut_summary_are_refused(broken, capsys, monkeypatch):
    for name in (TRAINED[0], TESTED[0]):
        path = broken / MODELS / BEST / name
        path.write_bytes(path.read_bytes()[:-40])
    said = refuse(broken, capsys, monkeypatch)
    assert "it is cut short" in said
    assert "experiment_summary.json is not the summary of a test" in said


def test_a_link_that_leads_outside_is_refused(broken, capsys, monkeypatch, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("feedback")
    (broken / "feedback.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert "feedback.txt is a link that leads outside" in refuse(broken, capsys, monkeypatch)


def test_a_submission_over_the_limit_is_refused(broken, capsys, monkeypatch):
    import random

    noise = random.Random(0).randbytes(15_000_000)
    (broken / MODELS / BEST / "curves.png").write_bytes(noise)
    assert "MB; spring2026 allows 15 MB" in refuse(broken, capsys, monkeypatch)
    assert not collect(broken, FALL, "jdoe")[0].get(f"{MODELS}/{BEST}/curves.png")


def test_a_stale_zip_is_moved_away_when_the_new_one_is_refused(broken):
    (broken / "llama.py").unlink()
    old = broken.parent / "jdoe.zip"
    old.write_bytes(b"old")
    assert make_zip(broken, "jdoe", SPRING, old, run=False).problems
    assert not old.exists()
    assert (broken.parent / "runs" / "replaced" / "jdoe.zip").read_bytes() == b"old"


def test_modules_that_the_courses_own_packer_would_leave_out_are_named(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare_submit.main([str(project), "jdoe"], run=False) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the course's own")]
    assert len(notes) == 1 and re.search(r"engine/ \(\d+ files\), lora.py, tasks/ \(\d+ files\)", notes[0])
    for name in ("a.py", "llama.py"):
        (tmp_path / name).write_text("import os\n")
    assert packer_leaves_out(tmp_path, SPRING) == ""


def record(project: Path, output: str, words: str, model: Path) -> None:
    """Records that the output was made by this command line."""
    option, settings = cli.parse(run_llama.PROGRAM, words.split())
    data = [project / getattr(settings, name) for name in ("dev", "test", "label_names") if hasattr(settings, name)]
    provenance.record([project / output], "run_llama.py", option, settings, model, data)


def test_what_was_not_made_by_the_courses_command_is_named_loudly(broken, monkeypatch, capsys):
    monkeypatch.chdir(broken)
    model = broken / "stories42M.pt"
    model.write_bytes(b"weights")
    record(broken, "generated-sentence-temp-0.txt", "--option generate --max_new_tokens 20 --quantize int8", model)
    record(broken, "generated-sentence-temp-1.txt", "--option generate --top_k 40", model)
    for step in steps(SPRING):
        if step.option == "prompt":
            for name in step.outputs:
                extra = "--calibrate" if "sst" in name else "--pooling last_column"
                record(broken, name, " ".join([*step.words[1:], extra]), model)
    assert prepare_submit.main([".", "jdoe"], run=False) == 0
    printed = capsys.readouterr().out
    loud = [line for line in printed.splitlines() if line.startswith("!! ")]
    assert len(loud) == 2
    assert "(--max_new_tokens 20 instead of 75, --quantize int8 instead of float32, --top_k 40)" in loud[0]
    assert "(--calibrate True): sst-dev-prompting-output.txt" in loud[1] and "the course's: python" in loud[1]
    assert "zero-shot reads the last column" in printed and "zero-shot reads the last real token" in printed
    assert "sst-dev: 0.222, close to the reference 0.197" in printed
    assert "made with stories42M.pt: generated-sentence-temp-0.txt" in printed


def test_another_data_set_and_an_edited_file_are_seen(broken, monkeypatch, capsys):
    monkeypatch.chdir(broken)
    model = broken / "stories42M.pt"
    model.write_bytes(b"weights")
    step = next(step for step in steps(SPRING) if step.name == "prompt sst")
    words = " ".join(step.words[1:]).replace("data/sst-dev.txt", "data/cfimdb-dev.txt")
    for name in step.outputs:
        record(broken, name, words, model)
    assert prepare_submit.main([".", "jdoe"], run=False) == 0
    assert "NOT made by the course's command (other data, cfimdb-dev.txt)" in capsys.readouterr().out
    lines = lines_of(broken)
    (broken / DEV).write_text("".join(f"{line}\n" for line in ["1" + lines[0][1:], *lines[1:]]), encoding="utf-8")
    assert prepare_submit.main([".", "jdoe"], run=False) == 0
    printed = capsys.readouterr().out
    assert "not recorded: generated-sentence-temp-0.txt" in printed and "cfimdb-dev.txt" not in printed


def zip_of(path: Path, entries: dict[str, str], kind: int = stat.S_IFREG) -> Path:
    """A hand-made zip; `kind` is what its last entry claims to be."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, text) in enumerate(entries.items(), start=1):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind if number == len(entries) else stat.S_IFREG) << 16
            archive.writestr(info, text)
    return path


def refuse_zip(path: Path, capsys) -> str:
    assert prepare_submit.main([str(path), "jdoe"], run=False) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"jdoe/llama.py": "x", "other/rope.py": "x"}, "must hold one folder, jdoe/"),
        ({"llama.py": "x", "rope.py": "x"}, "must hold one folder, jdoe/"),
        ({"asmith/llama.py": "x"}, "the folder in the zip is asmith/, but the ANDREWID is jdoe"),
        ({"jdoe/llama.py": "x", "/etc/passwd": "x"}, "absolute path"),
        ({"jdoe/llama.py": "x", "C:/llama.py": "x"}, "absolute path"),
        ({"jdoe/llama.py": "x", "jdoe/../../up.py": "x"}, "leads outside"),
        ({"jdoe/llama.py": "x", "jdoe\\rope.py": "x"}, "backslash"),
        ({"jdoe/a": "x", "jdoe/a/b": "x"}, "cannot be unpacked"),
        ({}, "is empty"),
    ],
)
def test_broken_zips_are_refused(tmp_path, capsys, entries, reason):
    assert reason in refuse_zip(zip_of(tmp_path / "jdoe.zip", entries), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["jdoe.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path, capsys):
    path = zip_of(tmp_path / "jdoe.zip", {"jdoe/llama.py": "x", "jdoe/data": "/etc"}, kind=stat.S_IFLNK)
    assert "is a symbolic link" in refuse_zip(path, capsys)


def test_a_zip_cut_in_half_damaged_or_none_at_all_is_refused(packed, tmp_path, capsys):
    path = tmp_path / "jdoe.zip"
    write_zip(path, "jdoe", packed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refuse_zip(path, capsys)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    refuse_zip(path, capsys)
    path.write_text("I am no zip")
    assert "not a zip file" in refuse_zip(path, capsys)


@pytest.mark.parametrize(
    "words",
    [
        [".", "j doe"], [".", "../jdoe"], [".", "jdoe/"], [".", "jdoe.zip"], [".", "_jdoe"], [".", ""], ["."], [],
        ["nowhere", "jdoe"], [".", "jdoe", "--course", "fall2031"], ["--checklist", "nowhere"],
    ],
)  # fmt: skip
def test_bad_usage_is_refused_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare_submit.main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
