"""AdamW equals torch's where the definitions agree, and its own definition in NumPy everywhere else; Muon turns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.train.muon import Muon, muon_groups, orthogonalise
from llama import Llama
from optimizer import AdamW, clip_by_global_norm, decay_groups
from tests.tiny import CONFIG

SHAPES = [(4, 3), (3,), (2, 2, 2)]


def parameters(seed: int = 0, dtype=torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(step: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def run(optimizer, tensors, steps: int, scale: float = 1.0) -> list[np.ndarray]:
    for step in range(steps):
        for parameter, gradient in zip(tensors, gradients(step, scale), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in tensors]


def step_both(optimizers, tensors, step: int) -> None:
    """One step of each optimizer on its own tensors, with the same gradients."""
    for optimizer, own in zip(optimizers, tensors, strict=True):
        for parameter, gradient in zip(own, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("foreach", [False, True])
def test_equals_torch_over_500_steps(foreach):
    """The two agree without eps (torch adds it to √(v / (1−β2ᵗ)), we to √v; gradients here are never 0).

    Decay is lined up too: torch shrinks a parameter before the update, we after it, so ours is run without and
    shrunk by hand before each step.
    """
    lr, decay = 3e-3, 0.05
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=lr, betas=(0.9, 0.98), eps=0.0, foreach=foreach)
    reference = torch.optim.AdamW(theirs, lr=lr, betas=(0.9, 0.98), eps=0.0, weight_decay=decay)
    for step in range(500):
        for parameter in ours:
            parameter.data.mul_(1 - lr * decay)
        step_both((mine, reference), (ours, theirs), step)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max().item() < 1e-10


def test_eps_lined_up_step_by_step_equals_torch():
    """With eps: ours at step t is torch's with eps / √(1−β2ᵗ), set anew before each step."""
    ours, theirs, eps = parameters(), parameters(), 1e-2
    mine, reference = AdamW(ours, lr=1e-2, eps=eps), torch.optim.Adam(theirs, lr=1e-2, eps=eps)
    for step in range(500):
        reference.param_groups[0]["eps"] = eps / (1 - 0.999 ** (step + 1)) ** 0.5
        step_both((mine, reference), (ours, theirs), step)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max().item() < 1e-10


def defined(steps, lr, betas, eps, weight_decay, correct_bias, max_grad_norm, scale) -> list[np.ndarray]:
    """The definition in NumPy."""
    values = [parameter.detach().numpy().copy() for parameter in parameters()]
    means, squares = [np.zeros_like(x) for x in values], [np.zeros_like(x) for x in values]
    for step in range(1, steps + 1):
        grads = [gradient.numpy() for gradient in gradients(step - 1, scale)]
        if max_grad_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            grads = [g * min(1.0, max_grad_norm / (norm + 1e-6)) for g in grads]
        size = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step) if correct_bias else lr
        for index, g in enumerate(grads):
            means[index] = betas[0] * means[index] + (1 - betas[0]) * g
            squares[index] = betas[1] * squares[index] + (1 - betas[1]) * g * g
            values[index] = values[index] - size * means[index] / (np.sqrt(squares[index]) + eps)
            values[index] = values[index] - lr * weight_decay * values[index]
    return values


@given(
    lr=st.floats(1e-5, 0.1), betas=st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999)), eps=st.floats(1e-8, 0.1),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]), correct_bias=st.booleans(),
    max_grad_norm=st.sampled_from([None, 0.1, 2.0, 1e6]), scale=st.sampled_from([1e-3, 1.0, 100.0]),
    foreach=st.booleans(),
)  # fmt: skip
def test_equals_its_definition(foreach, scale, **options):
    tensors = parameters()
    moved = run(AdamW(tensors, **options, foreach=foreach), tensors, 12, scale)
    for actual, expected in zip(moved, defined(12, **options, scale=scale), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("foreach", [False, True])
def test_state_round_trip_goes_on_to_the_same_bits(foreach):
    options = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 1.0, "foreach": foreach}
    tensors = parameters(dtype=torch.float32)
    optimizer = AdamW(tensors, **options)
    run(optimizer, tensors, 7)
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in tensors]
    other = AdamW(copies, lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.01 and other.param_groups[0]["max_grad_norm"] == 1.0
    for a, b in zip(run(optimizer, tensors, 5), run(other, copies, 5), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("foreach", [False, True])
def test_clipping_each_tensor_is_a_group_for_each(foreach):
    """And not the same as clipping them together: all norms are above the bound."""
    options = {"lr": 0.01, "max_grad_norm": 0.1, "foreach": foreach}
    apart, groups, together = parameters(), parameters(), parameters()
    found = run(AdamW(apart, **options, clip_each=True), apart, 12)
    expected = run(AdamW([{"params": [tensor]} for tensor in groups], **options), groups, 12)
    others = run(AdamW(together, **options), together, 12)
    for each, alone, shared in zip(found, expected, others, strict=True):
        np.testing.assert_allclose(each, alone, rtol=1e-12)
        assert not np.allclose(each, shared, rtol=1e-4)


def test_both_paths_agree_in_float32_and_leave_gradients_alone():
    moved = []
    for foreach in (False, True):
        tensors = parameters(dtype=torch.float32)
        moved.append(run(AdamW(tensors, lr=0.01, max_grad_norm=0.5, foreach=foreach), tensors, 50))
        assert torch.equal(tensors[0].grad, gradients(49)[0].float())
    for plain, together in zip(*moved, strict=True):
        np.testing.assert_allclose(plain, together, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_stay_and_the_closure_is_called():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([first, second], lr=0.1, weight_decay=0.5)

    def closure():
        optimizer.zero_grad()
        loss = first.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (first < 1).all() and torch.equal(second, torch.ones(2))


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1e-8}], ids=str
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        AdamW(parameters(), **wrong)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        AdamW(embedding.parameters()).step()


def test_clipping_equals_torch():
    tensors = parameters()
    for parameter, gradient in zip(tensors, gradients(0), strict=True):
        parameter.grad = gradient.clone()
    clipped = clip_by_global_norm([parameter.grad for parameter in tensors], 0.7)
    torch.nn.utils.clip_grad_norm_(tensors, 0.7)
    for ours, parameter in zip(clipped, tensors, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-12, atol=1e-14)


def test_groups_cover_each_trained_parameter_once():
    model = Llama(CONFIG)
    model.norm.bias.requires_grad_(False)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    groups = decay_groups(model, 0.1)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(placed) == len(set(placed)) and set(placed) == trained
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_orthogonalised_matrices_are_nearly_u_v(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(*shape)
    turned = orthogonalise(matrices)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.5 and values.max() < 1.35
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(turned.flatten(1), (u @ v).flatten(1))
    assert (cosine > 0.97).all()


def test_muon_moves_matrices_by_its_rate_and_the_rest_as_adamw():
    torch.manual_seed(0)
    model = Llama(CONFIG)
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        ours.grad = torch.randn(ours.shape, generator=generator)
        theirs.grad = ours.grad.clone()
    Muon(muon_groups(model, 0.0), lr=0.01).step()
    AdamW(reference.parameters(), lr=0.01).step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if name.startswith("layers.") and ours.dim() == 2:
            moved = (ours - theirs).abs().max()
            assert moved > 0
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.manual_seed(0)
    before = Llama(CONFIG)
    weight = "layers.0.attention.compute_query.weight"
    step = model.state_dict()[weight] - before.state_dict()[weight]
    values = torch.linalg.svdvals(step) / (0.2 * 0.01 * 32**0.5)
    assert values.min() > 0.5 and values.max() < 1.35
