"""Averages of the weights along one training against spelled-out float64 sums; a stopped run resumes with them."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import run_llama
from engine.io.checkpoint import load_plain
from engine.train import trainer
from engine.train.averaging import RunningAverage, constant_rate, decay_rate, tail_rate
from optimizer import AdamW
from tests.tiny import CLOCKS, ROOT, write_tiny_checkpoint

DATA = ROOT / "data"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.floats(0.0, 0.99), st.integers(0, 11))
def test_each_rate_is_its_sum(steps, decay, first):
    torch.manual_seed(steps)
    model = nn.Linear(3, 2, bias=False)
    averages = [RunningAverage(model, rate) for rate in (decay_rate(decay), tail_rate(first), constant_rate(1 - decay))]
    path = [model.weight.detach().double().clone()]
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        path.append(model.weight.detach().double().clone())
        for average in averages:
            average.update()
    weights = [decay ** (steps - step) for step in range(1, steps + 1)]
    ema = sum(weight * value for weight, value in zip(weights, path[1:], strict=True)) / sum(weights)
    tail = path[first + 1 :] or path[-1:]
    proximal = path[0]
    for value in path[1:]:
        proximal = (1 - decay) * value + decay * proximal  # Jiang et al. 2020, algorithm 1, line 14
    expected = (ema, sum(tail) / len(tail), proximal)
    for average, value in zip(averages, expected, strict=True):
        assert torch.allclose(average.weights["weight"].double(), value, atol=1e-5)


def test_an_average_is_in_the_model_only_inside_its_block():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    average = RunningAverage(model, tail_rate(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model[1].weight.add_(1.0)
    with pytest.raises(KeyError), average.applied():
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise KeyError
    assert torch.equal(model[1].weight, before["1.weight"] + 1.0) and "0.weight" not in average.weights


def test_a_skipped_step_is_not_counted():
    model = nn.Linear(2, 1)
    average, optimizer = RunningAverage(model, tail_rate(0)), AdamW(model.parameters())
    optimizer.register_step_post_hook(lambda *_: average.update())
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    for factor in (float("inf"), 1.0):
        scaler.scale(model(torch.ones(1, 2)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert int(average.steps) == 1


class StopError(Exception):
    """Stands in for a crash."""


def train(folder, *more: str) -> list[dict]:
    """Trains the tiny model on the reviews that ship; returns the log without clocks."""
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={folder}/{split}-finetuning-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={folder.parent}/tiny.pt"]
    words = [*inputs, *outs, *names, f"--save_dir={folder}", "--threads=1", "--epochs=2", "--lr=5e-3"]
    words += ["--option", "finetune", "--max_sentence_len=12", "--batch_size=30", "--train_examples=120", *more]
    assert run_llama.main(words) == 0
    lines = map(json.loads, next(folder.glob("*/log.jsonl")).read_text("utf-8").splitlines())
    return [line | CLOCKS for line in lines]


@pytest.mark.parametrize("more", [["--ema", "0.7"], ["--average", "0.6", "--proximal", "5"]])
def test_a_stopped_run_resumes_with_its_averages(tmp_path, monkeypatch, more):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    expected = train(tmp_path / "whole", *more)
    evaluate = trainer.Trainer._evaluate

    def evaluate_once(self, bar):
        if self.progress.epoch == 1:
            raise StopError
        evaluate(self, bar)

    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(trainer.Trainer, "_evaluate", evaluate_once)
        patch.setattr(run_llama.cli, "carry_out", lambda name, prepare, resumable: prepare()() or 0)
        train(tmp_path / "stopped", *more)
    assert train(tmp_path / "stopped", "--resume", *more) == expected
    best, again = (load_plain(next((tmp_path / run).glob("*/best.pt")))["model"] for run in ("whole", "stopped"))
    assert all(torch.equal(best[name], again[name]) for name in best)
    assert load_plain(next((tmp_path / "whole").glob("*/last.pt")))["tensors"]


def test_the_average_is_measured_and_kept(tmp_path):
    """The whole run's mean is the best model, though the last weights of the same run are others."""
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    once = ["--epochs=1", "--evaluate_every=4"]  # all steps
    train(tmp_path / "plain", *once)
    plain = load_plain(next((tmp_path / "plain").glob("*/last.pt")))["model"]
    train(tmp_path / "mean", *once, "--average=1.0")
    state = load_plain(next((tmp_path / "mean").glob("*/last.pt")))
    best = load_plain(next((tmp_path / "mean").glob("*/best.pt")))["model"]
    assert all(torch.equal(plain[name], state["model"][name]) for name in plain)
    assert all(torch.equal(best[name], state["tensors"][f"kept.{name}"]) for name in best)
    assert int(state["tensors"]["kept.steps"]) == 4
    assert not torch.equal(best["classifier_head.weight"], plain["classifier_head.weight"])


def test_an_adapter_holds_the_average(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    train(tmp_path / "lora", "--option=lora", f"--dev_out={tmp_path}/dev-lora-output.txt", "--epochs=1", "--ema=0.9",
          f"--test_out={tmp_path}/test-lora-output.txt")  # fmt: skip
    adapter = load_plain(next((tmp_path / "lora").glob("*/best.pt")))["model"]
    state = load_plain(next((tmp_path / "lora").glob("*/last.pt")))
    averages = {name.removeprefix("kept."): tensor for name, tensor in state["tensors"].items()}
    assert {*adapter, "steps"} == set(averages)
    assert all(torch.equal(tensor, averages[name]) for name, tensor in adapter.items())
    assert not torch.equal(adapter["classifier_head.weight"], state["model"]["classifier_head.weight"])


@pytest.mark.parametrize(
    "more", [["--ema", "0.9", "--average", "0.5"], ["--proximal_momentum", "0.5"], ["--ema", "1.5"]]
)
def test_flags_that_do_not_fit_are_one_line(capsys, more):
    outs = ["--dev_out", "x-dev-finetuning-output.txt", "--test_out", "x-test-finetuning-output.txt"]
    with pytest.raises(SystemExit) as stopped:
        run_llama.main(["--option", "finetune", *outs, *more])
    assert stopped.value.code == 2 and more[0] in capsys.readouterr().err.splitlines()[-1]
