"""Fine-tuning against an independent implementation: transformers, the same head, torch.optim.AdamW, peft."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import run_llama
from classifier import LlamaEmbeddingClassifier
from engine.io.checkpoint import save_checkpoint
from engine.train import run_log
from llama import Llama
from lora import apply_lora, lora_layers
from tasks.sentiment.data import SentenceBatches, read_examples, tokenise
from tests.oracles import RENAMED, transformers_model
from tests.tiny import CONFIG, ROOT, TOKENIZER
from tokenizer import load_tokenizer

pytest.importorskip("transformers")

SEED, STEPS, RATE = 1337, 20, 1e-3


def their_losses(backbone: nn.Module, head: nn.Linear, trained: list[nn.Parameter], rate: float) -> list[float]:
    """The first losses of a plain loop over the same batches as the project's."""
    examples = tokenise(read_examples(ROOT / "data" / "reviews-train.txt", 2), load_tokenizer(TOKENIZER), 128)
    batches = SentenceBatches(examples, 8, 3, SEED)
    order = [batch for epoch in (0, 1) for batch in batches.epoch(epoch)]
    optimizer, losses = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0), []
    for step, batch in enumerate(order[:STEPS], start=1):
        # the course adds eps to √v before the bias correction, torch after it
        optimizer.param_groups[0]["eps"] = 1e-6 / math.sqrt(1.0 - 0.999**step)
        rows, labels = [examples.ids[n] for n in batch], torch.tensor([examples.labels[n] for n in batch])
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        last = torch.stack([hidden[index, len(row) - 1] for index, row in enumerate(rows)])
        loss = F.cross_entropy(head(last), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(folder, base: Llama, option: str) -> list[float]:
    """The first losses of the command, read from its log."""
    save_checkpoint(folder / "base.pt", base.config, base.state_dict(), TOKENIZER)
    data = [f"--{split}=data/reviews-{split}.txt" for split in ("train", "dev", "test")]
    method = {"finetune": "finetuning", "lora": "lora"}[option]
    outs = [f"--{split}_out={folder}/reviews-{split}-{method}-output.txt" for split in ("dev", "test")]
    flags = ["--hidden_dropout_prob", "0", "--epochs", "2", "--lr", str(RATE), "--lora_alpha", "8", "--threads", "1"]
    paths = ["--pretrained-model-path", f"{folder}/base.pt", "--save_dir", f"{folder}/runs"]
    names = ["--label-names", "data/reviews-label-mapping.json"]
    assert run_llama.main(["--option", option, *data, *outs, *flags, *paths, *names]) == 0
    log = next((folder / "runs").iterdir()) / "log.jsonl"
    return [record["loss"] for record in run_log.read(log) if "loss" in record][:STEPS]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_the_first_losses_are_those_of_an_independent_loop(tmp_path, monkeypatch, norm, option):
    monkeypatch.chdir(ROOT)
    torch.manual_seed(3)
    base = Llama(replace(CONFIG, norm_type=norm))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone = transformers_model(base).model.train()
    ours = our_losses(tmp_path, base, option)

    torch.manual_seed(SEED)  # draws head and factors as a run with this seed does
    initial = LlamaEmbeddingClassifier(SimpleNamespace(num_labels=2, hidden_dropout_prob=0.0), base)
    head = initial.classifier_head
    if option == "lora":
        apply_lora(initial.llama, rank=4, alpha=8.0)
        backbone = with_peft(backbone, initial.llama)
    trained = [p for p in backbone.parameters() if p.requires_grad] + list(head.parameters())
    untrained = their_losses(backbone, head, trained, rate=0.0)
    theirs = their_losses(backbone, head, trained, RATE)
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(theirs, untrained, strict=True)) > 1e-2, "training must matter"


def with_peft(backbone: nn.Module, adapted: Llama) -> nn.Module:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = peft.get_peft_model(backbone, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0))
    names = {id(layer.attention): f"layers.{n}" for n, layer in enumerate(adapted.layers)}
    with torch.no_grad():
        for parent, name, layer in lora_layers(adapted):
            theirs = model.get_submodule(f"base_model.model.{names[id(parent)]}.{RENAMED[f'attention.{name}']}")
            theirs.lora_A["default"].weight.copy_(layer.lora_A)
            assert theirs.lora_B["default"].weight.abs().max() == 0.0
    return model
