"""The course's three checks pass from any folder, fail on a wrong implementation, and their values are honest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

import llama
import optimizer
import optimizer_test
import rope_test
import sanity_check
from engine.io import golden_check
from tests.tiny import ROOT

SENTENCES = {
    "sanity_check.py": "Your Llama implementation is correct!",
    "rope_test.py": "Rotary embedding test passed!",
    "optimizer_test.py": "Optimizer test passed!",
}


@pytest.mark.parametrize("script", SENTENCES)
def test_checks_pass_from_any_folder(script, tmp_path):
    command = [sys.executable, str(ROOT / script)]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == SENTENCES[script]


def test_a_missing_bias_is_noticed(monkeypatch):
    monkeypatch.setattr(llama.LayerNorm, "forward", lambda self, x: self._norm(x) * self.weight)
    with pytest.raises(ValueError, match="the logits differ by up to"):
        sanity_check.ours()


def test_half_split_rotation_is_noticed(monkeypatch):
    def half_split(query, key, head_dim, max_seq_len, theta):
        halves = [torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1) for x in (query, key)]
        return halves[0], halves[1]

    monkeypatch.setattr(rope_test, "apply_rotary_emb", half_split)
    with pytest.raises(ValueError, match="turned query"):
        rope_test.ours()


@pytest.mark.parametrize("wrong", [{"weight_decay": 0.1}, {"correct_bias": False}, {"max_grad_norm": None}])
def test_a_wrong_adamw_is_noticed(monkeypatch, wrong):
    class Wrong(optimizer.AdamW):
        def __init__(self, params, **given):
            super().__init__(params, **(given | wrong))

    monkeypatch.setattr(optimizer_test, "AdamW", Wrong)
    with pytest.raises(ValueError, match="the weights differ"):
        optimizer_test.ours()


def test_a_failed_check_ends_in_code_1(capsys):
    def failing():
        golden_check.agree("the things", torch.zeros(2), torch.ones(2))

    assert golden_check.run_check("Right!", failing, lambda: None, []) == 1
    shown = capsys.readouterr()
    assert "Right!" not in shown.out and "the things differ by up to 1.00e+00" in shown.err


@pytest.mark.parametrize("name", ["sanity", "rope", "optimizer"])
def test_stored_values_are_what_the_script_makes(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "golden")
    spec = importlib.util.spec_from_file_location("make_golden", ROOT / "tests" / "golden" / "make_golden.py")
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    stored, made = golden_check.load(name), getattr(make_golden, name)()
    assert stored.keys() == made.keys()
    for key, array in made.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, stored[key], rtol=1e-12, atol=1e-14, err_msg=key)
        else:
            np.testing.assert_array_equal(array, stored[key], err_msg=key)
