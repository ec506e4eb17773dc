"""Every text file is read by one function with one rule; what it cannot hold is refused in one line that names it."""

from __future__ import annotations

import codecs
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.io.files import decode_text, parse_json, read_json_object, write_json
from engine.io.word_tokenizer import SPECIAL
from tasks.addition.problems import read_problems
from tasks.addition.report import read_models
from tasks.recipe import read_recipe
from tasks.sentiment.data import read_examples, read_label_names
from tasks.stories.data import read_documents
from tasks.stories.fasttext import read_vectors
from tests.tiny import ROOT
from tokenizer import load_tokenizer

NOT_LINE_ENDS = "\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e"
NUMBER = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
ENCODINGS = {  # as editors save them
    "UTF-8": (b"", "utf-8"), "UTF-8 with a mark": (codecs.BOM_UTF8, "utf-8"),
    "UTF-16 little-endian": (codecs.BOM_UTF16_LE, "utf-16-le"), "UTF-16 big-endian": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "UTF-32": (codecs.BOM_UTF32_LE, "utf-32-le"),
}  # fmt: skip


def encoded(text: str, name: str, line_end: str = "\n") -> bytes:
    mark, encoding = ENCODINGS[name]
    return mark + text.replace("\n", line_end).encode(encoding)


LINE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\n\ufeff"), max_size=20)


@given(
    st.lists(LINE, min_size=1),
    st.sampled_from(list(ENCODINGS)),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_lines_come_back_from_every_encoding_and_line_end(lines, name, line_end):
    assert decode_text(encoded("\n".join(lines), name, line_end), "x").split("\n") == lines


@given(st.binary(max_size=60))
def test_bytes_are_text_or_refused_by_name(data):
    try:
        text = decode_text(data, "some.txt")
    except ValueError as error:
        assert re.fullmatch(r"some\.txt is not UTF-(8|16|32) text: byte \d+ is 0x[0-9a-f]{2}", str(error))
    else:
        text.encode("utf-8")
        assert "\r" not in text


FILES = {  # how each kind of file is read: its name, its text, the reader, and what it gives
    "corpus": ("a.txt", f"One{NOT_LINE_ENDS}.\n<|endoftext|>\nTwo\nlines", read_documents,
               [f"One{NOT_LINE_ENDS}.", "Two\nlines"]),
    "JSON lines": ("a.jsonl", '{"text": "One\u0085\u2028."}\n\n{"text": ""}\n{"text": "Two"}\n', read_documents,
                   ["One\u0085\u2028.", "Two"]),
    "labelled corpus": ("a.txt", "0 ||| one\u2028\n1 ||| two\n", read_documents, ["one", "two"]),
    "sentences": ("a.txt", "0 ||| one \u2028 x\n1 ||| two\n", lambda path: read_examples(path, 2).sentences,
                  ["one \u2028 x", "two"]),
    "label names": ("a.json", '["bad",\n"good"]', read_label_names, ["bad", "good"]),
    "words": ("a.json", json.dumps({"format": "min-llama-words", "lower": True, "words": [*SPECIAL, "a\u2028"]}),
              lambda path: load_tokenizer(path).words[4:], ["a\u2028"]),
    "problems": ("a.txt", "1234+5678=6912\n\n1000+1000=2000\n", lambda path: [n.tolist() for n in read_problems(path)],
                 [[1234, 1000], [5678, 1000]]),
    "recipe": ("a.toml", 'program = "x"\noption = "y"\n[flags]\nseed = 3\n', lambda path: read_recipe(path, "x", ["y"]),
               ("y", ["--seed=3"])),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FILES))
def test_every_kind_of_file_is_read_alike(name, tmp_path):
    file_name, text, read, expected = FILES[name]
    for encoding in ENCODINGS:
        for line_end in ("\n", "\r\n", "\r"):
            (tmp_path / file_name).write_bytes(encoded(text, encoding, line_end))
            assert read(tmp_path / file_name) == expected, (encoding, line_end)


def test_no_data_are_split_by_splitlines_or_opened_with_the_systems_encoding():
    """`str.splitlines` also breaks lines at U+0085 and U+2028, and `open` without an encoding asks the system."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "engine").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        for line in path.read_text("utf-8").split("\n"):
            assert ".splitlines()" not in line or "std" in line or "str(error)" in line, f"{path}: {line}"
            assert not re.search(r"\.read_text\(\)", line), f"{path}: {line}"


def words(**changes: object) -> str:
    return json.dumps({"format": "min-llama-words", "lower": True, "words": [*SPECIAL, "a"]} | changes)


SUMMARY = {"num_params": 9, "accuracy": 1.0, "train_config": {},
           "model_config": {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}}  # fmt: skip
BAD = [
    ("a.jsonl", '{"text": "x"}\n{"text": null}', read_documents, r'line 2: the field "text" is null, not a string'),
    ("a.jsonl", '{"text": "x"}\n\n{"text": 5}', read_documents, r'line 3: the field "text" is a number'),
    ("a.jsonl", '{"text": ["x"]}', read_documents, r'line 1: the field "text" is an array'),
    ("a.jsonl", '{"text": "x"}\n{"txt": "x"}', read_documents, r'line 2: not a JSON object with a field "text"'),
    ("a.jsonl", '["text"]', read_documents, r'line 1: not a JSON object with a field "text"'),
    ("a.jsonl", '{"text": "x"}\n{"text": ', read_documents, r"line 2 is not JSON"),
    ("a.jsonl", '{"text": "x", "y": ' + DEEP + "}", read_documents, r"line 1 is not usable JSON: it is nested too"),
    ("a.jsonl", '{"text": "x", "y": ' + NUMBER + "}", read_documents, r"line 1 is not usable JSON: a number has too"),
    ("a.jsonl", r'{"text": "x \ud800"}', read_documents, r"line 1 is not usable JSON: a string holds half"),
    ("a.json", DEEP, read_label_names, r"nested too deeply"),
    ("a.json", f"[{NUMBER}]", read_label_names, r"too many digits"),
    ("a.json", r'["bad", "\udc00"]', read_label_names, r"half of a surrogate"),
    ("a.json", '{"bad": 0}', read_label_names, r"not a label mapping"),
    ("a.txt", f"0 ||| x\n{NUMBER} ||| x", lambda path: read_examples(path, 2), r"line 2: the label '9{40}' is not"),
    *[("a.json", words(words=value), load_tokenizer, r"words is not a list of strings")
      for value in ("abcdef", 7, None, {"<pad>": 1}, [*SPECIAL, 1], [*SPECIAL, [1]], [*SPECIAL, {}])],
    ("a.json", words(lower=3), load_tokenizer, r"not a word vocabulary"),
    ("a.json", words(words=[*SPECIAL, "\ud800"]), load_tokenizer, r"half of a surrogate"),
    ("a.json", DEEP, load_tokenizer, r"nested too deeply"),
    ("a.json", '{"words": ' + NUMBER + "}", load_tokenizer, r"too many digits"),
    ("a.txt", f"1000+1000=2000\n1234+5678={NUMBER}", read_problems, r"line 2: the sum is wrong: '1234\+5678=9{30}'"),
    ("a.toml", "x = " + "[" * 5000 + "]" * 5000, lambda path: read_recipe(path, "x", []), r"nested too deeply"),
    ("a.toml", f"x = {NUMBER}", lambda path: read_recipe(path, "x", []), r"too many digits"),
    ("a.vec", "1 2\na inf 1", lambda path: read_vectors(path, ["a"]), r"not finite"),
    ("a.vec", "9 2\na 1 1", lambda path: read_vectors(path, ["a", "b"]), r"cut short: 1 of 9"),
    *[("experiment_summary.json", content, lambda path: read_models(path.parent.parent), r"experiment_summary\.json")
      for content in (DEEP, "[1]", "{}", json.dumps(SUMMARY | {"num_params": float("inf")}),
                      json.dumps(SUMMARY | {"accuracy": None}), json.dumps(SUMMARY | {"train_config": []}))],
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "read", "reason"), BAD)
def test_a_text_that_cannot_be_used_is_one_line_that_says_why(name, content, read, reason, tmp_path):
    path = tmp_path / "model" / name
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("header", ["word 5", f"{NUMBER} {NUMBER}", "\ufeff2 1"])
def test_the_first_line_of_a_vec_file_is_a_header_only_if_it_is_two_counts(header, tmp_path):
    (tmp_path / "a.vec").write_text(f"{header}\na 1\nb 2\n", encoding="utf-8")
    assert {word: vector.tolist() for word, vector in read_vectors(tmp_path / "a.vec", ["a", "b"]).items()} == {
        "a": [1.0], "b": [2.0],
    }  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), values, max_size=4))
def test_written_json_is_json_and_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, content)
    text = path.read_text("utf-8")
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert json.dumps(read_json_object(path)) == json.dumps(parse_json(text, "x"))
    if "null" not in text:
        assert read_json_object(path) == content
