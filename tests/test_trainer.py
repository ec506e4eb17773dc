"""The training loop: accumulation weighs every target the same, and a run that stops goes on as if it had not."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from engine.io.checkpoint import CheckpointError, load_plain, save_plain
from engine.train import run_log
from engine.train.run_log import RunLog
from engine.train.schedule import rate_factor
from engine.train.trainer import NO_SCALING, NotFiniteError, Trainer, TrainSettings, update
from optimizer import AdamW
from tests.tiny import CLOCKS, ROOT, TOKENIZER, write_corpus

CPU = torch.device("cpu")


class Regression:
    """Squared errors of a linear model with dropout, in batches of different sizes."""

    def __init__(self, sizes=(3, 1, 4, 2, 5, 2), scores=None):
        generator = torch.Generator().manual_seed(0)
        self.data = [torch.randn(size, 5, generator=generator) for size in sizes]
        self.scores = scores

    def batches_per_epoch(self, epoch):
        return len(self.data)

    def epoch(self, epoch):
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(epoch)).tolist()
        return order

    def count(self, batch):
        return len(self.data[batch])

    def loss(self, model, batch):
        rows = self.data[batch]
        return (model(rows)[:, 0] - rows.sum(dim=1)).square().sum()

    def evaluate(self, model):
        score = self.scores.pop(0) if self.scores else -sum(self.loss(model, i).item() for i in range(len(self.data)))
        return {"score": score}

    def save_best(self, model, path):
        save_plain({"model": model.state_dict()}, path)


def trainer_of(folder: Path, workload=None, dropout=0.3, identity=None, **settings) -> Trainer:
    torch.manual_seed(5)
    folder.mkdir(exist_ok=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.Linear(8, 1))
    optimizer = AdamW(model.parameters(), lr=0.05)
    chosen = TrainSettings(**({"epochs": 3} | settings))
    log = RunLog(folder / "log.jsonl")
    return Trainer(model, optimizer, workload or Regression(), chosen, folder, CPU, log, identity or {})


def weights(trainer: Trainer) -> list[float]:
    return torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]).tolist()


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    ragged = trainer_of(tmp_path / "a", Regression((3, 1, 4)), dropout=0.0, accumulation=3)
    whole = Regression((8,))
    whole.data = [torch.cat([ragged.workload.data[index] for index in (0, 1, 2)])]
    large = trainer_of(tmp_path / "b", whole, dropout=0.0)
    ragged.fit()
    large.fit()
    assert ragged.progress.step == large.progress.step == 3
    assert weights(ragged) == pytest.approx(weights(large), abs=1e-6)


def test_rates_follow_the_schedule(tmp_path):
    trainer = trainer_of(tmp_path, schedule="cosine", warmup_steps=4, rate_floor=0.1)
    trainer.fit()
    rates = [record["lr"] for record in run_log.read(tmp_path / "log.jsonl") if "lr" in record]
    assert rates == [0.05 * rate_factor(step, 18, 4, "cosine", 0.1) for step in range(18)]


def test_epochs_of_different_lengths_end_with_the_last_step_at_the_floor_and_measured(tmp_path):
    workload = Regression()
    workload.epoch = lambda epoch: list(range(6 - epoch))
    workload.batches_per_epoch = lambda epoch: 6 - epoch
    trainer = trainer_of(tmp_path, workload, schedule="linear", evaluate_every=7)
    trainer.fit()
    assert trainer.total_steps == trainer.progress.step == 15
    measured = [record["step"] for record in run_log.read(tmp_path / "log.jsonl") if "score" in record]
    assert measured == [7, 14, 15]


class StopError(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize(
    ("stop_at", "dtype"), [*((stop, "float32") for stop in (1, 5, 6, 7, 13)), (7, "float16")]
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, stop_at, dtype):
    options = {"accumulation": 1, "schedule": "linear", "save_every": 2, "evaluate_every": 3, "dtype": dtype}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.fit()
    broken = trainer_of(tmp_path / "broken", **options)
    step = broken.step

    def failing(batches):
        if broken.progress.step == stop_at:
            raise StopError
        return step(batches)

    broken.step = failing
    with pytest.raises(StopError):
        broken.fit()
    resumed = trainer_of(tmp_path / "broken", **options)
    torch.manual_seed(999)  # whatever happened before, the saved random state is what counts
    if resumed.state_path.exists():
        resumed.resume()
    else:
        resumed = trainer_of(tmp_path / "broken", **options)
    resumed.fit()
    assert weights(resumed) == weights(whole)
    logs = [run_log.read(tmp_path / name / "log.jsonl") for name in ("whole", "broken")]
    for record in logs[0] + logs[1]:
        record.update(CLOCKS)
    states = [load_plain(tmp_path / name / "last.pt") for name in ("whole", "broken")]
    assert states[0]["scaler"] == states[1]["scaler"]
    if stop_at >= 2:  # before the first saved state a run begins anew, and its log with it
        assert logs[0] == logs[1]


def test_float16_leaves_out_the_steps_that_overflow_and_counts_them(tmp_path):
    trainer = trainer_of(tmp_path, dropout=0.0, dtype="float16", epochs=2)
    begin = weights(trainer)
    for batch in trainer.workload.epoch(0):  # residuals of about 1: 65536 times their gradient is infinite
        trainer.step([batch])
        if trainer.progress.skipped == trainer.progress.step:
            assert weights(trainer) == begin
    skipped = trainer.progress.skipped
    assert 0 < skipped < 6 and weights(trainer) != begin
    assert trainer.scaler.get_scale() == 65536.0 / 2**skipped
    trainer.fit()
    last = [record for record in run_log.read(tmp_path / "log.jsonl") if "loss" in record][-1]
    assert (last["skipped"], last["scale"]) == (trainer.progress.skipped, trainer.scaler.get_scale())
    assert load_plain(trainer.state_path)["scaler"]["scale"] == last["scale"]


def test_float16_gradients_too_small_for_it_are_not_lost():
    def moved(scaler) -> float:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e9)
        loss = lambda model, rows: 1e-9 * model(rows).float().sum()  # noqa: E731
        half = lambda: torch.autocast("cpu", torch.float16)  # noqa: E731
        update(model, optimizer, [torch.ones(2, 4)], len, loss, half, scaler)
        return (before - model.weight.detach()).mean().item()

    assert moved(NO_SCALING) == 0.0
    assert moved(GradScaler("cpu")) == pytest.approx(1.0, rel=1e-2)


def test_the_best_score_is_kept_and_patience_ends_the_run(tmp_path):
    trainer = trainer_of(tmp_path, Regression(scores=[1.0, 3.0, 2.0, 2.5, 9.0]), epochs=5, patience=2)
    seen = []
    trainer.workload.save_best = lambda model, path: seen.append(trainer.progress.epoch)
    progress = trainer.fit()
    assert seen == [0, 1]
    assert progress.best_score == 3.0 and progress.stale == 2 and progress.epoch == 4


def test_a_workload_that_is_done_ends_the_run_and_the_end_is_always_measured(tmp_path):
    workload = Regression()
    trainer = trainer_of(tmp_path / "done", workload, epochs=5)
    workload.evaluate = lambda model: {"score": 0.0, "done": trainer.progress.epoch == 1}
    assert trainer.fit().step == 12 and trainer.progress.done
    whole = trainer_of(tmp_path / "whole", epochs=3, evaluate_every=4)  # 18 steps
    whole.fit()
    measured = [record["step"] for record in run_log.read(tmp_path / "whole" / "log.jsonl") if "score" in record]
    assert measured == [4, 8, 12, 16, 18]


def test_a_sparse_log_changes_nothing_else(tmp_path):
    dense = trainer_of(tmp_path / "dense")
    dense.fit()
    sparse = trainer_of(tmp_path / "sparse")
    sparse.log_every = 5
    sparse.fit()
    assert weights(dense) == weights(sparse)
    steps = [record["step"] for record in run_log.read(tmp_path / "sparse" / "log.jsonl") if "loss" in record]
    assert steps == [5, 10, 15]


def test_another_run_is_not_resumed(tmp_path):
    trainer_of(tmp_path, identity={"data": "abc"}).fit()
    with pytest.raises(CheckpointError, match="started with data abc, not xyz"):
        trainer_of(tmp_path, identity={"data": "xyz"}).resume()
    with pytest.raises(CheckpointError, match="started with epochs 3, not 4"):
        trainer_of(tmp_path, identity={"data": "abc"}, epochs=4).resume()


def test_a_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    trainer.fit()
    before = trainer.state_path.read_bytes()

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        trainer.save()
    assert trainer.state_path.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def logged_steps(folder: Path) -> int:
    log = folder / "log.jsonl"
    return max((record["step"] for record in run_log.read(log)), default=0) if log.exists() else 0


def test_pretraining_killed_three_times_ends_with_the_same_bits(tmp_path):
    """The whole command, ended by SIGKILL at random steps; the log too is that of a run that nobody stopped."""
    corpus = write_corpus(tmp_path / "corpus.txt", 120)

    def command(folder: str, *more: str) -> list[str]:
        model = ["--dim", "32", "--n_layers", "2", "--max_seq_len", "64", "--batch_tokens", "128", "--epochs", "4"]
        places = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(tmp_path / folder)]
        often = ["--threads", "1", "--save_every", "3", "--evaluate_every", "5", "--held_out", "0.1"]
        return [sys.executable, "run_llama.py", "--option", "pretrain", *model, *places, *often, *more]

    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    total, killed = logged_steps(tmp_path / "whole"), tmp_path / "killed"
    for part in range(3):
        stop = random.randint(total * part // 4 + 4, total * (part + 1) // 4)
        with subprocess.Popen(command("killed", "--resume"), **quiet) as process:
            deadline = time.monotonic() + 600
            while logged_steps(killed) < stop and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            process.kill()
        assert stop <= logged_steps(killed) < total, "it was not killed on its way"
        assert load_plain(killed / "last.pt")["progress"]["step"] >= 3
    subprocess.run(command("killed", "--resume"), check=True, **quiet)
    states = [load_plain(tmp_path / name / "last.pt") for name in ("whole", "killed")]
    assert states[0]["progress"] | CLOCKS == states[1]["progress"] | CLOCKS
    assert torch.equal(states[0]["random"][0]["cpu"], states[1]["random"][0]["cpu"])
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    logs = [run_log.read(tmp_path / name / "log.jsonl") for name in ("whole", "killed")]
    assert [r | CLOCKS for r in logs[0]] == [r | CLOCKS for r in logs[1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, bad):
    class Exploding(Regression):
        losses = 0

        def loss(self, model, batch):
            self.losses += model.training
            return super().loss(model, batch) * (bad if self.losses > 8 else 1.0)

    trainer = trainer_of(tmp_path / "run", Exploding())
    with pytest.raises(NotFiniteError, match=r"at step 9 .*--lr.*last\.pt holds the last good state"):
        trainer.fit()
    state = load_plain(tmp_path / "run" / "last.pt")
    assert state["progress"]["step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize("left", [True, False])
def test_an_earlier_runs_state_is_not_called_the_last_good_one(tmp_path, left):
    class Broken(Regression):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("nan")

    trainer = trainer_of(tmp_path / "run", Broken())
    if left:
        trainer.state_path.write_bytes(b"of another run")
    with pytest.raises(NotFiniteError) as error:
        trainer.fit()
    assert "last good state" not in str(error.value)


def test_a_float16_run_that_no_scale_saves_ends(tmp_path):
    class Broken(Regression):
        def loss(self, model, batch):
            return super().loss(model, batch) * (float("inf") if model.training else 1.0)

    trainer = trainer_of(tmp_path / "run", Broken(), dtype="float16", epochs=9)
    with pytest.raises(NotFiniteError, match="the loss is"):
        trainer.fit()
    assert 10 < trainer.progress.step < 40


def test_the_log_survives_a_damaged_line_and_writes_no_nan(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(step=1, loss=float("nan"))
    with open(log.path, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo\n[1]\n')
    log.write(step=3, loss=0.5)
    assert run_log.read(log.path) == [{"step": 1, "loss": None}, {"step": 3, "loss": 0.5}]
    log.cut_after(1)
    assert log.path.read_text("utf-8") == '{"step": 1, "loss": null}\n'
