"""Averaged weights are the mean of the steps since the last evaluation, and an evaluation measures that mean."""

from __future__ import annotations

import torch

from tasks.addition.averaging import Averaging
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import sample_problems
from tasks.addition.workload import AdditionWorkload, Problems, measure
from tests.test_addition_fast import models


def test_the_weights_become_the_mean_of_the_steps_since_the_last_time():
    model = torch.nn.Linear(1, 1, bias=False)
    averaging, means = Averaging(model, 0.4), []
    for step in range(1, 11):
        torch.nn.init.constant_(model.weight, step)
        averaging.after_update(step, 10)
        if step % 3 == 0 or step == 10:
            averaging.take_mean()
            means.append(model.weight.item())
    assert means == [3, 5, 8, 10]  # step 3 comes before 0.4 of the run; then 4 to 6, 7 to 9, and 10


def test_an_evaluation_measures_the_mean_and_the_run_goes_on_from_it():
    model, drawn = SideBySide(models("course", seeds=2)), Problems.of(*sample_problems(200, 5))
    workload = AdditionWorkload(model, drawn, drawn, 20, 1, 200, seed=0, average_from=0.0)
    before = [seed.detach().clone() for seed in model.seeds]
    assert workload.after_update is not None
    for change in (0.1, 0.3):
        with torch.no_grad():
            for seed in model.seeds:
                seed += change
        workload.after_update(1, 10)
    found = workload.evaluate(model)
    for seed, start in zip(model.seeds, before, strict=True):
        torch.testing.assert_close(seed.detach(), start + 0.25)  # the mean of 0.1 and 0.4
    assert found["seed_losses"] == [round(loss, 6) for loss in measure(model, drawn)[0]]
