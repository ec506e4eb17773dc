"""Tables of sentences: columns, labels, headers, left-over escapes, and every way of being wrong in one line."""

from __future__ import annotations

import csv
import io
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sentiment.data import Examples
from tasks.sentiment.data_sets import DATA_SETS, clean, parse_table, read_data_set, split_off, without
from tasks.sentiment.flags import TASKS

NEWS = 'class,title,description\n"3","Fund #39;s","He said ""no"", twice\\and left."\n"1","War","Peace soon"\n'
CELLS = st.text(string.ascii_letters + ' .,"\u2028\u0085', min_size=1).filter(lambda text: text.strip(" \u2028\u0085"))


def table(tmp_path, text: str, task: str = "sst2", name: str = "x.tsv") -> Examples:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return read_data_set(tmp_path / name, task, DATA_SETS[task].names or ("bad", "good"))


def test_every_task_has_a_data_set():
    assert tuple(DATA_SETS) == TASKS


@pytest.mark.parametrize(
    "text",
    [
        "label\tsentence\n0\tdull\n1\ta joy\n", "\ufeff0\tdull\r\n1\ta joy", "sentence\tlabel\ndull\t0\na joy\t1\n",
        "0\tdull\r1\ta joy\r", "label\tsentence\n\n0\tdull\n\n1\ta  joy\n",
    ],
)  # fmt: skip
def test_either_column_may_hold_the_label(tmp_path, text):
    examples = table(tmp_path, text)
    assert (examples.labels, examples.sentences) == ([0, 1], ["dull", "a joy"])


def test_news_has_titles_and_descriptions(tmp_path):
    texts = table(tmp_path, NEWS, "agnews", "x.csv")
    assert (texts.labels, texts.sentences) == ([2, 0], ['He said "no", twice and left.', "Peace soon"])
    titles = table(tmp_path, NEWS, "agnews_titles", "x.csv")
    assert (titles.labels, titles.sentences) == ([2, 0], ["Fund's", "War"])
    named = table(tmp_path, "a rocket\tSci/Tech\na match\tSports\n", "agnews")
    assert (named.labels, named.sentences) == ([3, 1], ["a rocket", "a match"])


@given(st.lists(st.tuples(st.sampled_from("12"), CELLS, CELLS), min_size=1, max_size=8))
def test_what_csv_wrote_is_read_back(rows):
    target = io.StringIO()
    csv.writer(target, quoting=csv.QUOTE_ALL).writerows(rows)
    examples = parse_table(target.getvalue(), Path("x.csv"), DATA_SETS["agnews"], 4)
    assert examples.labels == [int(label) - 1 for label, _, _ in rows]
    assert examples.sentences == [clean(text) for _, _, text in rows]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no example"), ("label\tsentence\n", "no example"), ("0\tdull\n7\tx\n", "line 2: '7' is not a label"),
        ("0\tdull\n1\n", "line 2: 1 columns, not 2"), ("0\tdull\n1\t \n", "line 2: the sentence is empty"),
        ("0\n1\n", "1 columns"), (f"0\tdull\n{'9' * 5000}\tx\n", "is not a label"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_an_open_quote_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.csv, line 2"):
        table(tmp_path, '"1","a","b"\n"1","a","b\n', "agnews", "x.csv")


def test_overlap_is_judged_by_letters(tmp_path):
    train = table(tmp_path, "0\tIt 's dull .\n1\ta joy\n")
    held_out = table(tmp_path, "1\tIt's dull\n")
    kept, dropped = without(train, [held_out])
    assert (kept.sentences, kept.labels, dropped) == (["a joy"], [1], 1)


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 9))
def test_split_off_shares_every_example_once(count, share, seed):
    examples = Examples(Path("x"), [n % 2 for n in range(count)], [str(n) for n in range(count)])
    train, dev = split_off(examples, share, seed)
    assert sorted(train.sentences + dev.sentences, key=int) == examples.sentences
    assert len(dev) == max(1, round(share * count)) and split_off(examples, share, seed)[1].sentences == dev.sentences


def test_further_lines_have_their_weight(tmp_path):
    train, extra = table(tmp_path, "0\ta\n1\tb\n"), table(tmp_path, "1\tc\n")
    both = train.extended(extra, 0.5)
    assert (both.sentences, both.labels, both.weights) == (["a", "b", "c"], [0, 1, 1], [1.0, 1.0, 0.5])
    assert both.chosen([2, 0]).weights == [0.5, 1.0]
