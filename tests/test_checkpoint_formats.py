"""Checkpoints of other programs load to the same logits; what weights do not say is asked for."""

from __future__ import annotations

import argparse
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch

from engine.io.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from llama import Llama, from_checkpoint
from rope import rotation_table
from run_llama import main
from tests.oracles import random_llama
from tests.test_checkpoint import FIELDS, foreign, logits, model_args, write_bin
from tests.tiny import CONFIG, TOKENIZER, write_tiny_checkpoint

RMS = FIELDS | {"norm_type": "rmsnorm"}


def loaded(path, **unsaid) -> Llama:
    return from_checkpoint(read_checkpoint(path, **unsaid))


def new_header(model: Llama, version: int, group: int = 0) -> bytes:
    config = model.config
    sizes = config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size
    head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, config.max_seq_len, config.tie_embeddings)
    head += struct.pack("<i", group) if group else b""
    return head.ljust(256, b"\0")


def groups_of(model: Llama) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Norms and matrices in the order of llama2.c's versions 1 and 2."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layers = range(model.config.n_layers)
    norms = [state[f"layers.{i}.{norm}_norm.weight"] for norm in ("attention", "ffn") for i in layers]
    matrices = [state["tok_embeddings.weight"]]
    for part in ("query", "key", "value", "output"):
        matrices += [state[f"layers.{i}.attention.compute_{part}.weight"] for i in layers]
    for part in ("w1", "w2", "w3"):
        matrices += [state[f"layers.{i}.feed_forward.{part}.weight"] for i in layers]
    matrices += [] if model.config.tie_embeddings else [state["output.weight"]]
    return [*norms, state["norm.weight"]], matrices


def write_version_1(path, model: Llama) -> None:
    norms, matrices = groups_of(model)
    path.write_bytes(new_header(model, 1) + b"".join(array.astype("<f4").tobytes() for array in norms + matrices))


def write_version_2(path, model: Llama, group: int) -> list[np.ndarray]:
    """Writes symmetric int8 groups; returns the matrices as a reader should see them."""
    norms, matrices = groups_of(model)
    content, expected = new_header(model, 2, group) + b"".join(array.astype("<f4").tobytes() for array in norms), []
    for matrix in matrices:
        rows = matrix.reshape(-1, group)
        scales = (np.abs(rows).max(axis=1) / 127).astype("<f4")
        values = np.round(rows / scales[:, None]).astype(np.int8)
        content += values.tobytes() + scales.tobytes()
        expected.append((values * scales[:, None]).astype(np.float32).reshape(matrix.shape))
    path.write_bytes(content)
    return expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_llama2cs_version_1(tmp_path, tied, name):
    model = random_llama(**RMS, tie_embeddings=tied, hidden_dim=40)
    write_version_1(tmp_path / name, model)
    assert torch.equal(logits(loaded(tmp_path / name, norm="rmsnorm")), logits(model))


@pytest.mark.parametrize(("tied", "group"), [(True, 8), (False, 4), (False, 3)])
def test_llama2cs_version_2(tmp_path, tied, group):
    model = random_llama(**RMS, tie_embeddings=tied, hidden_dim=40)
    expected = write_version_2(tmp_path / "model.bin", model, group)
    read = loaded(tmp_path / "model.bin", norm="rmsnorm")
    for actual, array in zip(groups_of(read)[1], expected, strict=True):
        assert np.array_equal(actual, array)
    assert torch.allclose(logits(read), logits(model), atol=0.3) and not torch.equal(logits(read), logits(model))


def test_a_version_0_called_pt_and_a_torch_file_called_bin_are_read_by_content(tmp_path):
    model = random_llama(**RMS)
    write_bin(tmp_path / "legacy.pt", model)
    torch.save(foreign(model), tmp_path / "torch.bin")
    for name in ("legacy.pt", "torch.bin"):
        assert torch.equal(logits(loaded(tmp_path / name, norm="rmsnorm")), logits(model))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (struct.pack("<Ii7iB", 0x616B3432, 3, 24, 40, 2, 4, 2, 300, 20, 1), "version 3; 0, 1 and 2 are supported"),
        (struct.pack("<Ii7iB", 0x616B3432, 1, 24, 40, 10**6, 4, 2, 300, 20, 1), "cut short or damaged"),
        (struct.pack("<Ii7iB", 0x616B3432, 1, 24, 40, 2, 5, 2, 300, 20, 1), "damaged header"),
        (struct.pack("<Ii7iBi", 0x616B3432, 2, 24, 40, 2, 4, 2, 300, 20, 1, 0), "cut short or damaged"),
        (struct.pack("<7i", 24, 40, 2, 4, 2, 300, 10**6), "cut short or damaged"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, message):
    (tmp_path / "model.bin").write_bytes(header.ljust(3000, b"\0"))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "model.bin")


def test_a_cut_bin_is_named_wherever_it_ends(tmp_path):
    model = random_llama(**RMS, hidden_dim=40)
    write_version_1(tmp_path / "model.bin", model)
    whole = (tmp_path / "model.bin").read_bytes()
    for length in (4, 100, 255, 256, 5000, len(whole) - 1):
        (tmp_path / "cut.bin").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            read_checkpoint(tmp_path / "cut.bin")


# shape


def bare(model: Llama) -> dict:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "output.weight"}


WRAPPED = {
    "bare": lambda model: bare(model),
    "state_dict": lambda model: {"state_dict": bare(model), "epoch": 3},
    "model_state_dict": lambda model: {"model_state_dict": bare(model), "loss": 0.1},
    "args": lambda model: {"model": bare(model), "args": argparse.Namespace(lr=1e-3, seed=1)},
    "config": lambda model: {"state_dict": bare(model), "config": {"dim": 24, "colour": "red"}},
    "counter": lambda model: bare(model) | {"step": 100},
}


@pytest.mark.parametrize("fields", [{}, {"hidden_dim": 40}, {"n_kv_heads": 4}, {"head_size": 10}], ids=str)
@pytest.mark.parametrize("form", WRAPPED)
def test_the_shape_comes_from_the_weights_and_heads_from_a_flag(tmp_path, form, fields):
    model = random_llama(**FIELDS | fields | {"max_seq_len": 1024})
    torch.save(WRAPPED[form](model), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"does not say how many heads.* --n_heads N") as error:
        read_checkpoint(tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    checkpoint = read_checkpoint(tmp_path / "model.pt", n_heads=4)
    assert torch.equal(logits(from_checkpoint(checkpoint)), logits(model))
    assert len(checkpoint.notes) == 1 and "4 heads (--n_heads), theta 10000 (--rope_theta)" in checkpoint.notes[0]
    with pytest.raises(CheckpointError, match="cannot be split into 7 heads"):
        read_checkpoint(tmp_path / "model.pt", n_heads=7)


def test_theta_and_norm_are_taken_from_flags(tmp_path):
    model = random_llama(**RMS, rope_theta=500.0)
    torch.save(bare(model), tmp_path / "model.pt")
    read = loaded(tmp_path / "model.pt", norm="rmsnorm", n_heads=4, rope_theta=500.0)
    assert torch.equal(logits(read), logits(model))


@pytest.mark.parametrize("table", ["inv_freq", "freqs_sin"])
def test_position_tables_say_heads_theta_and_positions(tmp_path, table):
    model = random_llama(**FIELDS, rope_theta=500000.0)
    sines, frequencies = rotation_table(6, 20, 5e5)[1], 5e5 ** (-torch.arange(0, 6, 2) / 6)
    tables = {"rope.inv_freq": frequencies} if table == "inv_freq" else {"freqs_sin": sines, "freqs_cos": sines}
    torch.save(bare(model) | tables, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert (checkpoint.config.n_heads, checkpoint.config.rope_theta) == (4, 5e5)
    assert checkpoint.config.max_seq_len == (1024 if table == "inv_freq" else 20)
    assert torch.equal(logits(from_checkpoint(checkpoint)), logits(model))


def test_a_flag_that_contradicts_the_checkpoint_is_refused(tmp_path):
    torch.save(foreign(random_llama(**FIELDS)), tmp_path / "model.pt")
    save_checkpoint(tmp_path / "own.pt", CONFIG, Llama(CONFIG).state_dict())
    for name in ("model.pt", "own.pt"):
        with pytest.raises(CheckpointError, match=r"--n_heads 2: .* has 4"):
            read_checkpoint(tmp_path / name, n_heads=2)


def test_a_table_without_kv_heads_has_one_per_head(tmp_path):
    model = random_llama(**FIELDS | {"n_kv_heads": 4})
    content = foreign(model)
    content["model_args"] |= {"n_kv_heads": None}
    torch.save(content, tmp_path / "none.pt")
    del content["model_args"]["n_kv_heads"]
    torch.save(content, tmp_path / "missing.pt")
    for name in ("none.pt", "missing.pt"):
        assert torch.equal(logits(loaded(tmp_path / name)), logits(model))


# names


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"model.module._orig_mod.{name}",
        lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace("attention.", "attention.module."),
        lambda name: name.replace("layers.", "layers._fsdp_wrapped_module.").replace("w1.", "w1._orig_mod."),
        lambda name: f"model.{name}".replace(".weight", "._checkpoint_wrapped_module.weight"),
    ],
)
def test_wrappers_are_dropped_wherever_they_stand(tmp_path, wrap):
    model = random_llama(**FIELDS)
    state = {wrap(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "model_args": model_args(model.config)}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert checkpoint.notes == [] and torch.equal(logits(from_checkpoint(checkpoint)), logits(model))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    state = random_llama(**FIELDS).state_dict()
    state |= {"module.norm.weight": torch.zeros(24)}
    torch.save({"model": state, "config": FIELDS}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"two tensors for norm\.weight, one of them module\.norm\.weight"):
        read_checkpoint(tmp_path / "model.pt")


def test_derived_buffers_are_dropped_with_one_line(tmp_path):
    content = foreign(random_llama(**FIELDS))
    content["model"] |= {f"layers.{i}.attention.causal_mask": torch.ones(20, 20).tril() for i in range(2)}
    content["model"] |= {"rope.freqs": torch.ones(3), "layers.0.attention.look": torch.ones(4, 4, dtype=torch.bool)}
    torch.save(content, tmp_path / "model.pt")
    notes = read_checkpoint(tmp_path / "model.pt").notes
    assert len(notes) == 1 and "dropped 4 tensors such as layers.0.attention.causal_mask; they are computed" in notes[0]


def test_the_courses_classifier_gives_its_backbone(tmp_path):
    model = random_llama(**FIELDS)
    state = {f"llama.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"classifier_head.weight": torch.zeros(5, 24), "classifier_head.bias": torch.zeros(5)}
    content = {"model": state, "args": argparse.Namespace(lr=2e-5), "optim": {}}
    torch.save(content | {"model_config": argparse.Namespace(num_labels=5, option="finetune")}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt", n_heads=4)
    assert torch.equal(logits(from_checkpoint(checkpoint)), logits(model))
    assert "dropped 2 tensors such as classifier_head.weight; only the backbone" in checkpoint.notes[0]


# padding and tokenizers


def padded(path, rows: int, config_rows: int | None = None) -> Llama:
    """A tiny model whose embedding has `rows` further rows, which would win every draw."""
    model = write_tiny_checkpoint(path)
    content = torch.load(path, weights_only=True)
    weight = content["model"]["tok_embeddings.weight"]
    content["model"]["tok_embeddings.weight"] = torch.cat([weight, 1e3 * weight[-1:].expand(rows, -1)])
    content["config"]["vocab_size"] = config_rows or len(weight) + rows
    if config_rows:
        content = {"model": content["model"], "model_args": content["config"]}
    torch.save(content, path)
    return model


def test_padding_beyond_the_tokenizer_loads_and_is_never_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    padded(tmp_path / "padded.pt", 64)
    model = write_tiny_checkpoint(tmp_path / "plain.pt")
    assert model.config.vocab_size == 4096
    texts = {}
    for name in ("padded", "plain"):
        words = f"--option generate --pretrained-model-path {name}.pt --prompt Once --max_new_tokens 20 --threads 1"
        assert main(words.split()) == 0
        out = capsys.readouterr().out
        texts[name] = [line for line in out.splitlines() if line.startswith("Once")]
        assert ("padded.pt: dropped 64 of 4160 tokens: padding" in out) == (name == "padded")
    assert texts["padded"] == texts["plain"] and len(texts["plain"]) == 2


def test_an_embedding_larger_than_its_configuration_says_is_padding(tmp_path):
    model = padded(tmp_path / "m.pt", 32, config_rows=4096)
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.config.vocab_size == 4096
    assert torch.equal(checkpoint.state_dict["tok_embeddings.weight"], model.tok_embeddings.weight)
    padded(tmp_path / "m.pt", 600, config_rows=4096)
    with pytest.raises(CheckpointError, match=r"is \(4696, 32\), not \(4096, 32\)"):
        read_checkpoint(tmp_path / "m.pt")


def test_the_tokenizer_of_a_moved_checkpoint_is_found_beside_it(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    write_tiny_checkpoint(tmp_path / "here" / "deep" / "m.pt", tokenizer=tmp_path / "here" / "words.model")
    shutil.copy(tmp_path / "here" / "deep" / "m.pt", tmp_path / "there" / "m.pt")
    for name in ("words.model", "m.model"):
        shutil.copy(TOKENIZER, tmp_path / "there" / name)
        assert read_checkpoint(tmp_path / "there" / "m.pt").tokenizer == tmp_path / "there" / name
        (tmp_path / "there" / name).unlink()
    assert str(read_checkpoint(tmp_path / "there" / "m.pt").tokenizer).endswith("words.model")


# public reports of files that other programs could not read


def old_numpy(content: dict, path) -> None:
    """Saves `content` as NumPy 1.x does, whose functions have other names."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"numpy._core.", b"numpy.core.") if name.endswith(".pkl") else part)


class ModelArgs(argparse.Namespace):
    """A configuration class of another program."""


REPORTS = {
    "rope.freqs in Meta's state dict (karpathy/llama2.c 266)": lambda model: (
        bare(model) | {"rope.freqs": 1e4 ** (-torch.arange(0, 6, 2) / 6)}
    ),
    "a vocabulary of -1 (ggml-org/llama.cpp 3900)": lambda model: foreign(model) | {
        "model_args": model_args(model.config) | {"vocab_size": -1}
    },
    "flags and NumPy arrays (facebookresearch/fairseq 5603)": lambda model: foreign(model) | {
        "args": argparse.Namespace(seed=1), "history": np.arange(6.0).reshape(2, 3)
    },
    "NumPy scalars among the fields (nerfstudio-project/nerfstudio 3702)": lambda model: foreign(model) | {
        "step": np.float64(3.5), "model_args": {n: np.int64(v) for n, v in model_args(model.config).items() if v}
    },
    "a configuration object (a ModelArgs of another program)": lambda model: {
        "model": bare(model), "config": ModelArgs(**model_args(model.config))
    },
}  # fmt: skip


@pytest.mark.parametrize("save", [torch.save, old_numpy], ids=["NumPy 2", "NumPy 1"])
@pytest.mark.parametrize("report", REPORTS)
def test_files_of_public_reports_load(tmp_path, report, save):
    model = random_llama(**FIELDS)
    save(REPORTS[report](model), tmp_path / "model.pt")
    assert torch.equal(logits(loaded(tmp_path / "model.pt")), logits(model))
