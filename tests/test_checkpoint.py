"""Every format gives the same model back, and nothing else is let in."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import struct
import types

import numpy as np
import pytest
import torch

from config import LlamaConfig
from engine.io import checkpoint
from engine.io.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from llama import Llama, load_pretrained
from tests.oracles import random_llama

FIELDS = {"vocab_size": 300, "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 20}
LLAMA2C = {"compute_query": "wq", "compute_key": "wk", "compute_value": "wv", "compute_output": "wo"}
TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Llama) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, targets=TOKENS)[0]


def model_args(config: LlamaConfig) -> dict:
    """The fields that llama2.c's training script stores."""
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "max_seq_len", "dropout")
    return {name: getattr(config, name) for name in names}


def foreign(model: Llama, prefix: str = "", llama2c: bool = False) -> dict:
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in LLAMA2C.items() if llama2c else ():
            name = name.replace(ours, theirs)
        state[prefix + name] = tensor
    return {"model": state, "model_args": model_args(model.config)}


VARIANTS = [{}, {"norm_type": "rmsnorm"}, {"tie_embeddings": False}, {"causal": False}]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_own_format_round_trip(tmp_path, fields):
    model = random_llama(**(FIELDS | fields))
    save_checkpoint(tmp_path / "own.pt", model.config, model.state_dict(), tmp_path / "sub" / "t.model")
    found = read_checkpoint(tmp_path / "own.pt")
    assert found.config == model.config and found.notes == []
    assert found.tokenizer == tmp_path / "sub" / "t.model"
    assert torch.equal(logits(load_pretrained(str(tmp_path / "own.pt"))), logits(model))


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("llama2c", [False, True])
def test_the_courses_and_llama2cs_names(tmp_path, prefix, llama2c):
    model = random_llama(**FIELDS)
    torch.save(foreign(model, prefix, llama2c), tmp_path / "model.pt")
    loaded = load_pretrained(str(tmp_path / "model.pt"))
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training and loaded.output.weight is loaded.tok_embeddings.weight


def test_rmsnorm_weights_get_zero_biases_and_one_line_says_so(tmp_path, capsys):
    model = random_llama(**FIELDS, norm_type="rmsnorm")
    torch.save(foreign(model, llama2c=True), tmp_path / "model.pt")
    as_course = load_pretrained(str(tmp_path / "model.pt"))
    assert capsys.readouterr().out.count("\n") == 1
    assert as_course.config.norm_type == "layernorm"
    assert all((tensor == 0).all() for name, tensor in as_course.state_dict().items() if name.endswith("bias"))
    as_trained = load_pretrained(str(tmp_path / "model.pt"), norm="rmsnorm")
    assert capsys.readouterr().out == ""
    assert torch.equal(logits(as_trained), logits(model))
    assert not torch.equal(logits(as_course), logits(model))


def write_bin(path, model: Llama) -> None:
    """llama2.c's legacy layout, written out in the order of its export script."""
    config, state = model.config, model.state_dict()
    vocab = config.vocab_size if config.tie_embeddings else -config.vocab_size
    heads = config.n_heads, config.n_kv_heads
    content = struct.pack("7i", config.dim, config.ffn_dim, config.n_layers, *heads, vocab, config.max_seq_len)
    layers = [f"layers.{index}." for index in range(config.n_layers)]
    names = ["tok_embeddings.weight"]
    names += [f"{layer}attention_norm.weight" for layer in layers]
    for part in ("query", "key", "value", "output"):
        names += [f"{layer}attention.compute_{part}.weight" for layer in layers]
    names += [f"{layer}ffn_norm.weight" for layer in layers]
    for part in ("w1", "w2", "w3"):
        names += [f"{layer}feed_forward.{part}.weight" for layer in layers]
    arrays = [state[name].numpy() for name in [*names, "norm.weight"]]
    arrays += [np.full((config.max_seq_len, config.head_dim // 2), 7.0)] * 2  # rotation tables: must not matter
    arrays += [] if config.tie_embeddings else [state["output.weight"].numpy()]
    path.write_bytes(content + b"".join(array.astype("<f4").tobytes() for array in arrays))


@pytest.mark.parametrize("tied", [True, False])
def test_a_bin_gives_the_logits_of_the_pt(tmp_path, tied):
    model = random_llama(**FIELDS, norm_type="rmsnorm", tie_embeddings=tied, hidden_dim=40)
    write_bin(tmp_path / "model.bin", model)
    save_checkpoint(tmp_path / "model.pt", model.config, model.state_dict())
    from_bin = load_pretrained(str(tmp_path / "model.bin"), norm="rmsnorm")
    from_pt = load_pretrained(str(tmp_path / "model.pt"))
    assert torch.equal(logits(from_bin), logits(from_pt))
    as_course = load_pretrained(str(tmp_path / "model.bin"))
    assert as_course.config.norm_type == "layernorm"


def test_tensors_are_memory_mapped(tmp_path, monkeypatch):
    model = random_llama(**FIELDS)
    save_checkpoint(tmp_path / "own.pt", model.config, model.state_dict())
    seen, load = {}, torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: seen.update(options) or load(path, **options))
    read_checkpoint(tmp_path / "own.pt")
    assert seen["mmap"] is True and seen["weights_only"] is True


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    evil = {"model": Evil(tmp_path / "was here"), "model_args": {}}
    torch.save(evil, tmp_path / "new.pt")
    torch.save(evil, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(evil))
    for name in ("new.pt", "old.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "was here").exists()


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    model = random_llama(**FIELDS)
    save_checkpoint(tmp_path / "own.pt", model.config, model.state_dict())
    write_bin(tmp_path / "own.bin", random_llama(**FIELDS, norm_type="rmsnorm"))
    for name in ("own.pt", "own.bin"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 3, 20, 27, 500, len(whole) // 2, len(whole) - 1):
            (tmp_path / f"cut-{name}").write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match="cut-own"):
                read_checkpoint(tmp_path / f"cut-{name}")


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 no zip", b"\x80\x02", b"\0" * 1000], ids=repr)
def test_foreign_files_are_refused(tmp_path, content):
    for name in ("file.pt", "file.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="file"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, {"model": {}}, torch.zeros(3)], ids=repr)
def test_torch_files_of_something_else_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is not a checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


def damaged(change) -> dict:
    content = foreign(random_llama(**FIELDS))
    change(content)
    return content


DAMAGE = {
    r"lacks .*layers\.1\.ffn_norm\.weight": lambda c: c["model"].pop("layers.1.ffn_norm.weight"),
    r"lacks .*norm\.bias": lambda c: c["model"].pop("norm.bias"),
    r"surprise\.weight": lambda c: c["model"].update({"surprise.weight": torch.zeros(1)}),
    r"layers\.0\.feed_forward\.w1\.weight": lambda c: c["model"].update(
        {"layers.0.feed_forward.w1.weight": torch.zeros(3, 3)}
    ),
    r"unknown configuration field\(s\): colour": lambda c: c["model_args"].update({"colour": 3}),
    r"cannot be split": lambda c: c["model_args"].update({"n_heads": 5}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_missing_or_unexpected_tensor_or_field_is_named(tmp_path, message):
    torch.save(damaged(DAMAGE[message]), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "model.pt")


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = random_llama(**FIELDS)
    save_checkpoint(tmp_path / "own.pt", model.config, model.state_dict())

    def interrupted(content, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_plain({}, tmp_path / "own.pt")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["own.pt"]
    assert torch.equal(logits(load_pretrained(str(tmp_path / "own.pt"))), logits(model))


def course_checkpoint(**more) -> dict:
    """What the course's `addition_run.py` saves: states of three generators, flags, a config and its buffers."""
    model = random_llama(**ADDER)
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"_orig_mod.layers.{i}.attention.causal_mask": torch.ones(4, 4).tril().bool() for i in range(2)}
    content = {"model": state, "optim": {"state": {}}, "args": argparse.Namespace(lr=1e-3, dim=8, save_dir="x")}
    content |= {"model_config": types.SimpleNamespace(**ADDER), "system_rng": random.getstate()}
    return content | {"numpy_rng": np.random.get_state(), "torch_rng": torch.get_rng_state()} | more


ADDER = {"vocab_size": 13, "dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 20}


def test_the_courses_own_checkpoint_loads(tmp_path):
    torch.save(course_checkpoint(), tmp_path / "course.pt")
    checkpoint = read_checkpoint(tmp_path / "course.pt")
    assert (checkpoint.config.dim, checkpoint.config.n_kv_heads) == (8, 1)
    expected = random_llama(**ADDER).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.state_dict.items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "model."])
def test_wrappers_and_derived_buffers_are_dropped(tmp_path, wrapper):
    state = {f"{wrapper}{name}": tensor for name, tensor in random_llama(**ADDER).state_dict().items()}
    state |= {f"{wrapper}freqs_cos": torch.zeros(3), f"{wrapper}layers.0.attention.rope.inv_freq": torch.zeros(3)}
    torch.save({"model": state, "config": ADDER}, tmp_path / "wrapped.pt")
    assert read_checkpoint(tmp_path / "wrapped.pt").config.n_heads == 2


class Stranger:
    """Data or code of somebody else."""


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("thing", [Stranger(), Bomb()], ids=["class", "code"])
def test_other_classes_are_refused_by_name_and_run_nothing(tmp_path, monkeypatch, thing):
    monkeypatch.chdir(tmp_path)
    torch.save(course_checkpoint(extra=thing), "foreign.pt")
    name = "Stranger" if isinstance(thing, Stranger) else "system"
    with pytest.raises(CheckpointError, match=rf"it contains .*{name}.*save model.state_dict"):
        read_checkpoint("foreign.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b'{"model": 1}', "JSON"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 80, "safetensors"),
        (bytes(range(200, 256)) * 20, "cut short"),
        (b"", "cut short"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path, content, reason):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "content",
    [{"model": None, "model_args": ADDER}, {"model": {1: torch.ones(2)}, "config": ADDER}, {"model": {}, "config": 3},
     {"model": {}, "model_args": {"dim": "wide"}}, {"model": {"a": "b"}, "args": argparse.Namespace(dim=8)}],
)  # fmt: skip
def test_junk_inside_a_checkpoint_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / "junk.pt")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "junk.pt")
    assert "\n" not in str(error.value)
