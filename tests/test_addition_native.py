"""The C++ step against torch: losses, gradients, right answers and margins of several shapes."""

from __future__ import annotations

import copy

import pytest
import torch

from config import LlamaConfig
from llama import Llama
from tasks.addition.batched_model import SideBySide
from tasks.addition.flat_muon import FlatMuon
from tasks.addition.native_step import PART, NativeStep, supported
from tasks.addition.problems import sample_problems
from tasks.addition.workload import measured, smallest_margins, summed_losses

CPU = torch.device("cpu")
SHAPES = {
    "wide heads": {"dim": 6, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_size": 4, "hidden_dim": 4},
    "course": {"dim": 8, "n_layers": 3, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 5},
    "grouped": {"dim": 8, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 3, "rope_theta": 30.0},
}


def config_of(**shape) -> LlamaConfig:
    return LlamaConfig(vocab_size=13, max_seq_len=20, **shape)


@pytest.fixture(params=SHAPES, scope="module")
def pair(request) -> tuple[SideBySide, NativeStep]:
    config = config_of(**SHAPES[request.param])
    if not supported(config, CPU):
        pytest.skip("no C++ compiler here")
    torch.manual_seed(3)
    models = [Llama(config) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    model = SideBySide(models)
    return model, NativeStep(model)


def problems(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of four- and five-digit answers, its length no multiple of eight, some problems left out."""
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(n, 5))
    weights = torch.ones(n)
    weights[::7] = 0.0
    return a, b, weights


def test_losses_and_gradients_are_those_of_torch_in_float64(pair):
    model, native = pair
    batch = problems(2 * PART + 5)
    scale = torch.tensor([0.5, 2.0])
    losses = native.losses(model, *batch)
    model.zero_grad()
    (losses * scale).sum().backward()
    found = [seed.grad.clone() for seed in model.seeds]
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    expected = summed_losses(exact, *batch)
    (expected * scale).sum().backward()
    assert torch.allclose(losses.double(), expected, rtol=1e-5)
    for gradient, seed in zip(found, exact.seeds, strict=True):
        largest = seed.grad.abs().max()
        assert (gradient - seed.grad).abs().max() < 3e-5 * largest


@pytest.mark.parametrize("n", [101, 2 * PART + 5])
def test_any_number_of_threads_computes_the_same_bits(pair, n):
    model, native = pair
    a, b, weights = problems(n)
    threads, found = native.threads, []
    for native.threads in (1, 2, 5):
        losses, gradients = native.gradients([seed.detach() for seed in model.seeds], (a, b, weights))
        fast = copy.deepcopy(model)
        optimizer = FlatMuon(fast.parameters(), fast.shapes, lr=1e-2)
        updates = [optimizer.compiled_step(native, a, b, n) for _ in range(3)]
        found.append((losses, gradients, torch.tensor(updates), torch.stack(list(fast.seeds))))
    native.threads = threads
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


def test_right_answers_and_margins_are_those_of_torch(pair):
    model, native = pair
    a, b, weights = problems(333)
    with torch.no_grad():
        losses, right = native.measured(model, a, b, weights)
        expected_losses, expected_right = measured(model, a, b, weights)
        assert torch.equal(right.float(), expected_right)
        assert torch.allclose(losses.float(), expected_losses, rtol=1e-4)
        threads, expected = native.threads, smallest_margins(model, a, b)
        for native.threads in (1, 3):
            torch.testing.assert_close(native.margins(model, a, b), expected, rtol=1e-3, atol=1e-4)
        native.threads = threads


def test_the_compiled_update_is_backward_and_step_in_float64(pair):
    """Five updates with clipping and decay, the rate falling; losses and weights agree."""
    model, native = pair
    fast, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    options = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.3, "clip_each": True}
    one, other = (FlatMuon(each.parameters(), each.shapes, **options) for each in (fast, exact))
    a, b, _ = problems(PART + 64)
    targets = 5 * len(a) + int((a + b >= 10000).sum())
    for step in range(5):
        for optimizer in (one, other):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        losses = summed_losses(exact, a, b, torch.ones(len(a))) / targets
        exact.zero_grad()
        losses.sum().backward()
        other.step()
        assert one.compiled_step(native, a, b, targets) == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    for start, parameters, others in zip(model.seeds, fast.seeds, exact.seeds, strict=True):
        moved = (others - start).abs().max()
        assert (parameters - others).abs().max() < 1e-3 * moved
    assert one.state[fast.seeds[0]]["step"] == 5


@pytest.mark.parametrize("shape", [{"norm_type": "rmsnorm"}, {"tie_embeddings": False}, {"dim": 128}])
def test_what_the_step_does_not_compute_is_left_to_torch(shape):
    assert not supported(config_of(**{"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2} | shape), CPU)
