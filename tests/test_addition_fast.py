"""The fast layout against the shared `Llama`, in float64: the same logits, gradients and trained weights."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pytest
import torch

from config import LlamaConfig
from engine.train.muon import Muon, muon_groups, orthogonalise
from llama import Llama
from optimizer import AdamW
from tasks.addition.batched_model import SideBySide, answer_targets, counted, problem_tokens
from tasks.addition.flat_muon import FlatMuon
from tasks.addition.problems import encode_problems, sample_problems
from tasks.addition.workload import (
    AdditionWorkload,
    Problems,
    Shares,
    easy_problems,
    summed_losses,
    travelling,
)

CONFIGS = {
    "course": {"dim": 8, "n_layers": 3, "n_heads": 2, "n_kv_heads": 2},
    "grouped, wide heads": {"dim": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_size": 4, "hidden_dim": 5},
    "one layer, rms, untied": {
        "dim": 20, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "norm_type": "rmsnorm", "tie_embeddings": False,
        "rope_theta": 50.0,
    },
}  # fmt: skip


def models(name: str, seeds: int = 2) -> list[Llama]:
    """Random models with gains and biases that are not ones and zeros."""
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=13, max_seq_len=20, **CONFIGS[name])
    made = [Llama(config).double() for _ in range(seeds)]
    with torch.no_grad():
        for model in made:
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def problems(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = sample_problems(n, seed)
    return torch.from_numpy(a), torch.from_numpy(b)


def plain_loss(model: Llama, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The course's loss over the course's rows, summed."""
    x, y = encode_problems(a.numpy(), b.numpy())
    x, y = x.long(), y.long()
    y[:, :10] = -1
    logits, _ = model(x, targets=y)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")


def test_tokens_and_targets_are_the_courses_rows():
    a, b = problems(3000)
    a[:4], b[:4] = torch.tensor([1000, 9999, 5000, 4999]), torch.tensor([1000, 9999, 5000, 5000])
    x, y = encode_problems(a.numpy(), b.numpy())
    tokens = problem_tokens(a, b)
    assert torch.equal(tokens.T, x.long())
    targets = torch.where(counted(tokens), answer_targets(tokens), -1)
    assert torch.equal(targets.T, y[:, 10:].long())


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_shared_models(name):
    made, (a, b) = models(name), problems(30)
    fast = SideBySide(made)(a, b)  # (seeds, vocab, 6, batch)
    x, _ = encode_problems(a.numpy(), b.numpy())
    for model, logits in zip(made, fast, strict=True):
        plain = model(x.long(), targets=x)[0][:, 10:]  # (batch, 6, vocab)
        torch.testing.assert_close(logits.permute(2, 1, 0), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_the_shared_models(name):
    made, (a, b) = models(name), problems(30)
    fast = SideBySide(made)
    weights = torch.ones(30)
    weights[20:] = 0  # left out
    losses = summed_losses(fast, a, b, weights)
    losses.sum().backward()
    for index, model in enumerate(made):
        loss = plain_loss(model, a[:20], b[:20])
        loss.backward()
        assert losses[index].item() == pytest.approx(loss.item(), abs=1e-10)
        place = 0
        for parameter in (dict(model.named_parameters())[shape] for shape in fast.shapes):
            flat = fast.seeds[index].grad[place : place + parameter.numel()]
            torch.testing.assert_close(flat, parameter.grad.flatten(), rtol=0, atol=1e-10)
            place += parameter.numel()


def test_a_hundred_steps_side_by_side_are_each_models_own():
    made = models("course")
    fast = SideBySide(made)
    options = {"lr": 1e-3, "max_grad_norm": 1.0}
    together = AdamW(fast.parameters(), **options, clip_each=True)
    alone = [AdamW(model.parameters(), **options, foreach=False) for model in made]
    every = torch.stack(problems(3200))
    for a, b in every.view(2, 100, 32).unbind(dim=1):
        count = counted(problem_tokens(a, b)).sum()
        together.zero_grad()
        (summed_losses(fast, a, b, torch.ones(32)).sum() / count).backward()
        together.step()
        for model, optimizer in zip(made, alone, strict=True):
            optimizer.zero_grad()
            (plain_loss(model, a, b) / count).backward()
            optimizer.step()
    for index, model in enumerate(made):
        trained = fast.model_of(index).state_dict()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-10)


def test_what_the_layout_does_not_know_is_refused():
    for fields in ({"dropout": 0.1}, {"causal": False}, {"max_seq_len": 15}):
        sizes = {"vocab_size": 13, "dim": 8, "n_heads": 2, "n_kv_heads": 2, "max_seq_len": 20}
        config = LlamaConfig(**(sizes | fields))
        with pytest.raises(ValueError, match="fast path"):
            SideBySide([Llama(config)])


def test_the_step_is_one_graph_for_the_compiler():
    """Traced whole, without the code generator, which takes a minute."""
    fast, (a, b) = SideBySide(models("one layer, rms, untied", seeds=1)), problems(16)
    compiled = torch.compile(summed_losses, backend="aot_eager", fullgraph=True, dynamic=False)
    gradients = []
    for function in (summed_losses, compiled):
        fast.zero_grad()
        function(fast, a, b, torch.ones(16)).sum().backward()
        gradients.append(fast.seeds[0].grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


def test_without_a_compiler_the_step_runs_as_it_is(monkeypatch, capsys):
    def missing(*args):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: missing)
    monkeypatch.setenv("CXX", "no-such-compiler")
    drawn = Problems.of(*sample_problems(40, 0))
    fast = SideBySide(models("course"))
    workload = AdditionWorkload(fast, drawn, drawn, chunk=16, epochs=1, most_examples=40, seed=0)
    workload.compile_step(fast)
    assert capsys.readouterr().out.count("\n") == 1
    batches = workload.epoch(0)
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert workload.loss(fast, batches[2]).item() > 0 and workload.evaluate(fast)["score"] < 0


def test_the_loss_of_seeds_is_their_mean_with_the_gradient_of_their_sum():
    made, drawn = models("course"), Problems.of(*sample_problems(10, 0))
    fast = SideBySide(made)
    workload = AdditionWorkload(fast, drawn, drawn, chunk=16, epochs=1, most_examples=10, seed=0)
    loss = workload.loss(fast, torch.arange(10))
    loss.backward()
    plain = [plain_loss(model, drawn.a.long(), drawn.b.long()) for model in made]
    assert loss.item() == pytest.approx(sum(plain).item() / 2, abs=1e-8)
    plain[1].backward()
    embedding = fast.seeds[1].grad[: 13 * 8].view(13, 8)
    torch.testing.assert_close(embedding, made[1].tok_embeddings.weight.grad, rtol=0, atol=1e-8)
    assert workload.count(torch.arange(10)) == int(counted(problem_tokens(drawn.a.long(), drawn.b.long())).sum())


def test_problems_whose_carries_travel_are_drawn_more_often():
    """Of half the examples a third each has one, two and three nines; the other half is as it was drawn."""
    fast, drawn = SideBySide(models("course", seeds=1)), Problems.of(*sample_problems(30_000, 5))
    groups = travelling(drawn)
    nines = torch.zeros(len(drawn), dtype=torch.long)
    for count, places in enumerate(groups, start=1):
        nines[places.long()] = count
    texts = [(f"{a}", f"{b}") for a, b in zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)]
    counted_by_hand = [sum(int(d) + int(e) == 9 for d, e in zip(a[1:], b[1:], strict=True)) for a, b in texts]
    assert nines.tolist() == counted_by_hand
    workload = AdditionWorkload(fast, drawn, drawn, 16, 1, len(drawn), seed=0, shares=Shares(nines=0.5))
    order = workload.epoch(0).order.long()
    shares = torch.bincount(nines[order], minlength=4) / len(order)
    usual = torch.bincount(nines, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, usual / 2 + torch.tensor([0, 1, 1, 1]) / 6, rtol=0, atol=0.02)
    assert torch.equal(order, workload.epoch(0).order.long())


def test_chains_with_and_without_a_carry_are_drawn_equally_often():
    """Each group of six, counted by hand, has a sixth of the replaced examples, and all that overlap with others."""
    drawn = Problems.of(*sample_problems(60_000, 5))
    groups = travelling(drawn, "carry")
    assert len(groups) == 6
    by_hand = [[] for _ in groups]
    for place, (a, b) in enumerate(zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)):
        sums = [int(d) + int(e) for d, e in zip(reversed(f"{a}"), reversed(f"{b}"), strict=True)]
        for length in (1, 2, 3):
            into = [sums[at] for at in range(4 - length) if sums[at + 1 : at + 1 + length] == [9] * length]
            for number, comes in enumerate((any(sum > 9 for sum in into), any(sum < 9 for sum in into))):
                by_hand[2 * length - 2 + number] += [place] * comes
    assert [group.tolist() for group in groups] == by_hand
    deep = torch.cat([groups[2], groups[4]])  # docs/addition.md: one of fifteen, drawn by count
    share = statistics.mean(torch.isin(group, deep).float().mean().item() for group in travelling(drawn))
    assert share == pytest.approx(1 / 15, abs=0.01)
    fast = SideBySide(models("course", seeds=1))
    shares = Shares(nines=1.0, nines_by="carry")
    order = AdditionWorkload(fast, drawn, drawn, 16, 1, len(drawn), seed=0, shares=shares).epoch(0).order
    longest = [torch.isin(order, group).float().mean().item() for group in groups[4:]]
    assert longest == pytest.approx([1 / 6, 1 / 6], abs=0.01)


def test_the_share_of_long_carries_changes_over_the_run():
    """From 0.8 to 0.2 over one and a half epochs: the share of problems with a column that sums to nine."""
    fast, drawn = SideBySide(models("course", seeds=1)), Problems.of(*sample_problems(30_000, 5))
    long = torch.zeros(len(drawn), dtype=torch.bool)
    long[torch.cat(travelling(drawn)).long()] = True
    shares = Shares(nines=0.8, nines_end=0.2)
    workload = AdditionWorkload(fast, drawn, drawn, 16, 2, 45_000, seed=0, shares=shares)
    order = torch.cat([workload.epoch(epoch).order.long() for epoch in (0, 1)])
    usual = long.float().mean().item()
    for middle in (1500, 22_500, 43_500):
        share = 0.8 - 0.6 * middle / 45_000
        measured = long[order[middle - 1500 : middle + 1500]].float().mean().item()
        assert measured == pytest.approx(share + (1 - share) * usual, abs=0.05)


def test_muon_on_flat_parameters_is_the_engines_muon(monkeypatch):
    """Ten steps with random gradients, against `engine.train.muon.Muon` on the models' own tensors."""
    exact = partial(orthogonalise, dtype=torch.float64)  # the engine's default is bfloat16
    monkeypatch.setattr("engine.train.muon.orthogonalise", exact)
    made = models("grouped, wide heads")
    fast = SideBySide(made)
    options = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": None}
    flat = FlatMuon(fast.parameters(), fast.shapes, **options)
    plain = []
    for model in made:
        groups = [group | {"weight_decay": 0.1} for group in muon_groups(model, 0.1)]
        plain.append(Muon(groups, lr=1e-2, max_grad_norm=None))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for parameters, model in zip(fast.seeds, made, strict=True):
            parameters.grad = torch.randn(len(parameters), generator=generator, dtype=torch.float64)
            pieces = parameters.grad.split([math.prod(shape) for shape in fast.shapes.values()])
            for (name, shape), piece in zip(fast.shapes.items(), pieces, strict=True):
                dict(model.named_parameters())[name].grad = piece.view(shape).clone()
        flat.step()
        for optimizer in plain:
            optimizer.step()
    for index, model in enumerate(made):
        for name, tensor in fast.model_of(index).state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-10)


def test_easy_problems_come_first_and_fade():
    """A zero stands in each lower column of the easy ones; their share falls from 0.8 to none at half of the run."""
    fast, drawn = SideBySide(models("course", seeds=1)), Problems.of(*sample_problems(30_000, 5))
    easy = torch.zeros(len(drawn), dtype=torch.bool)
    easy[easy_problems(drawn).long()] = True
    texts = [(f"{a}", f"{b}") for a, b in zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)]
    assert easy.tolist() == [all("0" in column for column in zip(a[1:], b[1:], strict=True)) for a, b in texts]
    workload = AdditionWorkload(fast, drawn, drawn, 16, 2, 45_000, seed=0, shares=Shares(zeros=0.8))
    first, second = (easy[workload.epoch(epoch).order.long()].float() for epoch in (0, 1))
    expected = [0.8 * (1 - start / 22_500) for start in (1500, 10_500, 22_500)]
    measured = [first[start - 1500 : start + 1500].mean().item() for start in (1500, 10_500, 22_500)]
    usual = easy.float().mean().item()
    assert measured == pytest.approx([share + (1 - share) * usual for share in expected], abs=0.05)
    assert second.mean().item() == pytest.approx(usual, abs=0.01)


def test_the_worst_group_is_the_one_of_largest_loss_by_the_plain_model():
    """Against the course's loss by the shared model: dev, and training problems by their columns that sum to nine."""
    made, drawn = models("course"), Problems.of(*sample_problems(4000, 6))
    dev = Problems.of(*sample_problems(100, 7))
    workload = AdditionWorkload(SideBySide(made), drawn, dev, 16, 1, len(drawn), seed=0)
    digits = [f"{a}{b}" for a, b in zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)]
    nines = [sum(int(text[at]) + int(text[at + 4]) == 9 for at in (1, 2, 3)) for text in digits]
    groups = [(dev.a.long(), dev.b.long())]
    for count in (1, 2, 3):
        places = torch.tensor([place for place, found in enumerate(nines) if found == count][:2048])
        groups.append((drawn.a[places].long(), drawn.b[places].long()))
    expected = []
    for model in made:  # an answer has four or five digits and its end
        losses = [plain_loss(model, a, b).detach() / (5 + (a + b >= 10000).int()).sum() for a, b in groups]
        expected.append(float(max(losses)))
    assert workload.worst_group_losses(SideBySide(made)) == pytest.approx(expected, rel=1e-6)
