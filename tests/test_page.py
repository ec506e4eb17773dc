"""`--option page`, the Python side: weights in int8, vocabulary, refusals, and the page that ships."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch

import run_llama
from engine.io.checkpoint import read_checkpoint, save_checkpoint
from engine.io.vocabulary import NORMAL, read_vocabulary
from llama import Llama, load_pretrained
from tasks.page import task
from tasks.page.build import SCRIPTS, SOURCES
from tasks.page.pack import dequantized, pack, quantize
from tests.tiny import CONFIG, ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer

SHIPPED = ROOT / "docs" / "adder.html"


def make(tmp_path, *flags: str) -> int:
    return run_llama.main(["--option", "page", "--out", str(tmp_path / "page.html"), *flags])


def refusal(capsys) -> str:
    shown = capsys.readouterr().err.strip()
    assert "\n" not in shown and "Traceback" not in shown
    return shown


def test_a_row_is_at_most_half_a_step_off():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([[1e-6], [1.0], [50], [0], [3]])
    whole, scales = quantize(weight)
    assert whole.dtype == torch.int8 and int(whole.abs().max()) == 127
    assert ((weight - whole.float() * scales[:, None]).abs() <= scales[:, None] * 0.5001).all()
    torch.testing.assert_close(scales[[0, 1, 2, 4]], weight[[0, 1, 2, 4]].abs().amax(dim=1) / 127)


def test_a_large_model_is_rounded_and_an_adder_is_not():
    checkpoint = read_checkpoint(task.BEST_ADDER)
    for name, weight in dequantized(checkpoint.config, checkpoint.state_dict).items():
        if name in checkpoint.state_dict:
            assert torch.equal(weight, checkpoint.state_dict[name].float())
    types = {entry["type"] for entry in pack(CONFIG, Llama(CONFIG).state_dict())["tensors"] if len(entry["shape"]) == 2}
    assert types == {"int8"}


def test_the_vocabulary_is_sentencepieces_own():
    tokenizer = load_tokenizer(TOKENIZER)
    vocabulary, own = read_vocabulary(tokenizer), tokenizer.sp_model
    for id_, (piece, score, kind) in enumerate(
        zip(vocabulary["pieces"], vocabulary["scores"], vocabulary["types"], strict=True)
    ):
        assert (piece, score) == (own.id_to_piece(id_), own.get_score(id_))
        assert (kind != NORMAL) == (own.is_unknown(id_) or own.is_control(id_) or own.is_byte(id_))
    assert (vocabulary["bos"], vocabulary["eos"], vocabulary["prefix"]) == (1, 2, True)


def test_other_tokenizers_are_refused(tmp_path, capsys):
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"format": "min-llama-words", "words": ["a"]}), encoding="utf-8")
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    flags = ["--pretrained-model-path", str(tmp_path / "tiny.pt"), "--tokenizer"]
    assert make(tmp_path, *flags, str(words)) == 2
    refusal(capsys)
    unigram = tmp_path / "unigram.model"
    from sentencepiece import SentencePieceTrainer

    texts = iter(["the cat sat on the mat", "a dog and a cat", "the mat is red"] * 20)
    with open(unigram, "wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, vocab_size=40, model_type="unigram", minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match="not a byte-pair encoding"):
        read_vocabulary(load_tokenizer(unigram))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_embedding_type", "alibi"), ("ffn_type", "relu"), ("norm_position", "post"), ("causal", False),
        ("sliding_window", 5), ("attention_type", "differential"), ("gated_heads", True),
    ],
)  # fmt: skip
def test_a_config_that_the_page_does_not_know_is_one_line(tmp_path, capsys, field, value):
    write_tiny_checkpoint(tmp_path / "tiny.pt", dataclasses.replace(CONFIG, **{field: value}))
    assert make(tmp_path, "--pretrained-model-path", str(tmp_path / "tiny.pt")) == 2
    assert f"the page does not know {field}={value!r}" in refusal(capsys)
    assert not (tmp_path / "page.html").exists()


def test_bad_input_is_one_line(tmp_path, capsys):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    tiny = ["--pretrained-model-path", str(tmp_path / "tiny.pt")]
    assert make(tmp_path, *tiny, "--max_parameters", "1000") == 2
    assert "parameters, more than 1,000: raise --max_parameters" in refusal(capsys)
    assert make(tmp_path, "--pretrained-model-path", str(tmp_path / "none.pt")) == 2
    assert "no such file" in refusal(capsys)
    short = dataclasses.replace(read_checkpoint(task.BEST_ADDER).config, max_seq_len=8)
    save_checkpoint(tmp_path / "short.pt", short, read_checkpoint(task.BEST_ADDER).state_dict)
    assert make(tmp_path, "--pretrained-model-path", str(tmp_path / "short.pt")) == 2
    assert "has 8 positions; an adder needs 16" in refusal(capsys)
    assert run_llama.main(["--option", "page", "--out", str(tmp_path / "no" / "page.html"), *tiny]) == 2
    assert "there is no folder" in refusal(capsys)
    assert run_llama.main(["--option", "page", "--out", str(SHIPPED), *tiny]) == 2
    assert "ships with the project" in refusal(capsys)


def test_without_its_sources_the_option_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tasks.page.build.SOURCES", tmp_path)
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    assert make(tmp_path, "--pretrained-model-path", str(tmp_path / "tiny.pt")) == 2
    assert "no such file" in refusal(capsys)


def test_the_shipped_page_is_what_the_command_writes(tmp_path):
    command = [sys.executable, "run_llama.py", "--option", "page", "--out", str(tmp_path / "adder.html")]
    command += ["--pretrained-model-path", "addition_models/best_model/best_model.pth"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "adder.html").read_bytes() == SHIPPED.read_bytes(), (
        f"{' '.join(command[1:4])} docs/adder.html --overwrite {' '.join(command[-2:])} makes it anew"
    )
    assert len(SHIPPED.read_bytes()) < 150_000


def test_the_page_names_no_other_address():
    page = SHIPPED.read_text("utf-8")
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<link(?! rel=\"icon\" href=\"data:,\")|<script[^>]+src|@import", page)


def test_the_sources_stay_readable():
    assert {path.name for path in SOURCES.glob("*.js")} == set(SCRIPTS)
    for path in (*SOURCES.glob("*.js"), *SOURCES.glob("*.css"), *SOURCES.glob("*.html")):
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= 350 and max(map(len, lines)) <= 120, path.name


def test_what_is_said_of_the_best_adders_heads_is_so():
    """Mean attention over 200 sums of five digits; positions: start a3 a2 a1 a0 + b3 b2 b1 b0 = c4 c3 c2 c1 c0."""
    models = task.packed_models(task.BEST_ADDER, settings=run_llama.OPTIONS["page"].settings_class()())
    assert set(models["adder"]["heads"]) == {"0.0", "0.1", "1.0", "1.1"}, "another best adder needs other words"
    from tasks.addition.batched_model import problem_tokens
    from tasks.addition.problems import sample_problems
    from tasks.attention_maps import attention_weights

    model = load_pretrained(str(task.BEST_ADDER))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(1000, 0))
    rows = problem_tokens(a, b).T[(a + b >= 10000).nonzero()[:200, 0]]
    maps = torch.stack([attention_weights(model, row) for row in rows]).mean(dim=0)  # (layers, heads, 16, 16)
    equals = 10
    assert all(maps[0, 0, 6 + digit, 1 + digit] > 0.9 for digit in range(4))  # b's digit at a's above it
    assert all(maps[0, 1, at, 11:at].sum() > 0.9 for at in (13, 14))  # c2's and c1's position at c4 and c3
    assert all(maps[1, 1, equals + 1 + digit, 6 + digit] > 0.9 for digit in range(4))  # c4's position writes c3
    for digit in range(3):  # at c4, c3 and c2 the carry's head looks right of the column that is being written
        row = maps[1, 0, equals + 1 + digit]
        assert row[7 + digit : 10].sum() > 0.9
