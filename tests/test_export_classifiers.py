"""`--option export` of classifiers and adapters: transformers and peft agree with us, and they come back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import run_llama
from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import CheckpointError, read_checkpoint
from engine.io.files import read_json_object, write_json
from engine.io.huggingface_config import OWN_FIELDS
from engine.model.adapters import FORMS, apply_adapters
from llama import from_checkpoint, load_pretrained
from lora import TARGETS, get_lora_optimizer_params
from tasks.sentiment.checkpoint import ClassifierInfo, load_classifier, save_adapter, save_classifier
from tasks.sentiment.huggingface import read_classifier
from tests.huggingface_folders import write_folder
from tests.oracles import random_llama
from tests.test_export import FIELDS, TOKENS, export, refusal, same_tensors, write_model
from tests.tiny import TOKENIZER
from tokenizer import load_tokenizer

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


PEFT = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "both": {"use_rslora": True, "use_dora": True}, "ia3": {"feedforward_modules": ["down_proj", "q_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("form", PEFT)
def test_a_peft_adapter_of_a_language_model_is_merged(tmp_path, form):
    import peft

    theirs, out = write_folder(tmp_path / "base"), tmp_path / "adapter"
    fields = PEFT[form] | {"target_modules": ["q_proj", "k_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    config = peft.IA3Config(**fields) if form == "ia3" else peft.LoraConfig(r=3, lora_alpha=5, **fields)
    adapted = peft.get_peft_model(theirs, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.15 * torch.randn_like(parameter)
    adapted.save_pretrained(out)
    model = load_pretrained(str(out))
    tokens = TOKENS % 300
    with torch.no_grad():
        expected = adapted.eval()(tokens).logits
        plain = from_checkpoint(read_checkpoint(tmp_path / "base"))(tokens, targets=tokens)[0]
        assert (model(tokens, targets=tokens)[0] - expected).abs().max() < 2e-6 * expected.abs().max()
        assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()
    settings = json.loads((out / "adapter_config.json").read_text("utf-8"))
    wrong = {"peft_type": "LORA", "r": 3, "lora_alpha": 5} if form == "ia3" else {"use_dora": "lora" in form}
    for changed, reason in ((wrong, "its configuration and the base need"), ({"bias": "all"}, "bias 'all'")):
        (out / "adapter_config.json").write_text(json.dumps(settings | changed), "utf-8")
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(out)


def in_use(folder: Path) -> torch.Tensor:
    """The logits that the model card's own lines print for its text."""
    lines = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(lines.replace(f'"{folder.name}"', repr(str(folder))), scope)
    return scope["logits"].detach()


@pytest.mark.parametrize("biased", [True, False])
def test_an_rmsnorm_classifier_with_a_bias_is_a_token_classifier_in_transformers(tmp_path, biased):
    import transformers

    model, folder = random_classifier(random_llama(**FIELDS, norm_type="rmsnorm")), tmp_path / "folder"
    if not biased:
        model.classifier_head.bias.data.zero_()
    save_classifier(tmp_path / "best.pt", model, INFO)
    assert export("--pretrained-model-path", tmp_path / "best.pt", "--out", folder) == 0
    name = "AutoModelForTokenClassification" if biased else "AutoModelForSequenceClassification"
    theirs = getattr(transformers, name).from_pretrained(folder)
    ids, inputs = batch(load_tokenizer(TOKENIZER), TEXTS)
    with torch.no_grad():
        logits = theirs(**inputs).logits
    if biased:
        logits = logits[range(len(ids)), inputs["attention_mask"].sum(dim=1) - 1]
        ours = model(batch(load_tokenizer(TOKENIZER), TEXTS[:1])[0])
        assert (in_use(folder).log_softmax(dim=-1) - ours).abs().max() < 1e-5
    assert (model(ids) - logits.log_softmax(dim=-1)).abs().max() < 1e-5
    same_tensors(model.state_dict(), read_classifier(folder)[0].state_dict())
    if biased:  # another program's token classifier labels tokens
        fields = read_json_object(folder / "config.json")
        write_json(folder / "config.json", {name: fields[name] for name in fields if name != OWN_FIELDS})
        with pytest.raises(ValueError, match="labels tokens"):
            read_classifier(folder)


def test_an_rmsnorm_adapter_with_a_bias_is_a_token_classifier_in_peft(tmp_path):
    import peft
    import transformers

    base, path, out = tmp_path / "base.pt", tmp_path / "best.pt", tmp_path / "adapter"
    model = random_classifier(write_model(base, norm_type="rmsnorm"))
    apply_adapters(model.llama, "lora", 2, 6.0, TARGETS["all"])
    for factor in get_lora_optimizer_params(model):
        torch.nn.init.normal_(factor, std=0.3)
    save_adapter(path, model, INFO, base)
    assert export("--pretrained-model-path", path, "--out", out) == 0
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(out / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(theirs, out).eval()
    ids, inputs = batch(load_tokenizer(TOKENIZER), TEXTS)
    merged = load_classifier(path)[0]
    with torch.no_grad():
        logits = theirs(**inputs).logits[range(len(ids)), inputs["attention_mask"].sum(dim=1) - 1]
        assert (merged(ids) - logits.log_softmax(dim=-1)).abs().max() < 1e-5
    same_tensors(merged.state_dict(), read_classifier(out)[0].state_dict())
