"""Zero-shot with several prompts and domain-conditional PMI, against sums spelled out without padding or batches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from engine.io.checkpoint import read_checkpoint
from llama import Llama, from_checkpoint
from tasks.sentiment.data import read_examples
from tasks.sentiment.prompt import mean_scores, read_prompts
from tests.tiny import ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer

DATA = ROOT / "data"
PROMPTS = "# a comment\nIt was ||| sad, quite happy\n\nIs this {names}? It is\n"


@pytest.fixture
def folder(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    (tmp_path / "two.txt").write_text(PROMPTS, encoding="utf-8")
    (tmp_path / "one.txt").write_text("Is this movie {names}? This movie is\n", encoding="utf-8")
    return tmp_path


def classify(folder, *more: str) -> int:
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("dev", "test")]
    outs = [f"--{split}_out={folder}/{split}-prompting-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={folder}/tiny.pt"]
    words = ["--option", "prompt", *inputs, *outs, *names, f"--save_dir={folder}/runs", "--threads", "1"]
    return run_llama.main([*words, *more])


def predictions(folder) -> list[int]:
    lines = (folder / "dev-prompting-output.txt").read_text("utf-8").splitlines()
    return [int(line.split(" ||| ")[0]) for line in lines]


@torch.no_grad()
def log_prob(model: Llama, tokenizer, text: str, word: str) -> float:
    """log P(word | text), one token after the other, in float64."""
    total, ids = 0.0, tokenizer.encode(text, bos=True, eos=False)
    for token in tokenizer.encode(word, bos=False, eos=False):
        logits = model(torch.tensor([ids]))[0][0, -1].double()
        total += (logits[token] - logits.exp().sum().log()).item()
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("pmi", [False, True])
def test_prompts_are_averaged_and_divided_by_the_domain(folder, pmi, capsys):
    more = ["--pmi"] if pmi else []
    assert classify(folder, "--prompts", f"{folder}/two.txt", "--label_scoring", "sequence", *more) == 0
    shown = capsys.readouterr().out
    model, tokenizer = from_checkpoint(read_checkpoint(folder / "tiny.pt")).eval(), load_tokenizer(TOKENIZER)
    examples = read_examples(DATA / "reviews-dev.txt", 2)
    prompts = [("It was", ("sad", "quite happy")), ("Is this bad or good? It is", ("bad", "good"))]
    totals = np.zeros((12, 2))
    for question, words in prompts:
        domain = [log_prob(model, tokenizer, question, word) if pmi else 0.0 for word in words]
        scores = np.array([
            [log_prob(model, tokenizer, f"{sentence} {question}", word) - base
             for word, base in zip(words, domain, strict=True)] for sentence in examples.sentences[:12]
        ])  # fmt: skip
        totals += [row - np.log(np.exp(row).sum()) for row in scores]  # log of the shares of both labels
    clear = np.abs(totals[:, 0] - totals[:, 1]) > 1e-4  # by more than rounding
    assert clear.sum() >= 10
    assert np.array(predictions(folder)[:12])[clear].tolist() == totals.argmax(axis=1)[clear].tolist()
    assert shown.count("by itself: ") == 2 and "Is this bad or good? It is (bad, good)" in shown


def test_the_tasks_own_question_in_a_file_changes_nothing(folder):
    assert classify(folder) == 0
    expected = (folder / "dev-prompting-output.txt").read_bytes()
    assert classify(folder, "--prompts", f"{folder}/one.txt") == 0
    assert (folder / "dev-prompting-output.txt").read_bytes() == expected
    rows = json.loads(next(folder.glob("runs/*prompts=one*/prompts.json")).read_text("utf-8"))
    result = json.loads(next(folder.glob("runs/*prompts=one*/result.json")).read_text("utf-8"))
    assert rows == [{"question": "Is this movie bad or good? This movie is", "words": ["bad", "good"],
                     "dev_acc": result["dev_acc"]}]  # fmt: skip


@given(st.lists(st.lists(st.floats(-30, 0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_mean_is_of_log_shares(rows):
    expected = np.mean([np.array(row) - np.log(sum(map(math.exp, row))) for row in rows], axis=0)
    assert np.allclose(mean_scores([np.array([row]) for row in rows])[0], expected)


@pytest.mark.parametrize(
    ("content", "told"),
    [("It was ||| sad\n", "line 1: '|||' must be followed by 2"), ("It is\nIt was ||| a, a\n", "line 2"),
     ("It was |||\n", "line 1"), ("# nothing\n", "holds no prompt"), ("a ||| b, c, d\n", "2 different words")],
)  # fmt: skip
def test_a_bad_file_is_one_line(folder, capsys, content, told):
    (folder / "bad.txt").write_text(content, encoding="utf-8")
    assert classify(folder, "--prompts", f"{folder}/bad.txt") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error


def test_two_calibrations_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        classify(folder, "--pmi", "--calibrate")
    assert "exclude each other" in capsys.readouterr().err


def test_the_prompts_that_ship_can_be_read():
    names = {"reviews": ["bad", "good"], "sst5": ["awful", "bad", "average", "good", "excellent"]}
    paths = sorted((ROOT / "recipes" / "prompts").glob("*.txt"))
    assert {path.stem.split("-")[0] for path in paths} == set(names)
    for path in paths:
        assert read_prompts(path, names[path.stem.split("-")[0]])
