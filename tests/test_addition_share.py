"""The share of perfect seeds and its interval, against the interval's definition."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tomllib
from statistics import NormalDist

import pytest
import torch

from addition_run import PROGRAM
from bench import addition_search, addition_share
from llama import Llama
from tasks import cli
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import sample_problems
from tasks.addition.stages import search_rounds
from tasks.addition.testing import load_adder
from tasks.addition.workload import Problems
from tests.tiny import ROOT


@pytest.mark.parametrize(("successes", "runs"), [(0, 16), (3, 16), (8, 16), (16, 16), (1, 2)])
def test_the_interval_is_wilsons(successes, runs):
    """Its ends are the shares p from which successes / runs lies 1.96 standard errors of p away."""
    for bound in addition_share.wilson(successes, runs):
        error = (bound * (1 - bound) / runs) ** 0.5
        assert abs(successes / runs - bound) == pytest.approx(NormalDist().inv_cdf(0.975) * error, abs=1e-6)


def test_finished_runs_are_read_and_counted(tmp_path):
    results = []
    for seed, accuracy in ((1000, 1.0), (2000, 0.75)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        result = {"accuracy": accuracy, "minutes": 2.0, "trial": {"minutes": 1.5}}
        (folder / "training_config.json").write_text(json.dumps({"result": result}))
        results.append(addition_share.result_of(tmp_path / "any.toml", seed, folder, []))
    found = addition_share.summary(results)
    assert (found["perfect"], found["share"], results[0]["minutes"]) == (1, 0.5, 3.5)


def test_the_search_is_the_recipes():
    """Its flags ask for the run that the recipe's first stage is, but for the seeds and how often it is measured."""
    recipe = tomllib.loads((ROOT / addition_search.RECIPE).read_text("utf-8"))["flags"]
    flags = addition_search.search_flags(recipe) | addition_search.SETTINGS["by carry, in 0.5, feed-forward of 4"]
    own = [f"--{name}={value}" for name, value in flags.items()]
    alone = cli.parse(PROGRAM, ["train", *own, "--no_data_files"])[1]
    whole = cli.parse(PROGRAM, ["train", "--recipe", str(ROOT / addition_search.RECIPE)])[1]
    shape = dataclasses.replace(whole, dim=alone.dim, hidden_dim=alone.hidden_dim)
    stage, *_ = search_rounds(shape)
    may_differ = {"seed", "seeds", "evaluate_every", "save_every", "save_dir", "choose_by"}
    may_differ |= {"trial_rounds", "given", "recipe"}
    assert {name for name in vars(stage) if vars(stage)[name] != vars(alone)[name]} <= may_differ


def test_seeds_that_carry_through_two_nines_are_counted():
    """The best adder does, an untrained model of its shape does not."""
    best = load_adder(ROOT / "addition_models" / "best_model" / "best_model.pth", torch.device("cpu"))
    model = SideBySide([best, Llama(best.config)])
    found = addition_search.measured(model, Problems.of(*sample_problems(5000, 1)))
    assert (found["carry_through_two_nines"], found["seeds"], found["best"]) == (1, 2, 1.0)
    assert found["through_two_nines"][0] == 1.0 > 0.5 > found["through_two_nines"][1]
    assert found["interval_95"] == [round(bound, 3) for bound in addition_share.wilson(1, 2)]


def test_the_table_of_seed_searches_is_what_was_measured():
    measured = json.loads((ROOT / "docs" / "addition_search.json").read_text("utf-8"))
    page = (ROOT / "docs" / "addition.md").read_text("utf-8")
    assert list(measured) == list(addition_search.SETTINGS)
    for name, own in measured.items():
        nines, (low, high) = statistics.median(own["through_two_nines"]), own["interval_95"]
        medians = f"{own['median']:.3f} | {nines:.2f} | {own['best']:.3f}"
        good = f"{own['carry_through_two_nines']} | {low:.2f} to {high:.2f}"
        assert f"| {name} | {own['parameters']:,} | {medians} | {good} |" in page
