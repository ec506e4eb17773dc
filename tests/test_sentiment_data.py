"""The data reader names what is malformed; batches hold every example once, with little padding, in a seeded order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sentiment.data import (
    Examples,
    SentenceBatches,
    content_free_ids,
    prompt_suffix,
    read_examples,
    read_label_names,
    tokenise,
)
from tests.tiny import ROOT, TOKENIZER
from tokenizer import load_tokenizer
from utils import pad


def written(tmp_path, text: str | bytes):
    path = tmp_path / "some-train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def test_lines_are_read_as_the_course_writes_them(tmp_path):
    text = "1 ||| Fine , \u201ctruly\u201d fine \u2014 caf\u00e9 .\n\n   \n0 ||| a ||| b\u0085c \r\n2|||tight\n"
    found = read_examples(written(tmp_path, text), num_labels=3)
    assert found.labels == [1, 0, 2]
    assert found.sentences == ["Fine , \u201ctruly\u201d fine \u2014 caf\u00e9 .", "a ||| b\u0085c", "tight"]


def test_a_byte_order_mark_is_no_part_of_the_label(tmp_path):
    assert read_examples(written(tmp_path, b"\xef\xbb\xbf1 ||| x"), 2).labels == [1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 | no separator", "no '|||'"),
        ("1 |||  ", "the sentence is empty"),
        ("2 ||| outside", "label 2 is not in the mapping"),
        ("-1 ||| outside", "label -1 is not in the mapping"),
        ("good ||| a word for a label", "not a whole number"),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line, reason):
    path = written(tmp_path, f"0 ||| fine\n\n{line}\n1 ||| fine\n")
    with pytest.raises(ValueError, match="line 3") as error:
        read_examples(path, num_labels=2)
    assert reason in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(("content", "reason"), [(b"\n \n", "no example"), (b"0 ||| caf\xe9", "not UTF-8")])
def test_a_file_without_text_is_refused(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason):
        read_examples(written(tmp_path, content), 2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0] * 20, True), ([0] * 19, False), ([0] * 19 + [1], False), ([-1] * 3, True), ([1] * 50, True)],
)
def test_placeholder_labels_are_recognised(tmp_path, labels, expected):
    path = written(tmp_path, "".join(f"{label} ||| sentence {n}\n" for n, label in enumerate(labels)))
    assert read_examples(path, 2).placeholder is expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not JSON"), ('{"0": "bad"}', "JSON list"), ('["one"]', "at least two"), ('["a", "a"]', "all different"),
     ('["a", 3]', "JSON list")],
)  # fmt: skip
def test_a_bad_label_mapping_is_refused(tmp_path, content, reason):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_label_names(path)


def test_the_question_is_worded_as_in_the_course():
    assert prompt_suffix(["bad", "good"]) == "Is this movie bad or good? This movie is "
    assert prompt_suffix(["a", "b", "c"]) == "Is this movie a, b, or c? This movie is "


def examples_of(sentences: list[str]) -> Examples:
    return Examples("x", [0] * len(sentences), sentences)


def test_sentences_are_cut_and_the_question_stays_whole():
    tokenizer, question = load_tokenizer(TOKENIZER), prompt_suffix(["bad", "good"])
    short, long = "A fine film.", "A fine film about a very long road. " * 20
    found = tokenise(examples_of([short, long]), tokenizer, limit=60, suffix=question)
    assert found.ids[0] == tokenizer.encode(f"{short} {question}", bos=True, eos=False)
    assert tokenizer.decode(found.ids[1]).endswith(question)
    assert len(found.ids[1]) == 60 and found.truncated == 1
    plain = tokenise(examples_of([short, long]), tokenizer, limit=60, max_len=5)
    assert plain.ids[1] == tokenizer.encode(long, bos=True, eos=False)[:6]
    assert all(ids[0] == tokenizer.bos_id and tokenizer.eos_id not in ids for ids in plain.ids)
    with pytest.raises(ValueError, match="too few"):
        tokenise(examples_of([short]), tokenizer, limit=10, suffix=question)


def test_content_free_prompts_ask_the_question():
    tokenizer, question = load_tokenizer(TOKENIZER), prompt_suffix(["bad", "good"])
    texts = [tokenizer.decode(ids) for ids in content_free_ids(tokenizer, question)]
    assert texts == [f"N/A {question}", question, f"[MASK] {question}"]


def batches_of(lengths: list[int], batch_size: int, seed: int = 0) -> SentenceBatches:
    ids = [[7] * length for length in lengths]
    return SentenceBatches(Examples("x", [n % 2 for n in range(len(ids))], [""] * len(ids), ids), batch_size, 3, seed)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 5))
def test_every_example_stands_in_one_batch(lengths, batch_size, epoch):
    batches = batches_of(lengths, batch_size)
    for cut in (batches.epoch(epoch), batches.longest_first(), batches.in_file_order()):
        assert sorted(np.concatenate(cut).tolist()) == list(range(len(lengths)))
        assert sorted(len(batch) for batch in cut)[1:] == [batch_size] * (len(cut) - 1)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(5, 60, 400).tolist()

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(batches_of(lengths, 8, seed).epoch(epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    first, second = (
        {frozenset(batch.tolist()) for batch in batches_of(lengths, 8, 1).epoch(epoch)} for epoch in (0, 1)
    )
    assert not first & second, "the same sentences must not meet again in every epoch"


def test_little_padding_is_computed():
    lengths = np.random.default_rng(0).integers(5, 60, 800).tolist()
    batches = batches_of(lengths, 40)
    padded = sum(batches.tensors(batch)[0].numel() for batch in batches.epoch(0))
    assert padded < 1.1 * sum(lengths)
    plain = sum(batches.tensors(batch)[0].numel() for batch in batches.in_file_order())
    assert plain > 1.6 * sum(lengths)


def test_a_batch_is_padded_on_the_right_to_its_longest():
    assert pad([[1, 5], [1, 5, 6], [1]], 3).tolist() == [[1, 5, 3], [1, 5, 6], [1, 3, 3]]


@pytest.mark.parametrize("name", ["reviews", "reviews5"])
def test_the_shipped_reviews_are_in_the_format(name):
    names = read_label_names(ROOT / "data" / f"{name}-label-mapping.json")
    assert len(names) == {"reviews": 2, "reviews5": 5}[name]
    splits = [read_examples(ROOT / "data" / f"{name}-{split}.txt", len(names)) for split in ("train", "dev", "test")]
    assert not any(split.placeholder for split in splits)
    assert len({sentence for split in splits for sentence in split.sentences}) == sum(map(len, splits))
    assert json.loads((ROOT / "data" / f"{name}-label-mapping.json").read_text()) == names
