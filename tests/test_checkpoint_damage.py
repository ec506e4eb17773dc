"""Damage is found: bits, sizes, numbers that are not finite; what is no checkpoint is named for what it is."""

from __future__ import annotations

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from addition_run import main as addition_main
from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import CheckpointError, load_plain, read_checkpoint, save_checkpoint, save_plain
from engine.io.files import write_sidecar
from llama import load_pretrained
from tasks.addition.testing import load_adder
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier, save_classifier
from tests.oracles import random_llama
from tests.test_checkpoint import FIELDS, foreign
from tests.test_checkpoint_formats import RMS, write_version_1
from tests.tiny import ROOT, TOKENIZER
from tokenizer import load_tokenizer

SHIPPED = ROOT / "models" / "stories.pt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    model = random_llama(**RMS)
    model.layers[1].attention.compute_key.weight.data[2, 3] = value
    save_checkpoint(tmp_path / "m.pt", model.config, model.state_dict())
    write_version_1(tmp_path / "m.bin", model)
    torch.save(foreign(model), tmp_path / "f.pt")
    for name in ("m.pt", "m.bin", "f.pt"):
        with pytest.raises(CheckpointError, match=r"1 of 288 weights in layers\.1\.attention\.compute_key\.weight"):
            read_checkpoint(tmp_path / name)


def test_finite_weights_whose_sum_overflows_are_not_refused(tmp_path):
    model = random_llama(**FIELDS)
    model.norm.weight.data.fill_(3e38)
    save_checkpoint(tmp_path / "m.pt", model.config, model.state_dict())
    assert read_checkpoint(tmp_path / "m.pt").state_dict["norm.weight"].max() == 3e38


@pytest.mark.parametrize("fields", [{"n_layers": 10**6}, {"max_seq_len": 10**8}, {"dim": 2**40}, {"vocab_size": 10**9}])
def test_sizes_are_checked_before_memory_is_taken(tmp_path, fields):
    content = foreign(random_llama(**FIELDS))
    content["model_args"] |= fields
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=str(next(iter(fields.values()))) + "|huge|positive whole"):
        read_checkpoint(tmp_path / "m.pt")


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    content = foreign(random_llama(**FIELDS))
    content["model"]["norm.weight"] = torch.zeros(1).expand(24)
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"norm\.weight is larger than what is stored"):
        read_checkpoint(tmp_path / "m.pt")


def test_compressed_parts_are_refused(tmp_path):
    torch.save(foreign(random_llama(**FIELDS)), tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as plain:
        parts = {entry.filename: plain.read(entry) for entry in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)
    with pytest.raises(CheckpointError, match="packed it again"):
        read_checkpoint(tmp_path / "z.pt")


def test_every_flipped_bit_of_the_shipped_model_is_found_or_harmless(tmp_path):
    whole, random = bytearray(SHIPPED.read_bytes()), np.random.default_rng(0)
    expected = read_checkpoint(SHIPPED).state_dict
    found = 0
    for bit in random.integers(0, 8 * len(whole), 100):
        whole[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m.pt").write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        try:
            state = read_checkpoint(tmp_path / "m.pt").state_dict
        except CheckpointError:
            found += 1
        else:  # in the padding between two parts, where nothing reads it
            assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert found == 100


def test_a_file_that_torch_wrote_without_checksums_loads(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(foreign(random_llama(**FIELDS)), tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_checkpoint(tmp_path / "m.pt").config.dim == 24


def test_a_checksum_beside_a_bin_is_checked(tmp_path):
    path = tmp_path / "m.bin"
    write_version_1(path, random_llama(**RMS, hidden_dim=40))
    write_sidecar(path)
    assert read_checkpoint(path).config.hidden_dim == 40
    damaged = bytearray(path.read_bytes())
    damaged[4000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is damaged: m\.bin\.sha256 beside it has another checksum"):
        read_checkpoint(path)


# diagnosis


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xef\xbb\xbf\n <!doctype HTML>\n<p>", "HTML page.* download it again"),
        (b"<HTML>", "HTML page"),
        (b"<?xml version='1.0'?><Error>", "XML page"),
        (json.dumps([1, 2]).encode(), "JSON.* name the file of the weights"),
        (b"hello world", "text file"),
        ("ganz anders, für immer".encode(), "text file"),
        (b"\x80\x04\x95" + bytes(20), "pickle that torch did not write"),
        (b"\x1f\x8b\x08" + bytes(50), "gunzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (np.random.default_rng(0).bytes(700), "begins with the bytes"),
    ],
)
def test_what_is_no_checkpoint_is_named_with_what_to_do(tmp_path, content, reason):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "file.pt")


def test_other_archives_and_tokenizers_are_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt", "w") as archive:
        archive.writestr("a.txt", "text")
    shutil.copy(TOKENIZER, tmp_path / "tokens.pt")
    for name, reason in {"script": "TorchScript", "plain": "a zip archive", "tokens": "--tokenizer"}.items():
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(tmp_path / f"{name}.pt")


def test_the_shipped_model_is_what_it_was():
    assert load_pretrained(str(SHIPPED)).config.vocab_size == 4096


def test_a_checksum_beside_a_tokenizer_is_checked(tmp_path):
    for name in ("stories.model", "stories.model.sha256"):
        shutil.copy(ROOT / "models" / name, tmp_path / name)
    assert load_tokenizer(tmp_path / "stories.model").n_words == 4096
    with open(tmp_path / "stories.model", "r+b") as file:
        file.seek(30_000)
        file.write(b"!")
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(tmp_path / "stories.model")


def test_a_flipped_bit_in_the_state_of_a_run_is_found(tmp_path):
    path = tmp_path / "last.pt"
    save_plain({"format": "min-llama-training", "model": {"a": torch.ones(1000)}, "optimizer": {}}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.ones(4).numpy().tobytes())
    content[place + 2] ^= 8
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum of its part data/0 is wrong; copy or download it again"):
        load_plain(path)


def test_a_classifier_with_weights_that_are_not_finite_is_refused(tmp_path):
    options = SimpleNamespace(num_labels=2, hidden_dropout_prob=0.0, pooling="last_token", pad_id=0)
    model = LlamaEmbeddingClassifier(options, random_llama(**FIELDS))
    model.classifier_head.bias.data[1] = float("nan")
    save_classifier(tmp_path / "best.pt", model, ClassifierInfo(["bad", "good"], TOKENIZER))
    with pytest.raises(CheckpointError, match=r"1 of 2 weights in classifier_head\.bias are not finite"):
        load_classifier(tmp_path / "best.pt")


def test_an_adder_of_bare_weights_is_tested_with_the_heads_of_a_flag(tmp_path, capsys):
    saved = read_checkpoint(ROOT / "addition_models" / "course_best" / "best_model.pth")
    torch.save(saved.state_dict, tmp_path / "bare.pt")
    words = f"--checkpoint {tmp_path}/bare.pt --test_file data/addition_test.txt --max_test_examples 3".split()
    assert addition_main(["test", *words]) == 2
    assert "give --n_heads N" in capsys.readouterr().err
    config = load_adder(tmp_path / "bare.pt", torch.device("cpu"), n_heads=4).config
    assert (config.n_heads, config.n_kv_heads, config.ffn_dim) == (4, 4, saved.config.ffn_dim)
