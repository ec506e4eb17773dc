"""The classifiers: scores do not depend on the batch, and equal sums computed by hand; their files."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from classifier import (
    PAD_ID,
    LlamaEmbeddingClassifier,
    LlamaZeroShotClassifier,
    real_lengths,
    weighted_hidden_state,
)
from engine.io.checkpoint import CheckpointError, load_plain, save_checkpoint, save_plain
from llama import Llama, from_checkpoint
from lora import apply_lora, get_lora_optimizer_params, merge_lora_weights
from tasks.sentiment.checkpoint import ClassifierInfo, load_adapter, load_classifier, save_adapter, save_classifier
from tasks.sentiment.data import prompt_suffix
from tests.tiny import CONFIG, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer
from utils import pad

NAMES = ["awful", "quite bad", "excellent"]
INFO = ClassifierInfo(NAMES, TOKENIZER, max_sentence_len=9, dtype="bfloat16", batch_size=5)
SENTENCES = ["Fine.", "A long and winding film about a dog, a boat and the sea.", "It was dull, I thought.", "No!"]


def config(**more) -> SimpleNamespace:
    return SimpleNamespace(**({"num_labels": 3, "hidden_dropout_prob": 0.5, "option": "finetune"} | more))


def llama(**more) -> Llama:
    torch.manual_seed(0)
    model = Llama(replace(CONFIG, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform, so that a mistake shows
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


def rows(tokenizer, suffix: str = "") -> list[list[int]]:
    return [tokenizer.encode(sentence + suffix, bos=True, eos=False) for sentence in SENTENCES]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("classifier", ["embedding", "course", "sequence"])
@torch.no_grad()
def test_scores_do_not_depend_on_the_batch_or_its_order(tokenizer, classifier, causal):
    base = llama(causal=causal)
    if classifier == "embedding":
        model = LlamaEmbeddingClassifier(config(), base).eval()
    else:
        model = LlamaZeroShotClassifier(config(), tokenizer, NAMES, base, label_scoring=classifier).eval()
    ids = rows(tokenizer)
    alone = torch.cat([model(torch.tensor([row])) for row in ids])
    assert torch.allclose(model(pad(ids, 3)), alone, atol=1e-5)
    assert torch.allclose(model(pad(ids[::-1], 3)).flip(0), alone, atol=1e-5)
    wide = torch.nn.functional.pad(pad(ids[:2], 3), (0, 9), value=3)
    assert torch.allclose(model(wide), alone[:2], atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


@torch.no_grad()
def test_pooling_last_column_reads_the_batchs_last_column_as_the_course_does(tokenizer):
    model = LlamaEmbeddingClassifier(config(pooling="last_column"), llama()).eval()
    padded = pad(rows(tokenizer), 3)
    hidden = model.llama(padded, targets=padded)[1][:, -1]
    expected = (hidden @ model.classifier_head.weight.T + model.classifier_head.bias).log_softmax(dim=-1)
    assert torch.allclose(model(padded), expected, atol=1e-5)
    assert (model(padded)[3] - model(padded[3:, :4])[0]).abs().max() > 1e-3, "it depends on the batch, as in the course"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_last_layer_at_one_position_equals_the_full_layer_there(tokenizer, causal, dtype):
    model, ids = llama(causal=causal), pad(rows(tokenizer), 3)
    positions, mask = real_lengths(ids, 3) - 1, ids != 3
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for padding_mask in (None, mask):
            full = model.hidden_states(ids, padding_mask=padding_mask)[torch.arange(4), positions]
            picked = model.hidden_states_at(ids, positions, padding_mask)
            assert picked.shape == (4, CONFIG.dim)
            assert torch.allclose(picked, full, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_lengths_end_at_the_last_real_token():
    ids = torch.tensor([[1, 5, 3, 7, 3, 3], [1, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3], [1, 2, 4, 5, 6, 7]])
    assert real_lengths(ids, 3).tolist() == [4, 1, 1, 6]


def test_probabilities_sum_to_one_and_dropout_acts_only_in_training(tokenizer):
    model = LlamaEmbeddingClassifier(config(), llama())
    ids = pad(rows(tokenizer), 3)
    assert torch.allclose(model(ids).exp().sum(dim=1), torch.ones(4), atol=1e-6)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_the_courses_constructor_reads_a_checkpoint(tmp_path, tokenizer):
    base = write_tiny_checkpoint(tmp_path / "tiny.pt")
    with_path = config(pretrained_model_path=str(tmp_path / "tiny.pt"))
    model = LlamaEmbeddingClassifier(with_path)
    assert torch.equal(model.llama.norm.weight, base.norm.weight)
    assert model.classifier_head.weight.shape == (3, CONFIG.dim)
    assert all(parameter.requires_grad for parameter in model.parameters())
    frozen = LlamaEmbeddingClassifier(config(pretrained_model_path=with_path.pretrained_model_path, option="pretrain"))
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == [
        "classifier_head.weight", "classifier_head.bias",
    ]  # fmt: skip
    zero_shot = LlamaZeroShotClassifier(with_path, tokenizer, NAMES)
    assert not any(parameter.requires_grad for parameter in zero_shot.parameters())
    with pytest.raises(ValueError, match="2 label names for 3 labels"):
        LlamaZeroShotClassifier(with_path, tokenizer, NAMES[:2])
    with pytest.raises(ValueError, match="pooling must be"):
        LlamaEmbeddingClassifier(config(pooling="first"), llama())
    with pytest.raises(ValueError, match="pooling must be"):  # nothing is trained that could use a mean
        LlamaZeroShotClassifier(config(pooling="mean"), tokenizer, NAMES, llama())


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_mean_and_attention_pooling_are_weighted_means_of_the_real_tokens(causal):
    base = llama()
    base.config.causal = causal
    for layer in base.layers:
        layer.attention.causal = causal
    rows = torch.tensor([[5, 6, 7, PAD_ID], [8, 9, PAD_ID, PAD_ID]])
    lengths = (3, 2)
    states = [base.hidden_states(row[None, :length])[0] for row, length in zip(rows, lengths, strict=True)]
    mean = torch.stack([state.mean(dim=0) for state in states])
    assert torch.allclose(weighted_hidden_state(base, rows, PAD_ID), mean, atol=1e-4)
    query = torch.randn(base.config.dim)
    weights = [torch.softmax(state @ query / base.config.dim**0.5, dim=0) for state in states]
    expected = torch.stack([weight @ state for weight, state in zip(weights, states, strict=True)])
    assert torch.allclose(weighted_hidden_state(base, rows, PAD_ID, query), expected, atol=1e-4)
    model = LlamaEmbeddingClassifier(config(pooling="attention"), base)
    assert torch.allclose(model.classifier_head(mean).log_softmax(dim=1), model.eval()(rows), atol=1e-4)


@torch.no_grad()
def test_label_scores_equal_sums_by_hand(tokenizer):
    base = llama()
    labels = [tokenizer.encode(name, bos=False, eos=False) for name in NAMES]
    assert max(map(len, labels)) > 1, "the two scorings differ only for labels of several tokens"
    ids = tokenizer.encode(f"Fine. {prompt_suffix(NAMES)}", bos=True, eos=False)

    def log_probs(tokens: list[int]) -> torch.Tensor:
        return base(torch.tensor([tokens]))[0][0, -1].double().log_softmax(dim=0)

    course = [sum(log_probs(ids)[token].item() for token in label) for label in labels]
    sequence = [
        sum(log_probs(ids + label[:index])[token].item() for index, token in enumerate(label)) for label in labels
    ]
    for scoring, expected in (("course", course), ("sequence", sequence)):
        model = LlamaZeroShotClassifier(config(), tokenizer, NAMES, base, label_scoring=scoring)
        assert model(torch.tensor([ids]))[0].tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_calibrated_content_free_prompts_give_equal_probabilities(tokenizer):
    model = LlamaZeroShotClassifier(config(), tokenizer, NAMES, llama(), label_scoring="sequence").eval()
    ids = rows(tokenizer)
    before = model(pad(ids, 3)).double().softmax(dim=1)
    shares = model.calibrate(ids[:1])
    assert torch.allclose(shares.double(), before[0], atol=1e-5)
    after = model(pad(ids, 3))
    assert after[0].softmax(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    by_hand = before / before[0]  # W = diag(p)^-1 (Zhao et al. 2021)
    assert torch.allclose(after.double().softmax(1), by_hand / by_hand.sum(1, keepdim=True), atol=1e-5)
    assert model.calibrate(ids).sum().item() == pytest.approx(1.0, abs=1e-5)
    assert math.isfinite(model(pad(ids, 3)).sum().item())


def trained_lora() -> LlamaEmbeddingClassifier:
    model = LlamaEmbeddingClassifier(config(option="lora"), llama())
    apply_lora(model.llama, rank=4, alpha=2.0)
    for parameter in get_lora_optimizer_params(model):
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def test_classifier_and_adapter_survive_saving_and_loading(tmp_path, tokenizer):
    model, ids = trained_lora(), pad(rows(tokenizer), 3)
    expected, base = model(ids), llama()
    save_checkpoint(tmp_path / "base.pt", base.config, base.state_dict(), TOKENIZER)
    save_adapter(tmp_path / "adapter.pt", model, INFO, tmp_path / "base.pt")
    restored = LlamaEmbeddingClassifier(config(option="lora"), llama())
    apply_lora(restored.llama, rank=4, alpha=2.0)
    load_adapter(tmp_path / "adapter.pt", restored)
    assert torch.equal(restored.eval()(ids), expected)
    merge_lora_weights(model)
    assert torch.allclose(model(ids), expected, atol=1e-5)
    save_classifier(tmp_path / "merged.pt", model, INFO)
    for name in ("merged.pt", "adapter.pt"):
        loaded, info = load_classifier(tmp_path / name)
        assert torch.equal(loaded(ids), model(ids)) and info.label_names == NAMES
        assert info.tokenizer.resolve() == TOKENIZER.resolve()
        assert (info.max_sentence_len, info.dtype, info.batch_size) == (9, "bfloat16", 5)
    state = load_plain(tmp_path / "adapter.pt")["model"]
    assert all("lora_" in name or name.startswith("classifier_head.") for name in state)
    assert (tmp_path / "adapter.pt").stat().st_size < (tmp_path / "merged.pt").stat().st_size / 10


def test_unsuitable_files_are_refused(tmp_path):
    model = trained_lora()
    base = llama(dim=16)
    save_checkpoint(tmp_path / "base.pt", base.config, base.state_dict(), TOKENIZER)
    save_adapter(tmp_path / "adapter.pt", model, INFO, tmp_path / "base.pt")
    other = LlamaEmbeddingClassifier(config(option="lora"), llama())
    apply_lora(other.llama, rank=2, alpha=2.0)
    with pytest.raises(CheckpointError, match="rank 4"):
        load_adapter(tmp_path / "adapter.pt", other)
    five = LlamaEmbeddingClassifier(config(num_labels=5), llama())
    apply_lora(five.llama, rank=4, alpha=2.0)
    with pytest.raises(CheckpointError, match="another model"):
        load_adapter(tmp_path / "adapter.pt", five)
    with pytest.raises(CheckpointError, match="not a classifier or adapter"):
        load_classifier(tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match=r"is damaged: .* size mismatch for tok_embeddings.weight") as error:
        load_classifier(tmp_path / "adapter.pt")  # the base has another width
    assert "\n" not in str(error.value)
    write_tiny_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="another base model"):
        load_classifier(tmp_path / "adapter.pt", tmp_path / "other.pt")
    older = {name: load_plain(tmp_path / "adapter.pt")[name] for name in ("format", "rank", "alpha", "model")}
    save_plain(older, tmp_path / "older.pt")
    with pytest.raises(CheckpointError, match=r"use merged\.pt"):
        load_classifier(tmp_path / "older.pt")
    (tmp_path / "base.pt").unlink()
    with pytest.raises(FileNotFoundError, match="name it with --pretrained-model-path"):
        load_classifier(tmp_path / "adapter.pt")
    save_classifier(tmp_path / "whole.pt", merge_lora_weights(model), INFO)
    with pytest.raises(CheckpointError, match="is a whole model"):
        load_classifier(tmp_path / "whole.pt", tmp_path / "other.pt")


@torch.no_grad()
def test_a_classifiers_hidden_states_are_those_of_its_checkpoint(tmp_path):
    from engine.io.checkpoint import read_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny.pt")
    base = from_checkpoint(read_checkpoint(tmp_path / "tiny.pt"))
    model = LlamaEmbeddingClassifier(config(), base).eval()
    tokens = torch.tensor([[1, 9, 8, 7]])
    hidden = base(tokens)[1][:, -1]
    assert torch.allclose(model(tokens), model.classifier_head(hidden).log_softmax(dim=-1), atol=1e-6)
