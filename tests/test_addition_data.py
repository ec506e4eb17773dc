"""Problems: the numbering is a bijection, draws are distinct and seeded, files are read strictly; the course's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import addition_data_generation
from addition_data_generation import generate_addition_data, generate_dataset
from addition_lib import CHARS, CharDataset, create_datasets
from tasks.addition import problems as addition_problems
from tasks.addition.problems import (
    HIGH,
    LOW,
    PAIRS,
    encode_problems,
    pair_number,
    pair_of,
    problem_text,
    read_problems,
    sample_problems,
)
from tests.tiny import ROOT


def test_pair_numbers_count_the_unordered_pairs():
    edges = np.array([0, 1, 2, 3, PAIRS - 2, PAIRS - 1])
    a, b = pair_of(edges)
    assert list(zip(a.tolist(), b.tolist(), strict=True)) == [
        (1000, 1000), (1001, 1000), (1001, 1001), (1002, 1000), (9999, 9998), (9999, 9999)
    ]  # fmt: skip
    many = np.arange(0, PAIRS, 41)
    a, b = pair_of(many)
    assert a.min() >= LOW and b.min() == LOW and a.max() == HIGH and (a >= b).all()
    assert np.array_equal(pair_number(b, a), many)  # the order of the operands does not matter


def test_a_draw_is_distinct_seeded_and_spares_the_excluded():
    a, b = sample_problems(50_000, seed=3)
    numbers = pair_number(a, b)
    assert len(np.unique(numbers)) == 50_000
    assert abs((a > b).mean() - 0.5) < 0.02 and abs(a.mean() - 5499.5) < 60
    again = sample_problems(50_000, seed=3)
    assert np.array_equal(a, again[0]) and np.array_equal(b, again[1])
    other = pair_number(*sample_problems(2_000_000, seed=3, excluded=numbers))
    assert len(np.unique(other)) == 2_000_000 and not np.isin(other, numbers).any()


def test_all_problems_but_the_excluded_can_be_drawn_and_not_one_more(monkeypatch):
    with monkeypatch.context() as few:
        few.setattr(addition_problems, "PAIRS", 5000)  # the first 5000 pairs, in place of 40 million
        excluded = np.setdiff1d(np.arange(5000), [0, 7, 99, 4999])
        assert sorted(pair_number(*sample_problems(4, 0, excluded)).tolist()) == [0, 7, 99, 4999]
        with pytest.raises(ValueError, match="5 problems were asked for, but only 4 different ones exist once"):
            sample_problems(5, 0, excluded)
    with pytest.raises(ValueError, match="only 40,504,500 different ones exist"):
        generate_addition_data(40_504_501)


def test_text_is_what_python_writes():
    a, b = np.array([1000, 4999, 5000, 9999]), np.array([1000, 5000, 5000, 9999])
    assert problem_text(a, b) == b"1000+1000=2000\n4999+5000=9999\n5000+5000=10000\n9999+9999=19998"
    for line in generate_addition_data(200, seed=1):
        first, second = line.split("=")[0].split("+")
        assert line == f"{first}+{second}={int(first) + int(second)}"
    assert generate_addition_data(0) == []


def test_a_data_set_is_written_and_read_back(tmp_path, capsys):
    generate_dataset(500, "train.txt", save_dir=str(tmp_path / "new"), seed=5)
    path = tmp_path / "new" / "train.txt"
    assert path.read_text("ascii").split("\n") == generate_addition_data(500, seed=5)
    assert "500 data points saved" in capsys.readouterr().out
    a, b = read_problems(path)
    path.write_text(path.read_text("ascii").replace("\n", " \r\n\n") + "\n", encoding="ascii")  # read line by line
    again = read_problems(path)
    assert np.array_equal(a, again[0]) and np.array_equal(b, again[1])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1234+5678", "not a problem of the form"),
        ("1234-5678=6912", "not a problem of the form"),
        ("12a4+5678=6912", "not a problem of the form"),
        ("123+5678=5801", "operands must be from 1000 to 9999"),
        ("0123+5678=5801", "operands must be from 1000 to 9999"),
        ("12345+5678=18023", "operands must be from 1000 to 9999"),
        ("1234+5678=6913", "the sum is wrong"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "bad.txt"
    path.write_text(f"1000+1000=2000\n{line}\n1000+1001=2001", encoding="ascii")
    with pytest.raises(ValueError, match=rf"bad.txt, line 2: {complaint}"):
        read_problems(path)


def test_an_empty_or_absent_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n", encoding="ascii")
    with pytest.raises(ValueError, match="holds no problem"):
        read_problems(tmp_path / "empty.txt")
    with pytest.raises(OSError, match=r"none\.txt"):
        read_problems(tmp_path / "none.txt")


def test_rows_are_the_courses():
    """Written out by hand from the course's definition: 0 and the text; the text, one 0, then −1."""
    data = CharDataset(["1000+2345=3345", "9999+1000=10999"], CHARS, 15)
    x, y = data[0]
    assert x.tolist() == [0, 3, 2, 2, 2, 1, 4, 5, 6, 7, 12, 5, 5, 6, 7, 0]
    assert y.tolist() == [3, 2, 2, 2, 1, 4, 5, 6, 7, 12, 5, 5, 6, 7, 0, -1]
    x, y = data[1]
    assert x.tolist() == [0, 11, 11, 11, 11, 1, 3, 2, 2, 2, 12, 3, 2, 11, 11, 11]
    assert y.tolist() == [11, 11, 11, 11, 1, 3, 2, 2, 2, 12, 3, 2, 11, 11, 11, 0]
    assert (data.get_vocab_size(), data.get_output_length(), len(data)) == (13, 16, 2)
    assert data.decode(data.encode("1000+2345=3345")) == "1000+2345=3345" and data.contains("1000+2345=3345")


def test_rows_made_at_once_are_those_made_one_by_one():
    data = create_datasets(ROOT / "data" / "addition_test.txt")
    assert len(data) == 10_000
    x, y = encode_problems(*read_problems(ROOT / "data" / "addition_test.txt"))
    rows = [data[index] for index in range(0, 10_000, 25)]
    assert torch.equal(x[::25].long(), torch.stack([row[0] for row in rows]))
    assert torch.equal(y[::25].long(), torch.stack([row[1] for row in rows]))


def test_the_command_writes_a_file_or_says_why_not(tmp_path, capsys):
    first, second = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert addition_data_generation.main(["--n", "20", "--out", first]) == 0
    assert addition_data_generation.main(["--n", "20", "--out", second, "--exclude", first]) == 0
    assert not set(Path(first).read_text("ascii").split()) & set(Path(second).read_text("ascii").split())
    capsys.readouterr()
    assert addition_data_generation.main(["--n", "40504481", "--out", second, "--exclude", first]) == 2
    assert capsys.readouterr().err.count("\n") == 1
