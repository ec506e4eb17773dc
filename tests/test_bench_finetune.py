"""The benchmark of fine-tuning: the loops it compares are the same model, and it says when each reached an accuracy."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from bench import finetune
from tests.tiny import ROOT, TOKENIZER, write_tiny_checkpoint

ATTENTIONS = [(heads, masked) for heads in (2, 4) for masked in (False, True)]


@pytest.mark.parametrize(("kv_heads", "masked"), ATTENTIONS)
def test_the_courses_attention_is_the_attention(kv_heads, masked):
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 5, 8, generator=draw) for heads in (4, kv_heads, kv_heads))
    mask = None
    if masked:  # one position of each row asks
        query, mask = query[:, :, :1], (torch.arange(5) < torch.tensor([[5], [2], [4]]))[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    torch.testing.assert_close(finetune._explicit_attention(query, key, value, mask), expected)


def run(folder, monkeypatch, capsys, *more: str) -> str:
    write_tiny_checkpoint(folder / "tiny.pt")  # four query heads share two keys
    data, stem = ROOT / "data", "reviews"
    flags = [f"--train={data}/{stem}-train.txt", f"--dev={data}/{stem}-dev.txt", f"--tokenizer={TOKENIZER}"]
    flags += [f"--label-names={data}/{stem}-label-mapping.json", f"--model={folder}/tiny.pt", "--batch_size=40"]
    monkeypatch.setattr(sys, "argv", ["finetune", *flags, "--threads=1", "--lr=5e-3", *more])
    finetune.main()
    return capsys.readouterr().out


def test_it_says_when_each_loop_reached_an_accuracy(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    shown = run(tmp_path, monkeypatch, capsys, "--reach", "0.4", "1.1", "--epochs=1", "--loops", "float32", "c", "tr")
    names = "this project, float32", "the course's loop", "transformers"
    for name in names:  # the first is reached, the second never
        assert re.search(rf"^\| {name} \| \d+ \| – \| 0\.\d{{3}} \| \d+\.\d \|$", shown, re.M), shown


def test_it_compares_the_speed_of_the_loops_it_is_told(tmp_path, monkeypatch, capsys):
    shown = run(tmp_path, monkeypatch, capsys, "--rounds=1", "--loops", "float32", "course")
    assert "| this project, float32 | " in shown and "| the course's loop | " in shown and "transformers" not in shown
