"""Hard problems: where they are looked for, that they are trained on, and that mistakes among them count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.addition.batched_model import SideBySide, answer_targets, problem_tokens
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import build_trainer
from tasks.addition.problems import sample_problems
from tasks.addition.testing import load_adder
from tasks.addition.workload import AdditionWorkload, Problems, Shares, answer_logits, travelling
from tests.test_addition_fast import models
from tests.tiny import ROOT


def test_hard_problems_are_those_of_the_smallest_margins(monkeypatch):
    """Against a look at every problem one by one; half of the examples come from them, as they are when read."""
    monkeypatch.setattr("tasks.addition.hard.FIRST_LOOK", 1024)
    monkeypatch.setattr("tasks.addition.hard.POOL", 64)
    fast, drawn = SideBySide(models("course", seeds=1)), Problems.of(*sample_problems(3000, 5))
    workload = AdditionWorkload(fast, drawn, drawn, 16, 1, len(drawn), seed=0, shares=Shares(hard=0.5))
    batches, before = workload.epoch(0), workload.hard.pool.clone()
    assert set(batches.order[batches.order < 0].tolist()) <= set(range(-64, 0))
    assert (batches.order < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    workload.evaluate(fast)
    drawn_now = torch.randint(3000, (1024,), generator=torch.Generator().manual_seed(0))
    drawn_now = torch.tensor(sorted(set(drawn_now.tolist() + before.tolist())))
    margins = []
    for place in drawn_now.tolist():
        a, b = drawn.a[place : place + 1].long(), drawn.b[place : place + 1].long()
        logits, tokens = answer_logits(fast, a, b)[0, :, :, 0].detach(), problem_tokens(a, b)
        leads = []
        for at in range(6 if int(a + b) >= 10000 else 5):
            target = int(answer_targets(tokens)[at, 0])
            others = torch.cat([logits[:target, at], logits[target + 1 :, at]])
            leads.append(float(logits[target, at] - others.max()))
        margins.append(min(leads))
    smallest = sorted(range(len(drawn_now)), key=margins.__getitem__)[:64]
    assert sorted(workload.hard.pool.tolist()) == sorted(drawn_now[smallest].tolist())
    assert not torch.equal(workload.hard.pool, before) and int(workload.tensors["looks"]) == 1
    read = torch.cat(list(batches))
    from_hard = batches.order < 0
    assert torch.equal(read[~from_hard], batches.order[~from_hard].long())
    assert torch.equal(read[from_hard], workload.hard.pool[-1 - batches.order[from_hard].long()])


def test_half_of_a_look_for_hard_problems_is_at_long_carries(monkeypatch):
    """Of 60,000 problems 2,400 are looked at, and so nearly all of the longest chains, a few dozen."""
    monkeypatch.setattr("tasks.addition.hard.FIRST_LOOK", 2400)
    monkeypatch.setattr("tasks.addition.hard.POOL", 16)
    fast, drawn, looked = SideBySide(models("course", seeds=1)), Problems.of(*sample_problems(60_000, 5)), []
    shares = Shares(hard=0.5, nines=0.5, nines_by="carry")
    workload = AdditionWorkload(fast, drawn, drawn, 16, 1, len(drawn), seed=0, shares=shares)
    workload.hard.look(lambda a, b: looked.append(Problems.of(a.numpy(), b.numpy())) or torch.zeros(len(a)))
    seen = torch.from_numpy(np.isin(drawn.numbers(), np.concatenate([part.numbers() for part in looked])))
    rare = torch.cat(travelling(drawn, "carry")[4:]).long()
    assert len(rare) < 100 and seen[rare].float().mean() > 0.9
    assert 1200 < int(seen.sum()) < 2420


def test_a_mistake_among_the_problems_looked_at_counts_before_the_loss(monkeypatch):
    """A model that is right on dev is not the best while it errs on one of the training problems looked at."""
    monkeypatch.setattr("tasks.addition.hard.POOL", 16)
    best = load_adder(ROOT / "addition_models" / "best_model" / "best_model.pth", torch.device("cpu"))
    drawn, leads = Problems.of(*sample_problems(300, 5)), torch.ones(2**20)
    workload = AdditionWorkload(SideBySide([best]), drawn, drawn, 16, 1, 300, seed=0, shares=Shares(hard=0.5))
    workload.margins_of = lambda model, a, b: leads[: len(a)]
    right, wrong = workload.evaluate(SideBySide([best])), []
    for mistakes in (2, 0, 1):
        leads[:], leads[:mistakes] = 1, -1
        wrong.append(workload.evaluate(SideBySide([best])))
    assert [found["wrong_looked_at"] for found in (right, *wrong)] == [0, 2, 0, 1]
    assert [found["looked_at"] / 2**20 for found in (right, *wrong)] == [1, 2, 2, 4]  # doubled twice at most
    rates = [1 / 2**20, 3 / 2**21, 1 / 2**21, 2 / 2**22]
    assert [found["score"] for found in (right, *wrong)] == pytest.approx([-rate for rate in rates], rel=1e-3)
    assert wrong[2]["score"] == wrong[1]["score"] > right["score"] > wrong[0]["score"]


def test_a_model_that_falls_gets_its_best_weights_back_without_momentum(monkeypatch, tmp_path):
    """It falls if it errs on over ten times as many problems as its best weights did, and as one in ten thousand."""
    monkeypatch.setattr("tasks.addition.hard.POOL", 16)
    model = SideBySide(models("course", seeds=1))
    drawn, leads = Problems.of(*sample_problems(3000, 5)), torch.ones(2**20)
    workload = AdditionWorkload(model, drawn, drawn, 16, 1, 300, seed=0, shares=Shares(hard=0.5))
    workload.margins_of = lambda model, a, b: leads[: len(a)]
    settings = AdderTraining(optimizer="muon", batch_size=16, save_dir=str(tmp_path))
    optimizer = build_trainer(model, workload, settings, torch.device("cpu"), {}).optimizer
    (weights,), found = model.seeds, []
    for mistakes in (30, 20, 20, 1257, 1258):  # of 2**20: (1257 + 1) / 2**20 < 10 · (21 / 2**20 + 1e-4)
        leads[:], leads[:mistakes] = 1, -1
        weights.grad = torch.ones_like(weights)
        optimizer.step()  # other weights, and moments
        before = weights.detach().clone()
        found.append((mistakes, before, workload.evaluate(model)))
    assert [measured.get("returned", False) for *_, measured in found] == [False] * 4 + [True]
    assert torch.equal(weights, found[2][1]) and not torch.equal(weights, found[4][1])
    state = optimizer.state[weights]
    assert not state["momentum"].any() and not state["exp_avg"].any() and state["exp_avg_sq"].all()


def test_the_weights_a_run_starts_from_can_be_the_best(monkeypatch):
    monkeypatch.setattr("tasks.addition.hard.POOL", 16)
    model = SideBySide([load_adder(ROOT / "addition_models" / "best_model" / "best_model.pth", torch.device("cpu"))])
    drawn = Problems.of(*sample_problems(3000, 5))
    workload = AdditionWorkload(model, drawn, drawn, 16, 1, 300, seed=0, shares=Shares(hard=0.5))
    start = model.seeds[0].detach().clone()
    workload.look_first(model)
    with torch.no_grad():
        model.seeds[0].mul_(0.5)
    assert workload.evaluate(model)["returned"] and torch.equal(model.seeds[0], start)
