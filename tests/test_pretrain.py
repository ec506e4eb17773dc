"""Pretraining and evaluation from the command line: a tokenizer, a model that learns, its figures, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch

import run_llama
from engine.io.checkpoint import read_checkpoint
from engine.train import run_log
from llama import from_checkpoint
from tasks.stories import evaluate
from tests.tiny import CLOCKS, CONFIG, TOKENIZER, stories, write_corpus, write_tiny_checkpoint
from tokenizer import load_tokenizer


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.txt", 120)


def flags(corpus, folder, *more: str) -> list[str]:
    model = ["--dim", "32", "--n_layers", "2", "--max_seq_len", "64", "--batch_tokens", "256", "--epochs", "2"]
    places = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(folder)]
    return ["--option", "pretrain", *model, *places, "--warmup_steps", "2", "--threads", "1", *more]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_model_learns_and_is_exported(corpus, tmp_path, capsys, optimizer):
    target = tmp_path / "model.pt"
    options = ["--optimizer", optimizer, "--export", str(target), "--dtype", "bfloat16", "--evaluate_every", "5"]
    assert run_llama.main(flags(corpus, tmp_path / "run", *options)) == 0
    losses = [record["held_out_loss"] for record in run_log.read(tmp_path / "run" / "log.jsonl") if "score" in record]
    assert losses[-1] < losses[0] < math.log(4096)
    described = json.loads(target.with_suffix(".json").read_text())
    assert described["result"]["held_out_loss"] == min(losses)
    assert described["training"]["optimizer"] == optimizer
    found = read_checkpoint(target)
    assert found.tokenizer.resolve() == TOKENIZER.resolve()
    assert torch.load(target, weights_only=True)["model"]["norm.weight"].dtype == torch.bfloat16
    for made in (target.with_suffix(".png"), tmp_path / "run" / "loss_curve.png"):
        assert made.read_bytes().startswith(b"\x89PNG")
    generated = ["--pretrained-model-path", str(target), "--prompt", "Ann", "--max_new_tokens", "5"]
    assert run_llama.main(generated) == 0


def test_a_folder_with_a_run_is_not_overwritten(corpus, tmp_path, capsys):
    assert run_llama.main(flags(corpus, tmp_path / "run")) == 0
    assert run_llama.main(flags(corpus, tmp_path / "run")) == 2
    assert "--resume" in capsys.readouterr().err
    assert run_llama.main(flags(corpus, tmp_path / "run", "--resume", "--lr", "0.1")) == 2
    assert "started with lr 0.003, not 0.1" in capsys.readouterr().err


def test_a_full_disk_leaves_a_run_that_goes_on(corpus, tmp_path, capsys, monkeypatch):
    save, written = torch.save, []

    def filling_up(content, path):
        written.append(path)
        if len(written) > 3:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, path)

    often = ("--save_every", "2", "--evaluate_every", "1000")
    assert run_llama.main(flags(corpus, tmp_path / "whole", *often)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", filling_up)
        assert run_llama.main(flags(corpus, tmp_path / "run", *often)) == 1
    line = f"run_llama.py: cannot write {tmp_path}/run/last.pt: No space left on device; continue with --resume"
    assert capsys.readouterr().err.strip().splitlines()[-1] == line
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"]["step"] == 6
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert run_llama.main(flags(corpus, tmp_path / "run", *often, "--resume")) == 0
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("whole", "run")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_run_is_not_resumed_with_another_vocabulary(corpus, tmp_path, capsys):
    other = ["--tokenizer", str(tmp_path / "small.model")]
    assert run_llama.main(["--option", "tokenizer", "--corpus", str(corpus), "--vocab_size", "330", *other]) == 0
    assert run_llama.main(flags(corpus, tmp_path / "run")) == 0
    assert run_llama.main([*flags(corpus, tmp_path / "run", "--resume"), *other]) == 2
    assert "started with vocab_size 4096, not 330" in capsys.readouterr().err


def test_a_tokenizer_is_trained_with_llamas_ids(corpus, tmp_path):
    target = tmp_path / "small.model"
    wanted = ["--option", "tokenizer", "--corpus", str(corpus), "--tokenizer", str(target), "--vocab_size", "330"]
    assert run_llama.main(wanted) == 0
    tokenizer = load_tokenizer(target)
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (330, 1, 2, 3)
    text = "Words never seen: żółw 漢 \t x  y"
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


def test_a_failed_tokenizer_leaves_no_file(corpus, tmp_path, capsys):
    target = tmp_path / "large.model"
    wanted = ["--option", "tokenizer", "--corpus", str(corpus), "--tokenizer", str(target), "--vocab_size", "9000"]
    assert run_llama.main(wanted) == 2
    assert "9000" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_bits_per_byte_against_a_spelled_out_sum(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    model, tokenizer = from_checkpoint(read_checkpoint(tmp_path / "tiny.pt")), load_tokenizer(TOKENIZER)
    documents = stories(9)
    bits = text_bits = count = 0.0
    for document in documents:
        ids = tokenizer.encode(document, bos=True, eos=True)
        log_probs = model(torch.tensor([ids]), targets=torch.zeros(1))[0][0].double().log_softmax(-1)
        costs = [-log_probs[place, token].item() / math.log(2) for place, token in enumerate(ids[1:])]
        bits, text_bits, count = bits + sum(costs), text_bits + sum(costs[:-1]), count + len(costs)
    measured = evaluate.measure(model, tokenizer, documents)
    assert measured["tokens"] == count
    assert measured["bits_per_byte"] == pytest.approx(text_bits / sum(len(d.encode()) for d in documents), abs=1e-3)
    assert measured["loss_per_token"] == pytest.approx(bits / count * math.log(2), abs=1e-3)


def test_evaluate_prints_and_saves(tmp_path, corpus, capsys):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    wanted = ["--option", "evaluate", "--corpus", str(corpus), "--pretrained-model-path", str(tmp_path / "tiny.pt")]
    assert run_llama.main([*wanted, "--save_dir", str(tmp_path / "measured")]) == 0
    saved = json.loads((tmp_path / "measured" / "evaluate.json").read_text())
    assert saved["documents"] == 120
    assert f"bits per byte: {saved['bits_per_byte']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--n_heads", "3"], "cannot be split into 3 heads"),
        (["--n_kv_heads", "3"], "not a multiple"),
        (["--dim", "12", "--n_heads", "4"], "is odd"),
        (["--corpus", "nothing.txt"], "no such file"),
        (["--corpus", "empty.txt"], "empty.txt holds no text"),
        (["--corpus", "latin1.txt"], "latin1.txt is not UTF-8 text: byte 5 is 0xe9"),
        (["--tokenizer", "nothing.model"], "no tokenizer"),
        (["--export", "no/such/folder/m.pt"], "there is no folder"),
    ],
)
def test_bad_input_is_refused(corpus, tmp_path, capsys, monkeypatch, more, reason):
    assert CONFIG.n_heads == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b" \n<|endoftext|>\n")
    (tmp_path / "latin1.txt").write_bytes("A café.\n".encode("latin-1"))
    assert run_llama.main([*flags(corpus, tmp_path / "run"), *more]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_validation_is_measured_and_recomputed_training_is_the_same(corpus, tmp_path):
    valid, logs = write_corpus(tmp_path / "valid.txt", 7), []
    kind = ["--position_embedding_type", "alibi", "--ffn_type", "relu", "--norm_position", "post", "--dropout", "0.2"]
    for name, more in (("plain", []), ("again", ["--gradient_checkpointing", "2"])):
        wanted = flags(corpus, tmp_path / name, "--valid", str(valid), *kind, "--evaluate_every", "7", *more)
        assert run_llama.main(wanted) == 0
        logs.append(run_log.read(tmp_path / name / "log.jsonl"))
        for record in logs[-1]:
            record.update(CLOCKS)
    assert logs[0] == logs[1]
    last = [record for record in logs[0] if "validation_loss" in record][-1]
    model = from_checkpoint(read_checkpoint(tmp_path / "plain" / "best.pt"))
    measured = evaluate.measure(model, load_tokenizer(TOKENIZER), stories(7))
    best = max((record for record in logs[0] if "score" in record), key=lambda record: record["score"])
    assert measured["loss_per_token"] == pytest.approx(best["validation_loss"], abs=1e-3)
    assert last["validation_perplexity"] == pytest.approx(math.exp(last["validation_loss"]))


def test_positions_that_no_width_divides(corpus, tmp_path):
    assert run_llama.main(flags(corpus, tmp_path / "run", "--max_seq_len", "13", "--epochs", "1")) == 0


def test_float16_trains_as_float32(corpus, tmp_path):
    logs = []
    for dtype in ("float32", "float16"):
        more = ("--dtype", dtype, "--dropout", "0", "--optimizer", "adamw", "--epochs", "1")
        assert run_llama.main(flags(corpus, tmp_path / dtype, *more)) == 0
        logs.append(run_log.read(tmp_path / dtype / "log.jsonl"))
    assert logs[1][-2]["skipped"] == 0 and logs[1][-2]["scale"] == 65536.0
    for plain, half in zip(*logs, strict=True):
        name = "loss" if "loss" in plain else "held_out_loss"
        assert half[name] == pytest.approx(plain[name], abs=5e-3)
