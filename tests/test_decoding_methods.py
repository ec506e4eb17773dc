"""The comparison of decoding methods: its measures by hand, its rows from the loops themselves, and its table."""

from __future__ import annotations

import collections
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import LlamaConfig
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from llama import load_pretrained
from tasks.methods import decoding
from tests.tiny import TOKENIZER, stories, write_corpus, write_tiny_checkpoint
from tokenizer import load_tokenizer

pytest.importorskip("sacrebleu")
SHAPE = LlamaConfig(vocab_size=4096, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=32)
FLAGS = {"stories": 3, "prompt_tokens": 4, "max_new_tokens": 9, "draws": 2, "timed": 1}


def test_repetition_and_diversity_by_hand():
    assert decoding.repeated([[1, 2, 3, 4, 5, 1, 2, 3, 4]]) == pytest.approx(1 / 6)  # 1234 twice among six
    assert decoding.repeated([[7] * 8, [1, 2, 3, 4], [1]]) == pytest.approx((4 / 5 + 0) / 2)  # too short: not counted
    assert decoding.repeated([[], [1]]) == 0.0
    assert decoding.distinct([[1, 2, 1], [2, 1]], 1) == pytest.approx(2 / 5)
    assert decoding.distinct([[1, 2, 1], [2, 1]], 2) == pytest.approx(2 / 3)  # no pair spans two texts
    assert decoding.distinct([[]], 2) == 0.0


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4), st.integers(1, 4))
def test_repetition_and_diversity_as_counted(rows, n):
    shares, everywhere = [], collections.Counter()
    for row in rows:
        counts = collections.Counter("".join(map(str, row))[start : start + n] for start in range(len(row) - n + 1))
        everywhere += counts
        if counts:
            shares.append(sum(count - 1 for count in counts.values()) / counts.total())
    assert decoding.repeated(rows, n) == pytest.approx(sum(shares) / max(1, len(shares)))
    assert decoding.distinct(rows, n) == pytest.approx(len(everywhere) / max(1, everywhere.total()))


def command(tmp_path, **more) -> list[str]:
    write_tiny_checkpoint(tmp_path / "m.pt", SHAPE)
    flags = FLAGS | {"corpus": write_corpus(tmp_path / "corpus.txt", 9), "out": tmp_path / "out"} | more
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return ["--pretrained-model-path", str(tmp_path / "m.pt"), *words]


def test_the_command_measures_every_method(tmp_path, capsys):
    assert decoding.main(command(tmp_path)) == 0
    measured = json.loads((tmp_path / "out" / "decoding.json").read_text("utf-8"))
    assert list(measured["methods"]) == list(decoding.ALL)
    assert [len(method["draws"]) for method in measured["methods"].values()] == [1] + [2] * 6 + [1] * 4
    first, second = measured["methods"]["sampling"]["draws"]
    assert first != second
    assert all(method["tokens_per_second"] > 0 for method in measured["methods"].values())
    assert decoding.table(measured) in capsys.readouterr().out
    assert (tmp_path / "out" / "decoding.png").exists()
    assert not any(word in json.dumps(measured) for word in ("Ann", "kite"))  # figures only

    model, tokenizer = load_pretrained(str(tmp_path / "m.pt")), load_tokenizer(TOKENIZER)
    total = count = 0
    rows = []
    for story in stories(9):
        ids = tokenizer.encode(story, bos=True, eos=False)[:5]
        if len(rows) == 3 or len(tokenizer.encode(story, bos=True, eos=False)) < 6:
            continue
        new = [int(step) for step in stream(model, [ids], 9, Sampler(0.0), eos_id=tokenizer.eos_id)]
        rows.append([token for token in new if token != tokenizer.eos_id])
        logits = model(torch.tensor([ids + rows[-1]]), targets=torch.tensor([ids + rows[-1]]))[0][0]
        for place, token in enumerate(rows[-1], start=4):
            total, count = total - logits[place].double().log_softmax(-1)[token].item(), count + 1
    greedy = measured["methods"]["greedy"]["draws"][0]
    assert greedy["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert greedy["tokens"] == pytest.approx(count / 3, abs=1e-4)
    assert greedy["repeated_4grams"] == pytest.approx(decoding.repeated(rows), abs=1e-4)


def test_a_stopped_run_continues_and_other_settings_begin_anew(tmp_path, monkeypatch):
    target, figures, calls = tmp_path / "out" / "decoding.json", decoding.figures, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == 4:  # the real text, greedy, the first sample; then the run is stopped
            raise KeyboardInterrupt
        return figures(*arguments)

    monkeypatch.setattr(decoding, "figures", counted)
    monkeypatch.setattr(decoding, "speeds", lambda decodes, *arguments: dict.fromkeys(decodes, 1.0))
    monkeypatch.setattr(decoding, "draw", lambda *arguments: None)
    words = command(tmp_path)
    assert decoding.main(words) == 130
    assert decoding.main(words) == 0
    stopped, count = json.loads(target.read_text("utf-8")), len(calls)
    assert count == 4 + 17 - 2  # 17 draws in all, 2 of them and the real text made before
    target.unlink()
    assert decoding.main(words) == 0
    assert json.loads(target.read_text("utf-8")) == stopped
    assert decoding.main([*words, "--seed", "9"]) == 0
    assert json.loads(target.read_text("utf-8")) != stopped and len(calls) == count + 2 * 18


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"stories": 99}, "--stories asks for 99"),
        ({"prompt_tokens": 31}, "--prompt_tokens 31: the model's context allows 30"),
        ({"corpus": "missing.txt"}, "missing.txt"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, more, reason):
    assert decoding.main(command(tmp_path, **more)) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
