"""Model soups: a soup of one is its model, the uniform soup is the mean, and the greedy one follows recipe 1."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from tasks.methods.soup import greedy, read_members
from tasks.sentiment.checkpoint import load_classifier
from tests.tiny import ROOT, write_tiny_checkpoint

DATA = ROOT / "data"


def train(folder, *more: str) -> None:
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={folder}/{split}-finetuning-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={folder}/tiny.pt"]
    words = ["--option", "finetune", *inputs, *outs, *names, "--threads", "1", "--epochs", "1", "--lr", "5e-3"]
    assert run_llama.main([*words, "--max_sentence_len", "12", *more]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soup")
    write_tiny_checkpoint(folder / "tiny.pt")
    train(folder, "--seeds", "1", "2", "3", f"--save_dir={folder}/runs")
    train(folder, "--pooling", "mean", f"--save_dir={folder}/other")
    return folder


def soup(folder, *checkpoints: str, out: str = "soup") -> int:
    words = ["--option", "soup", "--checkpoint", *checkpoints, "--dev", f"{DATA}/reviews-dev.txt", "--threads", "1"]
    return run_llama.main([*words, "--shifted", f"{DATA}/reviews-test.txt", "--save_dir", str(folder / out)])


def weights(path) -> dict[str, torch.Tensor]:
    return load_classifier(path)[0].state_dict()


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first) and set(first) == set(second)


def test_a_soup_of_one_is_its_model(folder):
    path = next(folder.glob("runs/*-2-*/best.pt"))
    assert soup(folder, str(path), out="one") == 0
    assert same(weights(folder / "one" / "uniform.pt"), weights(path))
    assert same(weights(folder / "one" / "greedy.pt"), weights(path))


def test_the_soups_are_means_and_their_figures_those_of_predict(folder, capsys):
    paths = sorted(map(str, folder.glob("runs/*/best.pt")))
    assert soup(folder, *paths) == 0 and len(paths) == 3
    members = [weights(path) for path in paths]
    for name, mean in weights(folder / "soup" / "uniform.pt").items():
        expected = torch.stack([member[name].double() for member in members]).mean(dim=0)
        assert torch.allclose(mean.double(), expected, rtol=1e-6, atol=1e-8), name
    rows = json.loads((folder / "soup" / "soup.json").read_text("utf-8"))["rows"]
    assert [row["model"] for row in rows[:3]] == paths and [row["soup"] for row in rows[3:]] == ["uniform", "greedy"]
    capsys.readouterr()
    for row in rows:
        words = ["--option", "predict", "--checkpoint", row["model"], "--threads", "1", "--json"]
        assert run_llama.main([*words, "--input", f"{DATA}/reviews-dev.txt"]) == 0
        summary = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
        assert summary["accuracy"] == row["accuracy"]["dev"]
    assert rows[4]["accuracy"]["dev"] >= max(row["accuracy"]["dev"] for row in rows[:3])


@given(st.integers(1, 5), st.randoms(use_true_random=False))
def test_greedy_follows_the_recipe(count, random):
    soups = [frozenset(index for index in range(count) if bits[index]) for bits in product((0, 1), repeat=count)]
    accuracy = {soup: random.randint(0, 4) for soup in soups}
    dev = [accuracy[frozenset([index])] for index in range(count)]
    kept = greedy(dev, lambda some: accuracy[frozenset(some)])
    expected: list[int] = []  # recipe 1: sorted by validation accuracy, a member stays if the mean is no worse with it
    for index in sorted(range(count), key=lambda index: dev[index], reverse=True):
        if not expected or accuracy[frozenset([*expected, index])] >= accuracy[frozenset(expected)]:
            expected.append(index)
    assert kept == expected and accuracy[frozenset(kept)] >= max(dev)


def test_other_classifiers_are_refused(folder, capsys):
    paths = [str(next(folder.glob("runs/*/best.pt"))), str(next(folder.glob("other/*/best.pt")))]
    assert soup(folder, *paths) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be averaged: their pooling differs" in error


def test_members_keep_their_weights(folder):
    paths = sorted(folder.glob("runs/*/best.pt"))
    members = read_members(paths)
    members.mean([1, 2])
    assert all(same(members.states[index], weights(path)) for index, path in enumerate(paths))
