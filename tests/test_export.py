"""`--option export`: transformers, peft and llama2.c's readers agree with us, and what comes back is what went out."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import read_checkpoint, save_checkpoint
from engine.io.files import read_json_object
from engine.io.tokenizer_export import write_tokenizer
from engine.io.word_tokenizer import word_vocabulary
from tests.huggingface_folders import random_texts, write_folder
from tests.oracles import random_llama
from tests.tiny import ROOT, TOKENIZER
from tokenizer import BinTokenizer, Tokenizer, load_tokenizer

FIELDS = {"vocab_size": 4096, "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 40}
VARIANTS = {
    "layernorm": {},
    "rmsnorm": {"norm_type": "rmsnorm"},
    "untied": {"norm_type": "rmsnorm", "tie_embeddings": False, "n_kv_heads": 4},
    "untied layernorm": {"tie_embeddings": False, "layer_norm_eps": 1e-6},
    "head size": {"norm_type": "rmsnorm", "head_size": 8, "rope_theta": 500.0},
    "sliding window": {"norm_type": "rmsnorm", "sliding_window": 7},
    "one head": {"n_heads": 1, "n_kv_heads": 1, "hidden_dim": 40},
}
TOKENS = torch.randint(3, 4000, (2, 30), generator=torch.Generator().manual_seed(0))
SHIPPED = ROOT / "models" / "stories.pt"


def export(*flags: object) -> int:
    return run_llama.main(["--option", "export", "--threads", "1", *map(str, flags)])


def refusal(capsys, *flags: object) -> str:
    capsys.readouterr()
    assert export(*flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def write_model(path, **fields):
    """A random model over the shipped tokenizer."""
    model = random_llama(**(FIELDS | fields))
    save_checkpoint(path, model.config, model.state_dict(), TOKENIZER)
    return model


def same_tensors(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_gives_the_same_logits_and_the_weights_come_back(tmp_path, name):
    import transformers

    model = write_model(tmp_path / "model.pt", dropout=0.1, **VARIANTS[name])
    assert export("--pretrained-model-path", tmp_path / "model.pt", "--out", tmp_path / "out") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model.eval()(TOKENS, targets=TOKENS)[0]
        assert (theirs(TOKENS).logits - expected).abs().max() < 2e-6 * expected.abs().max()
    before, after = read_checkpoint(tmp_path / "model.pt"), read_checkpoint(tmp_path / "out")
    same_tensors(before.state_dict, after.state_dict)
    assert after.config.dropout == 0.1 and after.config.rope_theta == before.config.rope_theta


def test_the_shipped_model_writes_the_same_text_everywhere(tmp_path, capsys):
    import transformers

    out = tmp_path / "stories"
    assert export("--out", out) == 0
    model, tokenizer = (
        kind.from_pretrained(out) for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    ids = tokenizer("Ben had a red hat", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=30)[0], skip_special_tokens=True)
    flags = ["--option", "generate", "--prompt", "Ben had a red hat", "--temperature", "0", "--max_new_tokens", "30"]
    for path in (SHIPPED, out):
        capsys.readouterr()
        assert run_llama.main([*flags, "--threads", "1", "--pretrained-model-path", str(path)]) == 0
        assert text in capsys.readouterr().out
    same_tensors(read_checkpoint(SHIPPED).state_dict, read_checkpoint(out).state_dict)
    card = (out / "README.md").read_text("utf-8")
    facts = ("license: mit", "TinyStories", "6,955,520 parameters", "| bits per byte | 0.6045 |", 'option = "pretrain"')
    assert [fact for fact in facts if fact not in card] == []
    assert "Once upon a time" in card.split("## Sample")[1]
    assert read_json_object(out / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def test_exported_ids_are_those_of_sentencepiece(tmp_path):
    import transformers

    write_tokenizer(tmp_path, load_tokenizer(TOKENIZER), 1024)
    ours, inner = Tokenizer(None, str(TOKENIZER)), load_tokenizer(tmp_path / "tokenizer.json")
    texts = random_texts(10_000)
    ids = [ours.encode(text, bos=True, eos=False) for text in texts]
    assert [encoding.ids for encoding in inner.inner.encode_batch(texts)] == ids
    for text, row in zip(texts[:500], ids, strict=False):
        assert inner.encode(text, bos=True, eos=False) == row and inner.decode(row) == ours.decode(row)
    assert (inner.bos_id, inner.eos_id, inner.pad_id, inner.n_words) == (1, 2, 3, 4096)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, row in zip(texts[:200], ids, strict=False):
        assert theirs(text)["input_ids"] == row
        assert theirs.decode(row, skip_special_tokens=True) == ours.decode(row).replace("\0", "")  # 0 is padding


def test_a_hugging_face_folder_goes_out_again(tmp_path):
    import transformers

    theirs = write_folder(tmp_path / "in")
    assert export("--pretrained-model-path", tmp_path / "in", "--out", tmp_path / "out", "--licence", "mit") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    same_tensors(theirs.state_dict(), again.state_dict())
    first, second = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("in", "out"))
    for text in random_texts(200):
        assert first(text)["input_ids"] == second(text)["input_ids"]
    assert first.eos_token == second.eos_token and first.pad_token_id == second.pad_token_id


REFUSED = {
    "position_embedding_type 'alibi'": {"position_embedding_type": "alibi"},
    "ffn_type 'gelu'": {"ffn_type": "gelu"},
    "norm_position 'post'": {"norm_position": "post"},
    "causal False": {"causal": False},
    "head_size 8": {"head_size": 8},
    "sliding_window 5": {"sliding_window": 5},
    "attention_type 'differential'": {"attention_type": "differential"},
    "gated_heads True": {"gated_heads": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_folder_cannot_hold_is_refused_by_its_name(tmp_path, capsys, name):
    write_model(tmp_path / "model.pt", **REFUSED[name])
    assert name in refusal(capsys, "--pretrained-model-path", tmp_path / "model.pt", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_flags_are_one_line(tmp_path, capsys):
    write_model(tmp_path / "model.pt")
    model = ("--pretrained-model-path", tmp_path / "model.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert "is not empty" in refusal(capsys, *model, "--out", tmp_path / "full")
    assert export(*model, "--out", tmp_path / "full", "--overwrite") == 0
    assert "is a file" in refusal(capsys, *model, "--out", tmp_path / "model.pt")
    (tmp_path / "words.json").write_text(word_vocabulary(["a b c"], 10), "utf-8")
    save_checkpoint(tmp_path / "words.pt", *small(tmp_path), tmp_path / "words.json")
    words = ("--pretrained-model-path", tmp_path / "words.pt", "--out", tmp_path / "new")
    assert "must be a SentencePiece model" in refusal(capsys, *words)
    with pytest.raises(SystemExit):
        export(*model, "--out", tmp_path / "new", "--dry_run")
    with pytest.raises(SystemExit):
        export(*model, "--out", tmp_path / "new", "--push", "name")


def small(tmp_path) -> tuple[LlamaConfig, dict]:
    model = random_llama(**(FIELDS | {"vocab_size": 7}))
    return model.config, model.state_dict()


def test_llama2c_files_hold_the_model(tmp_path):
    model = write_model(tmp_path / "model.pt", norm_type="rmsnorm", dim=32, hidden_dim=48)
    out = tmp_path / "out"
    assert export("--format", "llama2c", "--pretrained-model-path", tmp_path / "model.pt", "--out", out) == 0
    back = read_checkpoint(out / "model.bin", norm="rmsnorm")
    same_tensors(read_checkpoint(tmp_path / "model.pt").state_dict, back.state_dict)
    own, binary = Tokenizer(None, str(TOKENIZER)), BinTokenizer(None, str(out / "tokenizer.bin"))
    for text in (text.replace("\u2581", "") for text in random_texts(300)):  # llama2.c does not take it for a space
        assert binary.encode(text, bos=True, eos=False) == own.encode(text, bos=True, eos=False)
    assert (len(binary.pieces), binary.scores[-1]) == (4096, own.sp_model.get_score(4095))
    data = (out / "model_q80.bin").read_bytes()
    assert struct.unpack_from("<Ii7iBi", data) == (0x616B3432, 2, 32, 48, 2, 4, 2, 4096, 40, 1, 16)
    norms = np.frombuffer(data, np.float32, 5 * 32, 256)
    assert np.array_equal(norms[:32], model.layers[0].attention_norm.weight.detach().numpy())
    assert np.array_equal(norms[64:96], model.layers[0].ffn_norm.weight.detach().numpy())
    count, start = 4096 * 32, 256 + 4 * 5 * 32
    quantized = np.frombuffer(data, np.int8, count, start).reshape(-1, 16)
    scales = np.frombuffer(data, np.float32, count // 16, start + count)[:, None]
    embedding = model.tok_embeddings.weight.detach().numpy().reshape(-1, 16)
    assert (np.abs(quantized * scales - embedding) <= scales / 2 + 1e-7).all()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2)
    assert len(data) == 256 + 4 * 5 * 32 + matrices + 4 * matrices // 16


@pytest.mark.parametrize("fields", [{}, {"norm_type": "rmsnorm", "rope_theta": 5e3}, {"head_size": 8}], ids=str)
def test_llama2c_refuses_what_it_does_not_have(tmp_path, capsys, fields):
    write_model(tmp_path / "model.pt", **fields)
    flags = ("--format", "llama2c", "--pretrained-model-path", tmp_path / "model.pt", "--out", tmp_path / "out")
    assert "llama2.c has no" in refusal(capsys, *flags)
