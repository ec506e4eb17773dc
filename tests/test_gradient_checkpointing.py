"""Recomputed gradients are the plain ones to the bit, with dropout, in every variant; far less is kept for them."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.checkpointing import SavedBytes
from config import LlamaConfig
from engine.train.losses import plain_cross_entropy
from llama import Llama

BASE = {"vocab_size": 61, "dim": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 16, "dropout": 0.3}
VARIANTS = [
    {"position_embedding_type": positions, "ffn_type": inner, "norm_position": norms, "norm_type": kind}
    for positions, inner, norms, kind in itertools.product(
        ("rotary", "sinusoidal", "alibi", "none"), ("swiglu", "relu", "gelu"), ("pre", "post"), ("layernorm", "rmsnorm")
    )
]
TOKENS = torch.randint(0, 61, (4, 13), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(4, 12, dtype=torch.bool)
MASK[1, :5] = False


def loss_of(model: Llama, rows: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    hidden = model.hidden_states(rows[:, :-1], padding_mask=mask).flatten(0, 1)
    return plain_cross_entropy(hidden, model.output.weight, rows[:, 1:].flatten())


def gradients(fields, recompute, dtype=None, mask=None, frozen=False, micro_batches=1) -> dict[str, torch.Tensor]:
    """The loss, every gradient, and the next random number."""
    torch.manual_seed(3)
    model = Llama(LlamaConfig(**(BASE | fields))).train()
    model.recompute = recompute
    model.tok_embeddings.weight.requires_grad_(not frozen)
    total = torch.zeros(())
    for rows in TOKENS.chunk(micro_batches):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = loss_of(model, rows, mask)
        loss.backward()
        total = total + loss.detach()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return found | {"loss": total, "next": torch.rand(1)}


def assert_same_bits(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(fields.values()))
def test_every_variant_to_the_bit(fields):
    assert_same_bits(gradients(fields, 1), gradients(fields, 0))


@pytest.mark.parametrize("segment", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"mask": MASK}, {"frozen": True}, {"micro_batches": 3}, {}],
    ids=["bfloat16", "padding", "frozen embeddings", "accumulated", "plain"],
)
def test_segments_and_ways_of_training_to_the_bit(segment, options):
    fields = {"tie_embeddings": False}
    assert_same_bits(gradients(fields, segment, **options), gradients(fields, 0, **options))


def test_gradients_asked_for_by_name_and_hooks_on_parameters():
    results = []
    for recompute in (0, 2):
        torch.manual_seed(0)
        model, seen = Llama(LlamaConfig(**BASE)).train(), []
        model.recompute = recompute
        parameter = model.layers[1].feed_forward.w1.weight
        results.append(torch.autograd.grad(loss_of(model, TOKENS), [parameter, model.layers[0].ffn_norm.weight]))
        parameter.register_hook(seen.append)
        loss_of(model, TOKENS).backward()
        assert len(seen) == 1 and torch.equal(seen[0], parameter.grad)
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_a_frozen_layer_and_evaluation():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**BASE)).train()
    model.recompute = 1
    for parameter in model.layers[1].parameters():
        parameter.requires_grad_(False)
    loss_of(model, TOKENS).backward()
    assert model.layers[1].feed_forward.w1.weight.grad is None
    assert model.layers[0].feed_forward.w1.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        recomputed = model.hidden_states(TOKENS)
        model.recompute = 0
        assert torch.equal(recomputed, model.hidden_states(TOKENS))


def test_at_twelve_layers_a_third_is_kept_at_most():
    torch.manual_seed(0)
    model, peaks = Llama(LlamaConfig(**(BASE | {"n_layers": 12, "dim": 64}))).train(), {}
    for recompute in (0, 1, 3):
        model.recompute = recompute
        with SavedBytes(model) as saved:
            loss_of(model, TOKENS).backward()
        peaks[recompute] = saved.peak
        assert saved.live == 0
    assert peaks[0] > 3 * peaks[1] and peaks[0] > 3 * peaks[3] > 0
    model.recompute = 0
    with SavedBytes(model) as saved:  # counted by hand: what one layer norm keeps is its input and two numbers a row
        x = torch.randn(4, 13, 64, requires_grad=True)
        kept = model.norm(x)
    assert saved.live == 4 * (x.numel() + 2 * 4 * 13) and kept.requires_grad
