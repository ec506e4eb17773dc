"""Regularisers of fine-tuning against formulas spelled out in float64; their neutral settings change nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import run_llama
from engine.train.regularisers import (
    SMART_NOISE,
    SMART_RADIUS,
    SMART_RATE,
    forward_mixed,
    matrices_of,
    mixed_parameters,
    proximal_divergence,
    r_drop,
    smoothness,
    symmetric_kl,
)
from optimizer import layer_groups
from tests.tiny import ROOT, write_tiny_checkpoint

DATA = ROOT / "data"


class Sum(nn.Module):
    """The log-probabilities of a linear head on the summed embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 5, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, ids):
        return self.head(self.embedding(ids).sum(dim=1)).log_softmax(dim=-1)


def test_symmetric_kl_is_the_sum_of_both_divergences():
    p, q = torch.rand(4, 3, dtype=torch.float64).softmax(dim=1), torch.rand(4, 3, dtype=torch.float64).softmax(dim=1)
    expected = sum(
        p[i, j].item() * math.log(p[i, j] / q[i, j]) + q[i, j].item() * math.log(q[i, j] / p[i, j])
        for i in range(4)
        for j in range(3)
    )
    assert symmetric_kl(p.log(), q.log()).item() == pytest.approx(expected)
    assert r_drop(p.log(), lambda: q.log()).item() == pytest.approx(expected / 2)


def test_smoothness_is_algorithm_1_with_one_step():
    model, ids = Sum(), torch.tensor([[1, 2], [3, 4]])
    log_probs = model(ids)
    torch.manual_seed(7)
    penalty = smoothness(model.embedding, (2, 2, 5), log_probs, lambda: model(ids))
    torch.manual_seed(7)
    noise = torch.randn(2, 2, 5, dtype=torch.float64) * SMART_NOISE
    weight, bias, rows = model.head.weight.detach(), model.head.bias.detach(), model.embedding(ids).detach()

    def divergence(shift):
        shifted = ((rows + shift).sum(dim=1) @ weight.T + bias).log_softmax(dim=-1)
        return symmetric_kl(shifted, log_probs.detach()).item()

    gradient = torch.zeros_like(noise)
    for index in range(noise.numel()):  # central differences
        step = torch.zeros(noise.numel(), dtype=torch.float64)
        step[index] = 1e-5
        step = step.view_as(noise)
        gradient.view(-1)[index] = (divergence(noise + step) - divergence(noise - step)) / 2e-5
    worst = (noise + SMART_RATE * gradient / gradient.abs().max()).clamp(-SMART_RADIUS, SMART_RADIUS)
    assert penalty.item() == pytest.approx(divergence(worst), rel=1e-6)
    penalty.backward()
    assert model.head.weight.grad.isfinite().all() and model.head.weight.grad.abs().sum() > 0


def test_mixout_keeps_expected_weights_and_mixes_the_pretrained_ones():
    model = Sum()
    pretrained = matrices_of(model)
    assert set(pretrained) == {"embedding.weight", "head.weight"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    weight, origin, share = model.head.weight.detach(), pretrained["head.weight"], 0.7
    draws = torch.stack([mixed_parameters(model, pretrained, share)["head.weight"].detach() for _ in range(4000)])
    kept, mixed = (weight - share * origin) / (1 - share), origin
    is_kept, is_mixed = (draws - kept).abs() < 1e-12, (draws - mixed).abs() < 1e-9
    assert (is_kept | is_mixed).all() and abs(is_mixed.double().mean().item() - share) < 0.02
    assert torch.allclose(draws.mean(dim=0), weight, atol=0.25)
    ids = torch.tensor([[1, 2]])
    assert torch.equal(forward_mixed(model, pretrained, 0.0, ids), model(ids))
    assert mixed_parameters(model, pretrained, share)["head.bias"] is model.head.bias


def test_each_layer_has_its_rate():
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4),
                           "head": nn.Linear(4, 2)})  # fmt: skip
    groups = layer_groups(model, [model["a"], model["b"]], 1.0, 0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {"head": 1.0, "b": 0.5, "a": 0.25, "embedding": 0.125}
    for name, rate in expected.items():
        assert all(rates[id(parameter)] == rate for parameter in model[name].parameters())
    assert sum(len(group["params"]) for group in groups) == 7


def losses(folder, *more: str) -> list[float]:
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={folder}/{split}-finetuning-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={folder}/tiny.pt"]
    target = folder / ("_".join(more) or "plain").replace("-", "").replace(".", "")
    words = [*inputs, *outs, *names, f"--save_dir={target}", "--threads=1", "--epochs=1", "--lr=5e-3"]
    assert run_llama.main(["--option", "finetune", "--max_sentence_len=12", *words, *more]) == 0
    log = next(target.glob("*/log.jsonl")).read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in log if "loss" in json.loads(line)]


def test_a_training_uses_each_regulariser(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    plain, still = losses(tmp_path), losses(tmp_path, "--hidden_dropout_prob", "0")
    assert losses(tmp_path, "--mixout", "0.0", "--layer_decay", "1.0") == plain
    for more in (("--mixout", "0.9"), ("--layer_decay", "0.1")):
        regularised = losses(tmp_path, "--hidden_dropout_prob", "0", *more)
        assert regularised != still and regularised[0] == pytest.approx(still[0], abs=1e-4)  # before any step
    assert losses(tmp_path, "--r_drop", "1.0")[0] > plain[0]
    assert losses(tmp_path, "--hidden_dropout_prob", "0", "--smart", "1e9")[0] > still[0]


def test_two_kinds_of_decay_are_refused(capsys):
    words = ["--option", "finetune", "--layer_decay", "0.5", "--weight_decay", "0.1"]
    outs = ["--dev_out", "x-dev-finetuning-output.txt", "--test_out", "x-test-finetuning-output.txt"]
    with pytest.raises(SystemExit):
        run_llama.main([*words, *outs])
    assert "exclude each other" in capsys.readouterr().err


def test_proximal_point_is_the_divergence_from_earlier_weights():
    model, ids = Sum(), torch.tensor([[1, 2], [3, 4], [0, 6]])
    anchor = {name: tensor + torch.randn_like(tensor) for name, tensor in matrices_of(model).items()}
    model.insert = nn.Dropout(0.5)  # what the anchor's pass must leave out
    model.forward = lambda ids: model.head(model.insert(model.embedding(ids).sum(dim=1))).log_softmax(dim=-1)
    model.train()
    log_probs = model(ids)
    penalty = proximal_divergence(model, anchor, log_probs, ids)
    expected = 0.0
    for row, tokens in enumerate(ids.tolist()):
        hidden = anchor["embedding.weight"][tokens].sum(dim=0)
        exponents = [math.exp(value) for value in (anchor["head.weight"] @ hidden + model.head.bias).tolist()]
        for label, exponent in enumerate(exponents):
            q, p = exponent / sum(exponents), log_probs[row, label].exp().item()
            expected += p * math.log(p / q) + q * math.log(q / p)  # l_s of Jiang et al. 2020, section 3.1
    assert penalty.item() == pytest.approx(expected, rel=1e-9) and model.training
    penalty.backward()
    assert model.head.weight.grad.abs().sum() > 0
    same = {name: tensor.detach() for name, tensor in model.named_parameters()}
    model.insert.p = 0.0
    assert proximal_divergence(model, same, model(ids), ids).item() == pytest.approx(0.0, abs=1e-12)


def test_a_training_uses_the_proximal_point(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    still = ("--hidden_dropout_prob", "0")
    plain, held = losses(tmp_path, *still), losses(tmp_path, *still, "--proximal", "100")
    assert held[0] == plain[0] and held[1] > plain[1]  # at first the weights are the anchor
    free = losses(tmp_path, *still, "--proximal", "100", "--proximal_momentum", "1e-6")
    assert free == pytest.approx(plain, abs=1e-3) and free[2] != pytest.approx(held[2], abs=1e-2)
