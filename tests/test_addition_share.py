"""The share of perfect seeds and its interval, against the interval's definition."""

from __future__ import annotations

import json
from statistics import NormalDist

import pytest

from bench import addition_share


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
