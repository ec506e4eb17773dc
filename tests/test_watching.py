"""A running training can be watched: TensorBoard shows what the JSON lines say, and `watch` draws and prints them."""

from __future__ import annotations

import importlib.util
import json

import pytest
from PIL import Image

import addition_run
import run_llama
from engine.train import run_log
from engine.train.run_log import RunLog
from tasks import cli
from tasks.ail861 import run as ail861
from tasks.ail861.flags import Ail861Settings
from tasks.results import watch
from tests.test_trainer import trainer_of
from tests.tiny import ROOT, TOKENIZER, write_corpus, write_tiny_checkpoint


def scalars(folder, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar as TensorBoard's own reader gives them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="requirements-tensorboard.txt is not installed"
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []


def test_tensorboard_shows_what_the_log_says(tmp_path):
    trainer = trainer_of(tmp_path / "mine")
    trainer.log = RunLog(tmp_path / "mine" / "log.jsonl", tmp_path / "board")
    trainer.fit()
    records = run_log.read(tmp_path / "mine" / "log.jsonl")
    for name in ("loss", "lr", "score"):
        expected = [(record["step"], record[name]) for record in records if name in record]
        shown = scalars(tmp_path / "board" / "mine", name)
        assert [step for step, _ in shown] == [step for step, _ in expected] and len(shown) >= 3
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected], rel=1e-6)


@pytest.mark.parametrize(("resumed_at", "kept"), [(3, 3), (None, 0)], ids=["resumed", "started anew"])
def test_points_of_steps_that_are_done_again_are_hidden(tmp_path, resumed_at, kept):
    for first, last, value in ((1, 5, 1.0), ((resumed_at or 0) + 1, 6, 2.0)):
        log = RunLog(tmp_path / "run" / "log.jsonl", tmp_path / "board")
        log.path.parent.mkdir(exist_ok=True)
        if value == 2.0 and resumed_at is not None:
            log.cut_after(resumed_at)
        for step in range(first, last + 1):
            log.write(step=step, loss=value)
        log.close()
    assert scalars(tmp_path / "board" / "run", "loss") == [(step, 1.0 if step <= kept else 2.0) for step in range(1, 7)]


def pretrain(tmp_path) -> list[str]:
    corpus = write_corpus(tmp_path / "stories.txt", 40)
    words = f"--option pretrain --corpus {corpus} --tokenizer {TOKENIZER} --save_dir {tmp_path}/mine --epochs 1"
    words += " --dim 16 --n_layers 1 --n_heads 2 --n_kv_heads 2 --max_seq_len 32 --batch_tokens 256"
    return words.split()


def finetune(tmp_path) -> list[str]:
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    words = f"--option finetune --pretrained-model-path {tmp_path}/tiny.pt --save_dir {tmp_path} --epochs 1"
    words += f" --label-names {ROOT}/data/reviews-label-mapping.json"
    for split in ("train", "dev", "test"):
        lines = (ROOT / "data" / f"reviews-{split}.txt").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.txt").write_text("".join(lines[:16]), encoding="utf-8")
        words += f" --{split} {tmp_path}/{split}.txt"
    for split in ("dev", "test"):
        words += f" --{split}_out {tmp_path}/{split}-finetuning-output.txt"
    return words.split()


def addition(tmp_path) -> list[str]:
    words = f"train --save_dir {tmp_path}/adder --no_data_files --no_compile --log_every 1 --epochs 1"
    words += " --dim 4 --n_layers 1 --n_heads 1 --n_kv_heads 1 --examples 256 --batch_size 64 --dev_examples 8"
    return words.split()


@pytest.mark.parametrize(
    ("program", "words"), [(run_llama, pretrain), (run_llama, finetune), (addition_run, addition)],
    ids=["pretrain", "finetune", "addition"],
)  # fmt: skip
def test_every_training_logs_for_tensorboard(program, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main([*words(tmp_path), "--threads", "1", "--tensorboard", str(tmp_path / "board")]) == 0
    (run,) = (tmp_path / "board").iterdir()
    log = run_log.read(next(tmp_path.glob(f"{run.name}/log.jsonl")))
    expected = [(record["step"], pytest.approx(record["loss"], rel=1e-6)) for record in log if "loss" in record]
    assert scalars(run, "loss") == expected and expected
    assert "tensorboard" not in next(tmp_path.glob(f"{run.name}/recipe.toml")).read_text("utf-8")


def test_ail861_hands_the_folder_to_its_trainings(tmp_path):
    words = ["--corpus", "a", "--valid", "b", "--tensorboard", str(tmp_path)]
    steps = ail861.build_steps(cli.parse_alone("ail861", Ail861Settings, "", words), tmp_path)
    named = [step.name for step in steps if "--tensorboard" in step.command]
    assert named == [step.name for step in steps if "pretrain" in step.command] and len(named) == 9


@pytest.mark.parametrize("reason", ["needs a package: pip install -r requirements-tensorboard.txt", "is a file"])
def test_what_cannot_be_logged_to_is_refused_in_one_line(tmp_path, capsys, monkeypatch, reason):
    (tmp_path / "board").write_text("no folder")
    find_spec = importlib.util.find_spec
    absent = "tensorboard" if "package" in reason else "nothing"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find_spec(name))
    with pytest.raises(SystemExit) as ended:
        run_llama.main([*pretrain(tmp_path), "--tensorboard", str(tmp_path / "board")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and reason in error and error.count("\n") == 1


def write_log(folder, steps: int) -> None:
    folder.mkdir(exist_ok=True)
    records = [{"step": step, "epoch": 0, "loss": 4 / step, "lr": 1e-3} for step in range(1, steps + 1)]
    measured = {"step": steps, "epoch": 0, "seconds": 90.0, "held_out_loss": 1.25, "dev_acc": 0.5, "score": -1.25}
    text = "".join(json.dumps(record) + "\n" for record in [*records, measured])
    (folder / "log.jsonl").write_text(text + '{"step": 99, "lo')  # a line that is being written


def test_watching_prints_and_draws_what_is_new_until_it_is_interrupted(tmp_path, capsys, monkeypatch):
    write_log(tmp_path / "a", 20)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            write_log(tmp_path / "a", 1234)
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert watch.main([str(tmp_path / "a"), "--every", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("held_out_loss") == 2 and looks == [0.5] * 4  # printed twice, for four looks
    assert [line.split() for line in shown.splitlines()][1:4] == [
        ["step", "minutes", "held_out_loss", "dev_acc"], ["20", "1.5", "1.2500", "0.5000"],
        ["step", "20,", "epoch", "1:", "loss", "0.2000,", "rate", "1.00e-03"],
    ]  # fmt: skip
    assert "1,234" in shown
    assert Image.open(tmp_path / "a" / "watch.png").size == (1050, 1230)  # losses, accuracy and rate


def test_several_runs_share_a_figure_and_one_without_a_log_is_refused(tmp_path, capsys):
    write_log(tmp_path / "a", 5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.jsonl").write_text("")
    words = [str(tmp_path / "a"), str(tmp_path / "b" / "log.jsonl"), "--once", "--out", str(tmp_path / "both.png")]
    assert watch.main(words) == 0
    assert "no step yet" in capsys.readouterr().out and (tmp_path / "both.png").is_file()
    (tmp_path / "b" / "log.jsonl").unlink()
    assert watch.main(words) == 2
    error = capsys.readouterr().err
    assert "no log yet" in error and error.count("\n") == 1
