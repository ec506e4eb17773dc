"""Shrinking: a faded part is a removed part, steps of one part, the best choice goes on, resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from config import LlamaConfig
from engine.io.checkpoint import load_plain
from llama import Llama
from tasks.addition import stages
from tasks.addition.batched_model import SideBySide
from tasks.addition.problems import read_problems
from tasks.addition.shrink import Fading, Feature, Part, Units, choices
from tasks.addition.testing import load_adder
from tasks.addition.workload import Problems, measure
from tests.test_addition_run import interrupted, training_in

LARGE = LlamaConfig(
    vocab_size=13, dim=6, n_layers=2, n_heads=2, n_kv_heads=1, head_size=4, hidden_dim=3, multiple_of=32,
    max_seq_len=20, layer_norm_eps=1e-30,
)  # fmt: skip
TOKENS = torch.randint(13, (7, 16), generator=torch.Generator().manual_seed(1))
STEPPED = LlamaConfig(  # the first shape of SHRINK
    vocab_size=13, dim=5, n_layers=1, n_heads=1, n_kv_heads=1, head_size=4, hidden_dim=3, multiple_of=32,
    max_seq_len=20,
)  # fmt: skip
SHRINK = ["--dim", "4", "--hidden_dim", "2", "--head_dim", "4", "--shrink", "5:3:200", "5:2:200", "4:2:200"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    return training_in(tmp_path, monkeypatch)


def random_model(seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    model = Llama(LARGE).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("part", [Units((0, 2)), Units((2, 1)), Feature(0), Feature(5)], ids=str)
def test_the_model_without_a_faded_part_is_the_same_model(part):
    """Logits of the large model whose part is at zero, and of the small one, in float64."""
    fast = SideBySide([random_model()])
    fade = Fading(list(fast.seeds), [part], fast.shapes)
    fade(10, 10)
    faded = fast.model_of(0)
    narrower = {"dim": 5} if isinstance(part, Feature) else {"hidden_dim": 2}
    small = Llama(dataclasses.replace(LARGE, **narrower)).double()
    small.load_state_dict(part.removed(fast.state_of(0)))
    expected = faded(TOKENS, targets=TOKENS)[0]
    torch.testing.assert_close(small(TOKENS, targets=TOKENS)[0], expected, rtol=0, atol=1e-9)
    assert not torch.allclose(random_model()(TOKENS, targets=TOKENS)[0], expected, atol=0.1)


def test_a_part_fades_linearly_and_nothing_else_moves():
    """Units go at once. A feature is half-way: what is written to it is half its own, half the others' mean."""
    made = [random_model(seed) for seed in (0, 1)]
    fast = SideBySide(made)
    fade = Fading(list(fast.seeds), [Units((1, 0)), Feature(2)], fast.shapes)
    half = round(Feature.fading * 100)
    for step in range(1, half + 1):
        fade(step, 200)
    units, feature = (fast.state_of(index) for index in (0, 1))
    before = made[0].state_dict()
    for name, tensor in units.items():
        expected = before[name].clone()
        if name.endswith("w2.weight"):
            expected[:, {"layers.0": 1, "layers.1": 0}[name[:8]]] = 0.0
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)
    for name, tensor in feature.items():
        expected = made[1].state_dict()[name].clone()
        if expected.dim() == 1:
            expected[2] *= 0.5
        elif name.endswith(("compute_output.weight", "w2.weight")):
            expected[2] = expected[2] / 2 + (expected.sum(dim=0) - expected[2]) / 10
        elif name in ("tok_embeddings.weight", "output.weight"):
            expected[:, 2] = expected[:, 2] / 2 + (expected.sum(dim=1) - expected[:, 2]) / 10
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)


def test_choices_are_all_parts_of_one_kind():
    narrower, fewer = dataclasses.replace(LARGE, dim=5), dataclasses.replace(LARGE, hidden_dim=2)
    assert choices(LARGE, narrower) == [Feature(place) for place in range(6)]
    assert choices(LARGE, fewer) == [Units((first, second)) for first in range(3) for second in range(3)]
    for other in (LARGE, dataclasses.replace(narrower, hidden_dim=2), dataclasses.replace(LARGE, dim=4)):
        with pytest.raises(ValueError, match="a step removes one"):
            choices(LARGE, other)


def test_the_best_choice_of_every_step_goes_on(train, tmp_path):
    """At a rate of zero only the fading moves weights, so every step can be repeated from the first weights by hand."""
    assert train(*SHRINK, "--lr", "0", "--trial_seeds", "3", "--trial_examples", "100", "--trial_rounds", "2:100") == 0
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    sizes = [13 * dim + 2 * dim + 4 * dim + dim * 16 + 3 * dim * ffn for dim, ffn in ((5, 3), (5, 3), (5, 2), (4, 2))]
    assert described["model_parameters"] == sizes[-1]
    in_order = zip([sizes[0]] * 2 + sizes, (100, 100, 200, 200, 200, 600), strict=True)
    assert described["capacity_used"] == 6 * sum(size * examples for size, examples in in_order)
    last = described["result"]["trial"]
    assert len(last["seed_accuracies"]) == 5 and len(last["before"]["seed_accuracies"]) == 3
    assert last["faded"].startswith("feature") and last["before"]["faded"].startswith("feed-forward units")
    assert len(last["before"]["before"]["before"]["seed_accuracies"]) == 2 and last["went_on"][0] in (1337, 1338, 1339)

    dev = Problems.of(*read_problems(tmp_path / "data" / "addition_dev.txt"))
    state, config = first_state(tmp_path), STEPPED
    for small, folder in (({"hidden_dim": 2}, "shrink_2"), ({"dim": 4}, "shrink_3")):
        large, config = config, dataclasses.replace(config, **small)
        runs, losses = load_plain(tmp_path / "run" / folder / "last.pt")["model"], last_losses(tmp_path, folder)
        made = [without(part, state, large, config) for part in choices(large, config)]
        for index, (faded, model) in enumerate(made):
            torch.testing.assert_close(runs[f"seeds.{index}"], faded, rtol=0, atol=1e-6)
            assert losses[index] == pytest.approx(measure(model, dev)[0][0], abs=1e-4)  # with the part at zero
        state = flat(made[min(range(len(made)), key=losses.__getitem__)][1])
    torch.testing.assert_close(load_plain(tmp_path / "run" / "last.pt")["model"]["seeds.0"], state, rtol=0, atol=1e-6)


def test_only_the_choices_that_hurt_least_are_trained(train, tmp_path):
    """Two of three units and two of five features: those without which the small model has the lowest loss."""
    assert train(*SHRINK, "--lr", "0", "--shrink_choices", "2") == 0
    dev = Problems.of(*read_problems(tmp_path / "data" / "addition_dev.txt"))
    result = json.loads((tmp_path / "run" / "training_config.json").read_text())["result"]["trial"]
    state, config = first_state(tmp_path), STEPPED
    for small, folder, found in (
        ({"hidden_dim": 2}, "shrink_2", result["before"]), ({"dim": 4}, "shrink_3", result),
    ):  # fmt: skip
        large, config = config, dataclasses.replace(config, **small)
        models = {str(part): without(part, state, large, config)[1] for part in choices(large, config)}
        losses = {name: measure(model, dev)[0][0] for name, model in models.items()}
        least = sorted(losses, key=losses.__getitem__)
        assert sorted(last_losses(tmp_path, folder)) == pytest.approx([losses[name] for name in least[:2]], abs=1e-4)
        assert len(least) > 2 and found["faded"] == least[0]
        state = flat(models[least[0]])


@pytest.mark.parametrize("near", [10.0, 0.0], ids=["parents that are as good", "a worse parent"])
def test_the_best_models_of_a_step_are_the_parents_of_the_next(train, tmp_path, monkeypatch, near):
    """Two of three seeds go on. Of their six pairs with a unit, then of ten with a feature, four are trained.

    Those of a worse parent, here of any but the best, come last.
    """
    monkeypatch.setattr(stages, "NEAR", near)
    search = ["--trial_seeds", "3", "--trial_examples", "100"]
    assert train(*SHRINK, *search, "--lr", "0", "--shrink_parents", "2", "--shrink_choices", "4") == 0
    dev = Problems.of(*read_problems(tmp_path / "data" / "addition_dev.txt"))
    found = load_plain(tmp_path / "run" / "shrink" / "last.pt")["model"]
    (states, config), losses = (list(found.values()), STEPPED), last_losses(tmp_path, "shrink")
    assert len(states) == len(losses) == 2 and losses == sorted(losses)
    for small, folder in (({"hidden_dim": 2}, "shrink_2"), ({"dim": 4}, "shrink_3")):
        large, config = config, dataclasses.replace(config, **small)
        parts = choices(large, config)
        made = [without(part, state, large, config) for state in states for part in parts]
        losses = [measure(model, dev)[0][0] for _, model in made]
        least = sorted(range(len(made)), key=lambda index: (index >= len(parts) and not near, losses[index]))
        runs = load_plain(tmp_path / "run" / folder / "last.pt")["model"]
        assert len(runs) == 4 < len(made)
        for place, index in enumerate(sorted(least[:4])):
            torch.testing.assert_close(runs[f"seeds.{place}"], made[index][0], rtol=0, atol=1e-6)
        states = [flat(made[index][1]) for index in sorted(least[:4], key=losses.__getitem__)[:2]]
    torch.testing.assert_close(
        load_plain(tmp_path / "run" / "last.pt")["model"]["seeds.0"], states[0], rtol=0, atol=1e-6
    )


def first_state(folder: Path) -> torch.Tensor:
    """The flat weights of the first shape of SHRINK."""
    return load_plain(folder / "run" / "shrink" / "last.pt")["model"]["seeds.0"]


def last_losses(folder: Path, stage: str) -> list[float]:
    """The dev losses of a stage's models at its end."""
    logged = [json.loads(line) for line in (folder / "run" / stage / "log.jsonl").read_text().splitlines()]
    return [record for record in logged if "score" in record][-1]["seed_losses"]


def without(part: Part, state: torch.Tensor, large: LlamaConfig, small: LlamaConfig) -> tuple[torch.Tensor, Llama]:
    """The flat weights with the part at zero, and the model of the smaller shape."""
    fast, model = SideBySide([Llama(large)]), Llama(small)
    fast.seeds[0].data.copy_(state)
    Fading(list(fast.seeds), [part], fast.shapes)(1, 1)
    model.load_state_dict(part.removed(fast.state_of(0)))
    return fast.seeds[0].detach(), model


def flat(model: Llama) -> torch.Tensor:
    """The weights in one vector."""
    return SideBySide([model]).seeds[0].detach()


MORE = {"all choices": [], "two choices": ["--shrink_choices", "2"], "hard problems": ["--hard", "0.5"],
        "two parents": ["--shrink_parents", "2"]}  # fmt: skip


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_a_stopped_step_resumes_to_the_same_weights(train, tmp_path, more):
    flags = [*SHRINK, "--save_every", "1", "--optimizer", "muon", "--max_grad_norm", "1", "--shrink_batch_size", "50"]
    flags += more
    assert train(*flags, "--save_dir", "whole") == 0
    with interrupted(lambda plan: (plan.trainer.folder.name, plan.trainer.progress.step) == ("shrink_3", 2)):
        assert train(*flags) == 130
    assert train(*flags, "--resume") == 0
    now, whole = (load_plain(tmp_path / name / "last.pt")["model"] for name in ("run", "whole"))
    assert all(torch.equal(now[name], whole[name]) for name in whole)
    pools = [load_plain(tmp_path / "run" / name / "last.pt").get("tensors") for name in ("shrink", "shrink_2", ".")]
    assert [bool(pool) for pool in pools] == ["--hard" in more, False, "--hard" in more]  # of stages with one model


def test_shrinking_starts_from_a_trained_model(train, tmp_path, capsys):
    """At a rate of zero the first step's models are the given one, each without its part; another shape is refused."""
    assert train("--dim", "5", "--hidden_dim", "3", "--head_dim", "4", "--save_dir", "large") == 0
    given = ["--shrink_from", "large/best_model.pth"]
    short = [*SHRINK[:6], "--shrink", "5:2:200", "4:2:200", "--lr", "0"]
    assert train(*short, *given) == 0
    state = flat(load_adder(tmp_path / "large" / "best_model.pth", torch.device("cpu")))
    first = load_plain(tmp_path / "run" / "shrink" / "last.pt")["model"]
    changed = [(first[f"seeds.{index}"] - state).nonzero()[:, 0].tolist() for index in range(3)]
    w2 = len(state) - 3 * 2 * 5 - 5 * 3 + torch.arange(5 * 3).view(5, 3)  # three norms' gains and biases come after it
    assert changed == [w2[:, index].tolist() for index in range(3)]
    assert train(*short, *given, "--trial_seeds", "3", "--trial_examples", "100") == 2
    assert train(*short, *given, "--n_layers", "2") == 2
    assert train(*short, "--shrink_from", "none.pth") == 2
    errors = capsys.readouterr().err
    assert "leave out --trial_seeds" in errors and "differs from the flags" in errors and "none.pth" in errors


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shrink_lr", "1e-2"], "--shrink_lr belongs to shrinking"),
        (["--choose_by", "worst_group"], "--choose_by belongs to a seed search or to shrinking"),
        (["--nines_by", "carry"], "--nines_by names the groups of --nines"),
        (["--shrink_choices", "2"], "--shrink_choices belongs to shrinking"),
        (["--shrink_parents", "2"], "--shrink_parents belongs to shrinking"),
        ([*SHRINK, "--shrink_parents", "100"], "--shrink would try 300 choices in one step"),
        ([*SHRINK, "--seeds", "2"], "leave out --seeds"),
        ([*SHRINK, "--dim", "5"], "--shrink must end with the shape of the run"),
        ([*SHRINK, "--shrink", "5:3:200", "4:2:200"], "a step removes one"),
        ([*SHRINK, "--shrink", "5:3"], "--shrink takes WIDTH:FFN:EXAMPLES"),
        ([*SHRINK, "--norm_type", "rmsnorm"], "a model with LayerNorm"),
        ([*SHRINK, "--n_layers", "6"], "729 choices of units"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_steps_are_one_line_before_any_work(train, tmp_path, capsys, flags, complaint):
    assert train(*flags) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and complaint in captured.err
    assert not list(tmp_path.rglob("last.pt"))
