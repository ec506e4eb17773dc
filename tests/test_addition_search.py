"""The seed search: its rounds, resume, what is refused."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from engine.io.checkpoint import load_plain, read_checkpoint
from engine.train.run_log import read
from tasks.addition.problems import pair_number, read_problems
from tasks.addition.workload import AdditionWorkload
from tests.test_addition_run import interrupted, training_in

TRIAL = ["--trial_seeds", "3", "--trial_examples", "200", "--trial_lr", "3e-2", "--trial_batch_size", "50"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    return training_in(tmp_path, monkeypatch)


def test_a_trial_trains_as_a_run_of_its_own_and_its_best_seed_goes_on(train, tmp_path):
    """The trial is to the bit what the same flags give alone; the kept seed starts from its weights."""
    assert train(*TRIAL, "--save_dir", "run", "--lr", "0") == 0
    alone = ["--seeds", "3", "--examples", "200", "--epochs", "1", "--lr", "3e-2", "--batch_size", "50"]
    assert train(*alone, "--save_dir", "alone", "--train_file", "alone_train.txt", "--val_file", "alone_dev.txt") == 0
    data = tmp_path / "data"
    assert (data / "addition_dev.txt").read_bytes() == (tmp_path / "alone_dev.txt").read_bytes()
    numbers = [set(pair_number(*read_problems(data / f"addition_{name}.txt")).tolist()) for name in ("train", "dev")]
    assert [len(pairs) for pairs in numbers] == [300, 50] and not numbers[0] & numbers[1]
    trial, oracle = (load_plain(tmp_path / name / "last.pt")["model"] for name in ("run/trial", "alone"))
    assert all(torch.equal(trial[name], oracle[name]) for name in oracle)
    measured = [record for record in read(tmp_path / "alone" / "log.jsonl") if "score" in record][-1]
    best = 1337 + min(range(3), key=measured["seed_losses"].__getitem__)
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert described["result"]["trial"]["went_on"] == [best] and described["result"]["best_seed"] == best
    assert described["capacity_used"] == 6 * 164 * (600 + 200)
    kept, first = (read_checkpoint(tmp_path / name).state_dict for name in
                   ("run/best_model.pth", f"alone/seed_{best}.pth"))  # fmt: skip
    assert all(torch.equal(kept[name], first[name]) for name in first)  # at a rate of zero nothing moves


def test_a_search_of_two_rounds_keeps_fewer_seeds_each_time(train, tmp_path):
    """At a rate of zero nothing moves: the run ends with the weights of the first round's best seed."""
    assert train(*TRIAL, "--trial_rounds", "2:150@0", "--lr", "0", "--optimizer", "muon") == 0
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    second = described["result"]["trial"]
    assert len(second["before"]["seed_accuracies"]) == 3 and len(second["seed_accuracies"]) == 2
    assert set(second["went_on"]) < set(second["before"]["went_on"]) < {1337, 1338, 1339}
    assert described["capacity_used"] == 6 * 164 * (600 + 200 + 150) and described["optimizer"] == "muon"
    first = load_plain(tmp_path / "run" / "trial" / "last.pt")["model"]
    kept = load_plain(tmp_path / "run" / "last.pt")["model"]["seeds.0"]
    assert torch.equal(kept, first[f"seeds.{second['went_on'][0] - 1337}"])


def test_the_worst_group_chooses_where_asked(train, tmp_path, monkeypatch):
    """The seed with the lowest loss on its worst group goes on, whatever the dev losses say."""
    for order in ([0.3, 0.1, 0.2], [0.1, 0.3, 0.2]):
        monkeypatch.setattr(AdditionWorkload, "worst_group_losses", lambda self, model, order=order: order)
        folder = f"run{order[0]}"
        assert train(*TRIAL, "--choose_by", "worst_group", "--save_dir", folder, "--overwrite") == 0
        described = json.loads((tmp_path / folder / "training_config.json").read_text())
        assert described["result"]["trial"]["went_on"] == [1337 + min(range(3), key=order.__getitem__)]


def test_a_stopped_trial_resumes_to_the_same_weights(train, tmp_path):
    flags = [*TRIAL, "--seeds", "2", "--save_every", "1", "--max_grad_norm", "1"]
    assert train(*flags, "--save_dir", "whole") == 0
    for follows, step in ((False, 2), (True, 3)):  # in the trial, then in what follows
        with interrupted(partial(_is_at, follows, step)):
            assert train(*flags, "--resume") == 130
    assert train(*flags, "--resume") == 0
    now, whole = (load_plain(tmp_path / name / "last.pt")["model"] for name in ("run", "whole"))
    assert all(torch.equal(now[name], whole[name]) for name in whole)
    names = [sorted(path.name for path in (tmp_path / name).glob("seed_*.pth")) for name in ("run", "whole")]
    assert names[0] == names[1] and len(names[0]) == 2


def _is_at(follows: bool, step: int, plan) -> bool:
    return (bool(plan.trial), plan.trainer.progress.step) == (follows, step)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--trial_examples", "200"], "--trial_examples belongs to a seed search"),
        (["--trial_lr", "1e-2"], "--trial_lr belongs to a seed search"),
        (["--trial_batch_size", "50"], "--trial_batch_size belongs to a seed search"),
        (["--trial_seeds", "3"], "needs --trial_examples"),
        ([*TRIAL, "--seeds", "3"], "more seeds than --seeds continues"),
        ([*TRIAL, "--trial_rounds", "3:100"], "every round more seeds than the next"),
        ([*TRIAL, "--trial_rounds", "2"], "--trial_rounds takes SEEDS:EXAMPLES"),
        ([*TRIAL, "--trial_rounds", "2:100@fast"], "--trial_rounds takes SEEDS:EXAMPLES@RATE"),
        (["--trial_rounds", "2:100"], "--trial_rounds belongs to a seed search"),
        (["--optimizer", "muon", "--plain"], "--plain trains with AdamW"),
        ([*TRIAL, "--capacity", str(6 * 164 * 799)], "allows 599"),
    ],
)
def test_a_bad_trial_is_one_line_before_any_work(train, tmp_path, capsys, flags, complaint):
    assert train(*flags) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and complaint in captured.err
    assert not list(tmp_path.rglob("last.pt"))
