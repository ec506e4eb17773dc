"""Saved states, logs, records and results are checked by shape before use: fuzzed ones are refused by name."""

from __future__ import annotations

import copy
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.io.checkpoint import CheckpointError, load_plain, save_plain
from engine.io.files import FileError, parse_json, read_json_object
from engine.train import run_log
from engine.train.run_log import RunLog
from tasks import provenance
from tasks.addition import report
from tasks.results.sources import gather
from tasks.stories.data import tokenise
from tasks.submission.check import Findings, _summary
from tasks.submission.run import _read_records
from tasks.submission.zip_file import check_archive
from tests.test_trainer import Regression, trainer_of
from tests.tiny import TOKENIZER, write_corpus
from tokenizer import load_tokenizer

ODD = (
    None, "text", -1, 10**30, float("nan"), float("inf"), [], {}, {"a": 1}, True, b"bytes", [None], {3: "x"},
    torch.zeros(3), torch.tensor(float("nan")), "\ud800",
)  # fmt: skip
ODD_JSON = (None, "text", -1, 10**30, 1e308, [], {}, {"a": 1}, True, [None], "\ud800", [[[[]]]])


def paths_of(value: Any, prefix: tuple = ()) -> list[tuple]:
    """The path of every entry of nested tables and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for name, entry in entries for path in [(*prefix, name), *paths_of(entry, (*prefix, name))]]


def mutated(value: Any, rng: random.Random, odd: tuple) -> Any:
    """A copy with one entry replaced, removed or added."""
    value = copy.deepcopy(value)
    *above, last = rng.choice(paths_of(value))
    parent = value
    for name in above:
        parent = parent[name]
    action = rng.choice(("replace", "replace", "remove", "add"))
    if action == "remove":
        del parent[last]
    elif action == "add" and isinstance(parent, dict):
        parent[rng.choice(("extra", 7))] = rng.choice(odd)
    else:
        parent[last] = rng.choice(odd)
    return value


class Tallied(Regression):
    """Regression with counters, as the sentiment task has them."""

    def __init__(self):
        super().__init__()
        self.tally = {"loss": 0.0}


def test_fuzzed_states_are_refused_by_name_or_train_on(tmp_path):
    """300 seeded changes of a real state: none ends in another error than CheckpointError."""
    first = trainer_of(tmp_path, Tallied(), identity={"data": "abc"}, epochs=1)
    first.fit()
    state, rng, refused = load_plain(first.state_path), random.Random(16), 0
    for _ in range(300):
        save_plain(mutated(state, rng, ODD), first.state_path)
        trainer = trainer_of(tmp_path, Tallied(), identity={"data": "abc"}, epochs=1)
        try:
            trainer.resume()
        except CheckpointError as error:
            assert str(first.state_path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            loss, _ = trainer.step([0])
            assert loss == loss
    assert refused > 150


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b"\x80\x02]q\x00.", bytes(range(256)) * 9])
def test_a_state_of_other_bytes_is_named(tmp_path, content):
    trainer = trainer_of(tmp_path)
    trainer.state_path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        trainer.resume()


def test_a_restarted_run_holds_no_step_twice_and_a_resumed_one_neither(tmp_path):
    for _ in range(2):  # killed before the first saved state: the second run begins anew
        begun = trainer_of(tmp_path, save_every=100, epochs=1)
        begun.save = lambda: None
        begun.fit()
    steps = [record["step"] for record in run_log.read(tmp_path / "log.jsonl") if "loss" in record]
    assert steps == list(range(1, 7))


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(nested)
def test_json_is_always_json(content):
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(run_log.line_of({"content": content}), parse_constant=refuse)


def test_a_log_names_each_bad_line_and_loses_only_that(tmp_path, capsys):
    log, rng = RunLog(tmp_path / "log.jsonl"), random.Random(17)
    bad = ["{", "[1]", "null", '{"step": "x"}', '{"step": 1.5}', '{"step": true}', '{"step": 3, "loss": NaN}',
           '{"step": 3, "loss": "low"}', "[" * 100_000, '{"step": ' + "9" * 5000 + "}", "\x00"]  # fmt: skip
    for step in range(1, 25):
        log.write(step=step, loss=1 / step, nested={"a": [float("nan"), (float("inf"), 2.0)]})
        with open(log.path, "a", encoding="utf-8") as file:
            file.write(bad[step % len(bad)] + "\n" if rng.random() < 0.5 else "")
    broken = sum(line != "" and '"nested"' not in line for line in log.path.read_text("utf-8").split("\n"))
    records = run_log.read(log.path)
    assert [record["step"] for record in records] == list(range(1, 25))
    assert records[0]["nested"] == {"a": [None, [None, 2.0]]}
    named = capsys.readouterr().err
    assert named.count(" is left out: ") == named.count("\n") == broken > 5
    assert f"{log.path}, line " in named
    log.cut_after(10)
    assert [record["step"] for record in run_log.read(log.path)] == list(range(1, 11))
    assert "left out" in capsys.readouterr().err


def test_a_log_that_cannot_grow_is_named_and_stays(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(step=1)
    log.path.chmod(0o644)
    monkeypatch.setattr("builtins.open", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write .*log\.jsonl: No space"):
        log.write(step=2)
    monkeypatch.undo()
    assert log.path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, "9" * 5000, "[1]", '"x"'])
def test_a_json_file_that_holds_something_else_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


@given(st.text(max_size=30))
def test_any_text_is_json_or_named(text):
    try:
        parse_json(text, "it")
    except FileError as error:
        assert str(error).startswith("it ")


SUMMARY = {
    "model_config": {"dim": 5, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "hidden_dim": 4, "rope_theta": 3.0},
    "train_config": {
        "examples": 100, "trial_seeds": 2, "trial_examples": 5,
        "result": {"seed_accuracies_at_the_end": [1.0], "trial": {"minutes": 1}, "minutes": 2},
    },
    "num_params": 570, "accuracy": 1.0, "exhaustive": {"wrong": 0, "asked": 81_000_000},
}  # fmt: skip


def test_fuzzed_summaries_are_named_or_read(tmp_path, capsys):
    path = tmp_path / "addition_models" / "best_model" / "experiment_summary.json"
    path.parent.mkdir(parents=True)
    rng, parts = random.Random(16), len(gather(tmp_path)[1])
    for _ in range(200):
        path.write_text(json.dumps(mutated(SUMMARY, rng, ODD_JSON)))
        try:
            report.table(report.read_models(tmp_path / "addition_models"))
        except ValueError as error:
            assert str(path) in str(error)
        blocks, left_out = gather(tmp_path)
        assert len(blocks) + len(left_out) == parts
        findings = Findings()
        accuracy = _summary(path.parent, "best_model", findings)
        assert findings.problems if accuracy is None else 0 <= accuracy <= 1


@pytest.mark.parametrize("accuracy", ["NaN", "Infinity", "1.2", "-0.1", '"high"', "null"])
def test_an_accuracy_that_is_none_is_a_problem(tmp_path, accuracy):
    (tmp_path / "experiment_summary.json").write_text(f'{{"accuracy": {accuracy}, "num_params": 5}}')
    findings = Findings()
    assert _summary(tmp_path, "best_model", findings) is None
    assert "is not the summary of a test" in findings.problems[0]


def test_fuzzed_records_of_the_hand_in_count_as_none(tmp_path):
    records = {"generate": {"begun": {"model": "a"}, "from": {"model": "a"}, "outputs": {"x": "b"}}}
    rng, path = random.Random(3), tmp_path / "submission.json"
    for _ in range(100):
        path.write_text(json.dumps(mutated(records, rng, ODD_JSON)))
        for record in _read_records(path).values():
            assert all(isinstance(record.get(name, {}), dict) for name in ("begun", "from", "outputs"))
    path.write_text("[" * 100_000)
    assert _read_records(path) == {}


def test_fuzzed_records_of_how_a_file_was_made_count_as_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out.txt").write_text("text")
    made = {"command": "c", "option": "generate", "flags": {}, "data": {"d": "1"}}
    made |= {"model": {"path": "m", "sha256": "2"}}
    where, rng = provenance.FOLDER / provenance._name(Path("out.txt")), random.Random(4)
    where.parent.mkdir(parents=True)
    for _ in range(100):
        where.write_text(json.dumps(mutated(made, rng, ODD_JSON)))
        record = provenance.find("out.txt")
        assert record is None or isinstance(record["model"]["path"] + "".join(record["data"].values()), str)


def test_fuzzed_zips_are_refused_or_read(tmp_path):
    path, rng = tmp_path / "jdoe.zip", random.Random(5)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("run_llama.py", "folder/a.txt", "folder/b.txt"):
            archive.writestr(f"jdoe/{name}", name * 50)
    good = path.read_bytes()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)
        top, problems = check_archive(path, "jdoe")
        assert problems if top is None else isinstance(top, str)


def test_a_damaged_token_cache_is_made_again(tmp_path):
    corpus, tokenizer = write_corpus(tmp_path / "c.txt"), load_tokenizer(str(TOKENIZER))
    whole = tokenise([str(corpus)], tokenizer, tmp_path / "cache")
    tokens = whole.tokens.tolist()
    for path in sorted((tmp_path / "cache").iterdir()):
        for size in (0, 50, path.stat().st_size - 3):
            path.write_bytes(path.read_bytes()[:size])
            assert tokenise([str(corpus)], tokenizer, tmp_path / "cache").tokens.tolist() == tokens
