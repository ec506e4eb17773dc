"""Words as tokens: splitting and joining, the vocabulary by frequency, and the interface of the other tokenizers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from engine.io.word_tokenizer import SPECIAL, WordTokenizer, join_words, split_words, word_vocabulary
from tests.tiny import stories, write_corpus
from tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(word_vocabulary(stories(), 20), encoding="utf-8")
    return load_tokenizer(path)


def test_splitting_by_hand():
    assert split_words('"Don\'t go," she said. (Ben\'s 12 cats!)', lower=True) == [
        "“", "don't", "go", ",", "”", "she", "said", ".", "(", "ben's", "12", "cats", "!", ")",
    ]  # fmt: skip
    words = split_words("A “well-known” café—yes", lower=False)
    assert words == ["A", "“", "well", "-", "known", "”", "café", "-", "yes"]
    assert split_words(" \n ", lower=True) == []


@pytest.mark.parametrize(
    "text",
    ['Tom said, "Hello, Ann!" and left.', 'One. "Two?" (three), "four."', "It cost $5; she didn't pay.", "", "a"],
)
def test_joining_gives_back_plain_prose(text):
    assert join_words(split_words(text, lower=False)) == text


WORDS = ["one", "two", "don't", ".", ",", "“", "”", "(", ")", "!"]


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.integers(0, 12))
def test_text_so_far_is_a_beginning_of_the_text(words, cut):
    assert join_words(words).startswith(join_words(words[:cut]))


@given(st.text(max_size=60))
def test_no_letter_is_lost(text):
    kept = "".join(split_words(text, lower=False))
    assert Counter(c for c in kept if c.isalnum()) == Counter(c for c in text if c.isalnum())


def test_the_vocabulary_is_counted_and_cut(tokenizer):
    counts = Counter(word for story in stories() for word in story.lower().replace(".", " .").split())
    expected = sorted(counts, key=lambda word: (-counts[word], word))[:16]
    assert tokenizer.words == [*SPECIAL, *expected] and tokenizer.n_words == 20
    assert [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id] == [0, 1, 2, 3]


def test_encode_and_decode(tokenizer):
    ids = tokenizer.encode("Ann had a zebra.", bos=True, eos=True)
    assert ids[0] == 1 and ids[-1] == 2 and ids[4] == tokenizer.unk_id and len(ids) == 7
    assert tokenizer.decode([*ids, 0, 0]) == "ann had a <unk>."
    short = WordTokenizer(2, tokenizer.model_path)
    assert short.encode("Ann had a zebra.", bos=True, eos=True) == [*ids[:3], 2]


def test_the_command_writes_it_and_tells_what_is_unknown(tmp_path, capsys):
    corpus, target = write_corpus(tmp_path / "corpus.txt", 120), tmp_path / "words.json"
    wanted = ["--option", "tokenizer", "--corpus", str(corpus), "--tokenizer", str(target), "--vocab_size", "300"]
    assert run_llama.main([*wanted, "--keep_case"]) == 0
    found, text = load_tokenizer(target), stories(120)
    assert not found.lower and "Ann" in found.ids and "ann" not in found.ids
    assert found.n_words == len(set(split_words(" ".join(text), lower=False))) + 4
    assert "<unk> 0.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"words": 3}', json.dumps({"format": "min-llama-words", "lower": True, "words": ["a", "b"]}),
     json.dumps({"format": "min-llama-words", "lower": True, "words": [*SPECIAL, "a", "a"]})],
)  # fmt: skip
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(ValueError, match="not a word vocabulary"):
        load_tokenizer(tmp_path / "words.json")
    with pytest.raises(OSError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing.json")
