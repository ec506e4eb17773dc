"""Testing adders: greedy answers, what counts as right, the breakdown, and the exhaustive test's short cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from addition_lib import CHARS, CharDataset
from config import LlamaConfig
from llama import Llama
from tasks.addition import testing as addition_testing
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import encode_problems, sample_problems
from tasks.addition.testing import (
    answers,
    breakdown,
    carries,
    exhaustive,
    is_right,
    ordered_problems,
    parse_prompt,
)
from tasks.addition.workload import Problems, smallest_margins

CPU = torch.device("cpu")


def adder(seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(vocab_size=13, dim=8, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=20)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def test_answers_are_the_courses_greedy_loop():
    """Against the course's loop, one problem at a time: append the argmax ten times, cut at the first 0."""
    model = adder()
    problems = Problems.of(*sample_problems(25, 0))
    data = CharDataset([], CHARS, 15)
    for text, a, b in zip(answers(model, problems, batch=10), problems.a.tolist(), problems.b.tolist(), strict=True):
        row = torch.cat([torch.zeros(1, dtype=torch.long), data.encode(f"{a}+{b}=")])[None]
        for _ in range(9):
            with torch.no_grad():
                row = torch.cat([row, model(row)[0][:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        new = row[0, 11:].tolist()
        new = new[: new.index(0)] if 0 in new else new
        assert text[: 10 + len(new)] == f"{a}+{b}=" + data.decode(new)


@pytest.mark.parametrize(
    ("text", "right"),
    [("1000+1000=2000", True), ("1000+1000=02000", False), ("1000+1000=20000", False), ("1000+1000=", False),
     ("9999+9999=19998", True), ("9999+9999=19998=", False), ("1000+1000=2001", False), ("1000+1000=2000+", False)],
)  # fmt: skip
def test_right_is_the_sum_and_nothing_else(text, right):
    assert is_right(text) is right


def test_carries_are_those_of_written_addition():
    a, b = np.array([1000, 1234, 1009, 4999, 9999, 5005]), np.array([1000, 4321, 1001, 5001, 9999, 5005])
    assert carries(a, b).tolist() == [0, 0, 1, 4, 4, 2]
    problems = Problems.of(a, b)
    parts = breakdown(problems, [True, True, False, True, False, True])
    assert parts["carries"] == {"0": "2 of 2", "1": "0 of 1", "2": "1 of 1", "4": "1 of 2"}
    assert parts["digits_of_the_answer"] == {"4": "2 of 3", "5": "2 of 3"}


def test_the_margin_is_positive_just_where_every_argmax_is_right():
    """Against the shared model's logits, compared with the targets one by one."""
    model = adder(1)
    a, b = sample_problems(400, 1)
    x, y = encode_problems(a, b)
    with torch.no_grad():
        logits = model(x.long(), targets=y)[0][:, 10:]
        margins = smallest_margins(SideBySide([model]), torch.from_numpy(a), torch.from_numpy(b))
    for row, targets, margin in zip(logits, y[:, 10:].long(), margins, strict=True):
        leads = [row[t, target] - row[t].index_fill(0, target, -torch.inf).max() for t, target in enumerate(targets)
                 if target >= 0]  # fmt: skip
        assert margin.item() == pytest.approx(min(leads).item(), abs=1e-4)


def test_every_ordered_problem_is_asked_once_and_wrong_ones_are_found(monkeypatch):
    asked, wrong = [], {(1000, 1003), (1000, 9999), (1001, 1000), (1001, 1500)}

    def margins(fast, a, b):
        pairs = list(zip(a.tolist(), b.tolist(), strict=True))
        asked.extend(pairs)
        return torch.tensor([-1.0 if pair in wrong else 5.0 for pair in pairs])

    def slips(model, problems):
        return [f"{a}+{b}={a + b + ((a, b) != (1001, 1500))}"
                for a, b in zip(problems.a.tolist(), problems.b.tolist(), strict=True)]  # fmt: skip

    monkeypatch.setattr(addition_testing, "smallest_margins", margins)
    monkeypatch.setattr(addition_testing, "answers", slips)  # the shared model has 1001+1500 right after all
    found = exhaustive(adder(), compile_forward=False, part=range(2 * 9000))
    assert found == ["1000+1003=2004", "1000+9999=11000", "1001+1000=2002"]
    assert set(asked) == {(a, b) for a in (1000, 1001) for b in range(1000, 10000)}
    a, b = ordered_problems(81_000_000 - 2, 81_000_000, CPU)
    assert [pair.tolist() for pair in (a[:3], b[:3])] == [[9999, 9999, 9999], [9998, 9999, 9999]]


def test_exhaustively_wrong_is_greedily_wrong():
    model, part = adder(2), range(5000, 5600)
    problems = Problems.of(np.full(600, 1000), np.arange(6000, 6600))
    greedy = {text for text in answers(model, problems) if not is_right(text)}
    assert set(exhaustive(model, compile_forward=False, part=part)) == greedy and len(greedy) > 500


def test_questions_are_read_strictly():
    assert parse_prompt("1234+5678=") == parse_prompt(" 1234 + 5678") == (1234, 5678)
    for text in ("0234+5678=", "12345+5678=", "1234+5678=6912", "a+b=", ""):
        with pytest.raises(ValueError, match="not a question"):
            parse_prompt(text)
