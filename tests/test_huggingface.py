"""Hugging Face folders in: the logits and ids of transformers, every command on such a model, one line for bad ones."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

import run_llama
from engine.io.checkpoint import CheckpointError, read_checkpoint
from engine.io.json_tokenizer import JsonTokenizer
from engine.io.word_tokenizer import WordTokenizer, word_vocabulary
from llama import load_pretrained
from tests.huggingface_folders import SPECIAL, random_model, random_texts, write_folder
from tests.tiny import ROOT, write_corpus
from tokenizer import load_tokenizer

TOKENS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A sharded bfloat16 folder with grouped heads, and its model in transformers."""
    folder = tmp_path_factory.mktemp("folder")
    return folder, write_folder(folder, rope_theta=5000.0)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original[0], tmp_path / "copy"))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def same_logits(folder: Path, theirs) -> None:
    with torch.no_grad():
        ours = load_pretrained(str(folder))(TOKENS, targets=TOKENS)[0]
        assert relative_error(ours, theirs(TOKENS).logits) < 2e-6


def test_logits_are_those_of_transformers(original):
    folder, theirs = original
    assert len(list(folder.glob("*.safetensors"))) > 3
    same_logits(folder, theirs)


VARIANTS = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "own head size": ("llama", {"head_dim": 10}),
    "mistral": ("mistral", {"sliding_window": None}),
    "wide window": ("mistral", {"sliding_window": 96}),
    "sliding window": ("mistral", {"sliding_window": 7}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 1.0}),
    "theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_gives_the_logits_of_transformers(tmp_path, name):
    model_type, fields = VARIANTS[name]
    theirs = random_model(model_type, **fields)
    theirs.save_pretrained(tmp_path)
    same_logits(tmp_path, theirs)


def test_a_qwen2_whose_biases_are_zero_is_a_llama(tmp_path):
    theirs = random_model("qwen2")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("proj.bias"):
                parameter.zero_()
    theirs.save_pretrained(tmp_path)
    same_logits(tmp_path, theirs)


def test_pytorch_files_and_a_model_without_its_head_are_read(original, folder):
    theirs = original[1]
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    same_logits(folder, theirs)
    bare = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    torch.save(bare, folder / "pytorch_model.bin")
    same_logits(folder, theirs)


def test_float32_weights_stay_in_the_file_and_training_does_not_write_to_it(tmp_path):
    random_model().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_pretrained(str(tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_ids_and_texts_are_those_of_tokenizers(original):
    import tokenizers
    import transformers

    path = str(original[0] / "tokenizer.json")
    ours = load_tokenizer(path)
    texts = random_texts(10_000)
    ids = [ours.encode(text, bos=bool(text), eos=False) for text in texts]
    assert ids == [encoding.ids for encoding in tokenizers.Tokenizer.from_file(path).encode_batch(texts)]
    assert [ours.decode(row) for row in ids] == texts
    theirs = transformers.AutoTokenizer.from_pretrained(original[0])
    for text, row in zip(texts[:300], ids, strict=False):
        assert row == theirs(text)["input_ids"]
        assert ours.decode(row) == theirs.decode(row, skip_special_tokens=True)


def test_special_tokens_come_from_the_files_beside_the_tokenizer(original, folder):
    tokenizer = load_tokenizer(folder / "tokenizer.json", max_len=3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, 2, 320)
    assert tokenizer.encode("", bos=True, eos=False) == [1]  # generation without a prompt
    document = tokenizer.encode("Ann had a ball.", bos=True, eos=True)
    assert (document[0], document[-1], len(document)) == (1, 2, 5)
    assert tokenizer.decode([1, *document]) == tokenizer.decode(document[1:-1])
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}), "utf-8")
    assert load_tokenizer(folder / "tokenizer.json").encode("Ann", bos=True, eos=False)[0] == 1
    for name in ("tokenizer_config.json", "config.json", "generation_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    assert load_tokenizer(folder / "tokenizer.json").eos_id == 0  # <|endoftext|>, a usual name
    text = (folder / "tokenizer.json").read_text("utf-8").replace(SPECIAL[0], "<|other|>")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match="names no end-of-text token"):
        load_tokenizer(folder / "tokenizer.json")


def test_a_word_vocabulary_is_still_one_whatever_its_name(original, tmp_path):
    (tmp_path / "words.json").write_text(word_vocabulary(["a b version"], 10), "utf-8")
    assert isinstance(load_tokenizer(tmp_path / "words.json"), WordTokenizer)
    shutil.copy(original[0] / "tokenizer.json", tmp_path / "other.json")
    assert isinstance(load_tokenizer(tmp_path / "other.json"), JsonTokenizer)


def edit_config(folder: Path, **fields) -> None:
    content = json.loads((folder / "config.json").read_text("utf-8")) | fields
    (folder / "config.json").write_text(json.dumps({n: v for n, v in content.items() if v != "absent"}), "utf-8")


REFUSED = {
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "hidden_act": {"hidden_act": "gelu"},
    "rope_parameters": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
    "rope_scaling": {"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.25, "rope_parameters": "absent"},
    "sliding_window": {"sliding_window": 32},
    "sliding_window 64": {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True},
    "layer_types": {"layer_types": ["sliding_attention", "full_attention"]},
    "use_qkv_bias": {"model_type": "stablelm", "use_qkv_bias": True},
    "qk_layernorm": {"qk_layernorm": True},
    "use_parallel_residual": {"use_parallel_residual": True},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "model_type": {"model_type": "gemma"},
    "hidden_size": {"hidden_size": "absent"},
    "cannot be split": {"num_attention_heads": 5, "head_dim": None},
    "embed_tokens.weight is": {"vocab_size": 300},
    "lacks model.layers.2": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_feature_that_is_not_ours_is_refused_by_its_name(folder, name):
    edit_config(folder, **REFUSED[name])
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder)


def test_a_bias_in_the_weights_is_refused_by_its_name(tmp_path):
    theirs = random_model("qwen2")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"_proj\.bias is a bias \(attention_bias\)"):
        read_checkpoint(tmp_path)


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def lie_in_header(folder: Path, length: int | None = None) -> None:
    data = shard(folder).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"] = [4096, 4096]
    text = json.dumps(header).encode()
    shard(folder).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :])


def edit_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text("utf-8"))
    change(content["weight_map"])
    path.write_text(json.dumps(content), "utf-8")


BROKEN = {
    "lacks the shard": lambda folder: shard(folder).unlink(),
    "which does not hold it": lambda folder: edit_index(
        folder, lambda names: names.update(dict.fromkeys(names, shard(folder).name))
    ),
    "not a file in its folder": lambda folder: edit_index(
        folder, lambda names: names.update({"model.norm.weight": "../other.safetensors"})
    ),
    "lacks model.norm.weight": lambda folder: edit_index(folder, lambda names: names.pop("model.norm.weight")),
    "no weight_map": lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
    "is not JSON": lambda folder: (folder / "config.json").write_text('{"model_type": "lla'),
    "no such file": lambda folder: (folder / "config.json").unlink(),
    "damaged or cut short": lie_in_header,
    "was not loaded": lambda folder: lie_in_header(folder, 2**40),
    "Git LFS": lambda folder: shard(folder).write_text("version https://git-lfs.github.com/spec/v1\n"),
    "cut short (": lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-100]),
    "has 320 pieces": lambda folder: edit_config(folder, vocab_size=320) or shrink_vocabulary(folder),
    "not a tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"'),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "has no weights": lambda folder: [path.unlink() for path in folder.glob("model*")],
    "only plain floating-point": lambda folder: write_integers(folder),
}


def shrink_vocabulary(folder: Path) -> None:
    """A model of 300 tokens beside a tokenizer of 320."""
    for path in folder.glob("model*"):
        path.unlink()
    random_model(vocab_size=300).save_pretrained(folder)


def write_integers(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}, folder / "model.safetensors")


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_folder_is_one_line(folder, capsys, message):
    BROKEN[message](folder)
    capsys.readouterr()
    assert run_llama.main(["--option", "generate", "--pretrained-model-path", str(folder), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def run(*words: object) -> None:
    assert run_llama.main([*map(str, words), "--threads", "1"]) == 0


@pytest.mark.parametrize("quantize", ["float32", "int8"])
def test_generate_gives_the_greedy_text_of_transformers(original, capsys, quantize):
    import transformers

    folder, theirs = original
    flags = ("--prompt", "Ann had 12 balls", "--temperature", "0", "--max_new_tokens", "12", "--quantize", quantize)
    run("--option", "generate", "--pretrained-model-path", folder, *flags)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Ann had 12 balls", return_tensors="pt").input_ids
    output = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    expected = tokenizer.decode(output[0], skip_special_tokens=True)
    printed = capsys.readouterr().out
    assert printed.count("Ann had 12 balls") == 1 and (quantize == "int8" or expected in printed)


def test_every_command_works_on_a_folder(original, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--pretrained-model-path", original[0])
    corpus = write_corpus(tmp_path / "corpus.txt")
    run("--option", "evaluate", "--corpus", corpus, *model)
    assert "bits per byte" in capsys.readouterr().out
    run("--option", "pretrain", "--corpus", corpus, *model, "--epochs", 1, "--save_dir", "more")
    run("--option", "generate", "--pretrained-model-path", "more/best.pt", "--max_new_tokens", 3, "--prompt", "Ann")
    data = [f"--{split}={ROOT}/data/reviews-dev.txt" for split in ("train", "dev", "test")]
    data += [f"--label-names={ROOT}/data/reviews-label-mapping.json", "--max_sentence_len=12", *model]
    for option, method in {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}.items():
        training = () if option == "prompt" else ("--epochs", 1, "--lr", "1e-3")
        outputs = [f"--{split}_out=reviews-{split}-{method}-output.txt" for split in ("dev", "test")]
        run("--option", option, *data, *outputs, *training)
        assert len((tmp_path / f"reviews-dev-{method}-output.txt").read_text("utf-8").splitlines()) > 10
    for name in ("finetune", "lora"):
        checkpoint = next((tmp_path / "runs").glob(f"{name}-*/best.pt"))
        run("--option", "predict", "--checkpoint", checkpoint, "--text", "A film to remember.")
