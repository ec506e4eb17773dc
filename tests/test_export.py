"""`--option export`: transformers, peft and llama2.c's readers agree with us, and what comes back is what went out."""

from __future__ import annotations

import dataclasses
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import run_llama
from classifier import LlamaEmbeddingClassifier
from config import LlamaConfig
from engine.io.checkpoint import load_plain, read_checkpoint, save_checkpoint
from engine.io.files import read_json_object
from engine.io.tokenizer_export import write_tokenizer
from engine.io.word_tokenizer import word_vocabulary
from engine.model.adapters import FORMS, apply_adapters
from llama import from_checkpoint, load_pretrained
from lora import TARGETS, get_lora_optimizer_params
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier, save_adapter, save_classifier
from tasks.sentiment.huggingface import read_classifier
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


INFO = ClassifierInfo(["bad", "fair", "good"], TOKENIZER, max_sentence_len=30, dtype="float32", batch_size=3)


def random_classifier(llama) -> LlamaEmbeddingClassifier:
    torch.manual_seed(1)
    return LlamaEmbeddingClassifier(SimpleNamespace(num_labels=3, hidden_dropout_prob=0.2, pad_id=3), llama).eval()


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetuned") / "best.pt"
    save_classifier(path, random_classifier(random_llama(**FIELDS)), INFO)
    return path


@pytest.fixture(scope="module", params=FORMS)
def adapted(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapted") / "best.pt"
    model = random_classifier(write_model(path.with_name("base.pt")))
    apply_adapters(model.llama, request.param, 2, 6.0, TARGETS["all"])
    with torch.no_grad():
        for parameter in get_lora_optimizer_params(model):
            parameter += 0.3 * torch.randn_like(parameter)
    save_adapter(path, model, INFO, path.with_name("base.pt"))
    return path


def batch(tokenizer, texts: list[str]) -> tuple[torch.Tensor, dict]:
    """Padded ids of ours, and what transformers' tokenizer makes of the same texts."""
    rows = [tokenizer.encode(text, bos=True, eos=False) for text in texts]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_id)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return ids, {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_id).long()}


TEXTS = ["A film to remember.", "It was dull, and far too long.", "No.", "I loved every minute of 2 hours"]


def test_a_classifier_is_the_same_in_transformers_and_comes_back(tmp_path, finetuned, capsys):
    import transformers

    assert export("--pretrained-model-path", finetuned, "--out", tmp_path / "out") == 0
    model, info = load_classifier(finetuned)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ids, inputs = batch(load_tokenizer(info.tokenizer), TEXTS)
    padded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(padded["input_ids"], ids)
    with torch.no_grad():
        expected, found = model(ids), theirs(**inputs).logits.log_softmax(dim=-1)
    assert (expected - found).abs().max() < 1e-5
    assert theirs.config.id2label == dict(enumerate(info.label_names)) and model.classifier_head.bias.any()
    again, same = read_classifier(tmp_path / "out")
    same_tensors(model.state_dict(), again.state_dict())
    assert dataclasses.replace(same, tokenizer=info.tokenizer) == info
    lines = []
    for checkpoint in (finetuned, tmp_path / "out"):
        capsys.readouterr()
        flags = ["--checkpoint", str(checkpoint), "--threads", "1", "--text", *TEXTS]
        assert run_llama.main(["--option", "predict", *flags]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_an_adapter_is_the_same_in_peft_and_comes_back(tmp_path, adapted):
    import peft
    import transformers

    out = tmp_path / "adapter"
    assert export("--pretrained-model-path", adapted, "--out", out) == 0
    model, info = load_classifier(adapted)
    names = len(info.label_names)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(out / "base", num_labels=names)
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    ids, inputs = batch(load_tokenizer(info.tokenizer), TEXTS)
    with torch.no_grad():
        assert (model(ids) - theirs(**inputs).logits.log_softmax(dim=-1)).abs().max() < 1e-5
    again, same = read_classifier(out)
    same_tensors(model.state_dict(), again.state_dict())
    assert same.label_names == info.label_names
    assert read_json_object(out / "adapter_config.json")["base_model_name_or_path"] == "base"
    (out / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="needs its base model"):
        read_classifier(out)
    same_tensors(model.state_dict(), read_classifier(out, tmp_path / "elsewhere")[0].state_dict())


def test_an_adapter_names_the_base_that_the_user_names(tmp_path, adapted, finetuned, capsys):
    named = ("--base_model", "user/stories", "--out", tmp_path / "adapter")
    assert export("--pretrained-model-path", adapted, *named) == 0
    fields = read_json_object(tmp_path / "adapter" / "adapter_config.json")
    assert fields["base_model_name_or_path"] == "user/stories" and not (tmp_path / "adapter" / "base").exists()
    assert 'from_pretrained("user/stories", num_labels=3)' in (tmp_path / "adapter" / "README.md").read_text("utf-8")
    base = read_classifier(tmp_path / "adapter", adapted.with_name("base.pt"))[0]
    same_tensors(base.state_dict(), load_classifier(adapted)[0].state_dict())
    error = refusal(capsys, "--pretrained-model-path", finetuned, "--overwrite", *named)
    assert "--base_model is for an adapter" in error


def test_a_peft_adapter_of_a_language_model_is_merged(tmp_path):
    import peft

    theirs = write_folder(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(theirs, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    model = load_pretrained(str(tmp_path / "adapter"))
    tokens = TOKENS % 300
    with torch.no_grad():
        expected = adapted.eval()(tokens).logits
        plain = from_checkpoint(read_checkpoint(tmp_path / "base"))(tokens, targets=tokens)[0]
        assert (model(tokens, targets=tokens)[0] - expected).abs().max() < 2e-6 * expected.abs().max()
        assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}), "utf-8")
    with pytest.raises(ValueError, match="lora_magnitude_vector"):
        read_checkpoint(tmp_path / "adapter")


def test_a_head_bias_that_nothing_can_hold_is_refused_by_its_name(tmp_path, capsys, finetuned):
    content = load_plain(finetuned)
    content["config"] = content["config"] | {"norm_type": "rmsnorm"}
    content["model"] = {n: t for n, t in content["model"].items() if not n.endswith("norm.bias")}
    content["tokenizer"] = str(TOKENIZER)
    first, second = tmp_path / "rms.pt", tmp_path / "out"
    torch.save(content, first)
    flags = ("--pretrained-model-path", first, "--out", second)
    assert "classifier_head.bias" in refusal(capsys, *flags)
    content["model"]["classifier_head.bias"].zero_()
    torch.save(content, first)
    assert export(*flags) == 0
    same_tensors(load_classifier(first)[0].state_dict(), read_classifier(second)[0].state_dict())
