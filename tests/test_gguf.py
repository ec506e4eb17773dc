"""GGUF files in: weights and ids as the package `gguf` and transformers have them; one line for bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import run_llama
from engine.io.checkpoint import CheckpointError, read_checkpoint
from engine.io.vocabulary import read_vocabulary
from llama import Llama, load_pretrained
from tests.huggingface_folders import random_texts, write_tokenizer
from tests.oracles import random_llama
from tests.tiny import TOKENIZER
from tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf", reason="pip install -r requirements-gguf.txt")
LAYER = {
    "attention.compute_query": "attn_q", "attention.compute_key": "attn_k", "attention.compute_value": "attn_v",
    "attention.compute_output": "attn_output", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "tok_embeddings": "token_embd", "output": "output", "layers": "blk",
}  # fmt: skip
TOKENS = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(0))
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")  # most files "Q4_K_M" mix the last two
BLOCK = 256  # values in a block of Q4_K and Q6_K
SCALES = {"Q4_K": slice(0, 4), "Q6_K": slice(-2, None)}  # the bytes of a block's float16 scales


def their_name(name: str) -> str:
    for ours, theirs in LAYER.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return "output_norm.weight" if name == "norm.weight" else name


def write_gguf(path: Path, model: Llama, type_: str = "F32", vocabulary=None, **metadata) -> dict[str, np.ndarray]:
    """Writes a model with llama.cpp's own writer; returns what its own reader should dequantise."""
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_context_length(config.max_seq_len)
    writer.add_layer_norm_rms_eps(config.layer_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    for name, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"llama.{name.replace('__', '.')}", value)
    (vocabulary or sentencepiece)(writer)
    expected, kind = {}, gguf.GGMLQuantizationType[type_]
    for name, tensor in model.state_dict().items():
        if config.tie_embeddings and name == "output.weight":
            continue
        values = tensor.numpy()
        if values.ndim == 2 and type_ != "F32":
            packed = random_blocks(values.shape, type_) if type_ in SCALES else gguf.quantize(values, kind)
            writer.add_tensor(their_name(name), packed, raw_dtype=kind)
            values = gguf.dequantize(packed, kind)
        else:
            writer.add_tensor(their_name(name), values)
        expected[name] = values.reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def random_blocks(shape: tuple[int, ...], type_: str) -> np.ndarray:
    """Blocks of random bytes with small scales, which the package reads but does not write: (rows, bytes)."""
    draw, size = np.random.default_rng(shape[0]), gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_]][1]
    blocks = draw.integers(0, 256, (shape[0] * shape[1] // BLOCK, size), dtype=np.uint8)
    bytes_ = blocks[:, SCALES[type_]]
    bytes_[:] = draw.uniform(1e-4, 1e-3, (len(blocks), bytes_.shape[1] // 2)).astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def q4_k_values(block: np.ndarray) -> np.ndarray:
    """The 256 values of a Q4_K block, (144,) bytes, by ggml-quants.c (dequantize_row_q4_K, get_scale_min_k4)."""
    (scale, minimum), q, values = block[:4].view(np.float16).astype(float), block[4:16].astype(int), []
    for j in range(8):
        if j < 4:
            factor, offset = q[j] & 63, q[j + 4] & 63
        else:
            factor, offset = (q[j + 4] & 15) | (q[j - 4] >> 6 << 4), (q[j + 4] >> 4) | (q[j] >> 6 << 4)
        nibbles = block[16 + j // 2 * 32 : 48 + j // 2 * 32] >> (4 * (j % 2)) & 15
        values.append(scale * factor * nibbles - minimum * offset)
    return np.concatenate(values)


def q6_k_values(block: np.ndarray) -> np.ndarray:
    """The 256 values of a Q6_K block, (210,) bytes, by ggml-quants.c (dequantize_row_q6_K)."""
    low, high, factors = block[:128].astype(int), block[128:192].astype(int), block[192:208].view(np.int8)
    scale, values = float(block[208:].view(np.float16)[0]), []
    for j in range(8):  # 32 values each
        half, quarter = divmod(j, 4)
        start = half * 64 + quarter % 2 * 32
        four_bits = low[start : start + 32] >> (quarter // 2 * 4) & 15
        two_bits = high[half * 32 : half * 32 + 32] >> (2 * quarter) & 3
        values.append(scale * np.repeat(factors[2 * j : 2 * j + 2], 16) * ((four_bits | two_bits << 4) - 32))
    return np.concatenate(values)


def sentencepiece(writer) -> None:
    vocabulary = read_vocabulary(load_tokenizer(TOKENIZER))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary["pieces"])
    writer.add_token_scores(vocabulary["scores"])
    writer.add_token_types(vocabulary["types"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def byte_level(folder: Path, splitting: str = "smollm"):
    """The tokenizer of `write_tokenizer` as metadata."""
    import json

    write_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)

    def write(writer) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting)
        writer.add_token_list(tokens)
        writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)

    return write


def small(**fields) -> Llama:
    sizes = {"vocab_size": 4096, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 96}
    return random_llama(**(sizes | {"max_seq_len": 48, "norm_type": "rmsnorm", "rope_theta": 5000.0} | fields))


@pytest.mark.parametrize("type_", TYPES)
def test_weights_are_dequantised_as_by_the_package(tmp_path, type_):
    sizes = {"dim": BLOCK, "hidden_dim": BLOCK, "n_layers": 1} if type_ in SCALES else {}
    model = small(tie_embeddings=type_ != "F32", **sizes)
    expected = write_gguf(tmp_path / "model.gguf", model, type_)
    checkpoint = read_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.state_dict.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(checkpoint.state_dict[name].numpy(), values), name
    assert (checkpoint.config.rope_theta, checkpoint.config.max_seq_len) == (5000.0, 48)
    assert checkpoint.config.tie_embeddings == model.config.tie_embeddings


@pytest.mark.parametrize(("type_", "formula"), [("Q4_K", q4_k_values), ("Q6_K", q6_k_values)])
def test_blocks_of_256_values_are_what_the_format_says(tmp_path, type_, formula):
    model = small(dim=BLOCK, hidden_dim=BLOCK, n_layers=1)
    write_gguf(tmp_path / "model.gguf", model, type_)
    weight = read_checkpoint(tmp_path / "model.gguf").state_dict["layers.0.feed_forward.w1.weight"]
    blocks = random_blocks(weight.shape, type_)
    assert np.allclose(weight.numpy(), [formula(block) for block in blocks], rtol=1e-6, atol=1e-9)


def test_logits_are_those_of_transformers(tmp_path):
    import transformers

    write_gguf(tmp_path / "model.gguf", small(), "Q8_0")
    options = {"gguf_file": "model.gguf", "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        ours = load_pretrained(str(tmp_path / "model.gguf"))(TOKENS, targets=TOKENS)[0]
    assert (ours - expected).abs().max() < 2e-6 * expected.abs().max()


def test_ids_of_a_sentencepiece_vocabulary(tmp_path):
    write_gguf(tmp_path / "model.gguf", small(n_layers=1))
    ours, own = load_tokenizer(tmp_path / "model.gguf"), load_tokenizer(TOKENIZER)
    for text in random_texts(500):
        assert ours.encode(text, bos=True, eos=True) == own.encode(text, bos=True, eos=True)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 3)


def test_ids_of_a_byte_level_vocabulary(tmp_path):
    write_gguf(tmp_path / "model.gguf", small(vocab_size=320, n_layers=1), vocabulary=byte_level(tmp_path))
    ours, own = load_tokenizer(tmp_path / "model.gguf"), load_tokenizer(tmp_path / "tokenizer.json")
    for text in random_texts(500):
        assert ours.encode(text, bos=True, eos=False) == own.encode(text, bos=True, eos=False)
        assert ours.decode(ours.encode(text, bos=False, eos=False)) == text
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (1, 2, 2, False)


def test_a_file_generates_and_goes_out_as_a_folder(tmp_path, capsys):
    write_gguf(tmp_path / "model.gguf", small(), "Q4_1")
    texts = []
    export = ["--option", "export", "--pretrained-model-path", str(tmp_path / "model.gguf"), "--threads", "1"]
    assert run_llama.main([*export, "--out", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "model.gguf", tmp_path / "out"):
        capsys.readouterr()
        flags = ["--prompt", "Ann had", "--temperature", "0", "--max_new_tokens", "15", "--threads", "1"]
        assert run_llama.main(["--option", "generate", "--pretrained-model-path", str(path), *flags]) == 0
        texts.append(capsys.readouterr().out.split("Temperature is 0.0")[1].split("-----")[0])
    assert texts[0] == texts[1] and "Ann had" in texts[0]


REFUSED = {
    "rope.scaling.type": {"rope__scaling__type": "linear"},
    "expert_count": {"expert_count": 4},
    "rope.dimension_count 8 of 16": {"rope__dimension_count": 8},
    "cannot be split": {"attention__head_count": 5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_feature_that_is_not_ours_is_refused_by_its_name(tmp_path, name):
    model = small(n_layers=1)
    if name == "cannot be split":
        model.config.n_heads = 5
        write_gguf(tmp_path / "model.gguf", model)
    else:
        write_gguf(tmp_path / "model.gguf", model, **REFUSED[name])
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path / "model.gguf")


def test_bad_files_are_one_line(tmp_path, capsys):
    write_gguf(tmp_path / "model.gguf", small(n_layers=1))
    data = (tmp_path / "model.gguf").read_bytes()
    for cut in (10, 5000, len(data) - 1000):
        (tmp_path / "cut.gguf").write_bytes(data[:cut])
        flags = ["--pretrained-model-path", str(tmp_path / "cut.gguf"), "--threads", "1"]
        assert run_llama.main(["--option", "generate", *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    other = byte_level(tmp_path, splitting="surprise")
    write_gguf(tmp_path / "other.gguf", small(vocab_size=320, n_layers=1), vocabulary=other)
    with pytest.raises(ValueError, match="pre 'surprise'"):
        load_tokenizer(tmp_path / "other.gguf")
