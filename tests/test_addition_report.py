"""The table and the figure of all adders, from the files that testing leaves."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from config import LlamaConfig
from engine.io.checkpoint import save_checkpoint
from llama import Llama
from tasks.addition import report as addition_report
from tasks.addition.batched_model import POSITIONS, problem_tokens
from tasks.addition.picture import draw_experiments
from tasks.addition.problems import sample_problems
from tasks.addition.testing import load_adder
from tasks.attention_maps import attention_weights
from tests.tiny import ROOT

BEST = ROOT / "addition_models" / "best_model" / "best_model.pth"


def test_the_table_lists_every_tested_model_smallest_first(tmp_path, capsys):
    for name, parameters, accuracy, ends in (("large", 3288, 1.0, [1.0, 1.0]), ("small", 760, 0.5, [0.5, 0.1, 1.0])):
        (tmp_path / name).mkdir()
        summary = {"num_params": parameters, "accuracy": accuracy, "train_config": {"examples": 20_000_000}}
        summary["train_config"]["result"] = {"seed_accuracies_at_the_end": ends, "minutes": 8.5}
        summary["model_config"] = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
        (tmp_path / name / "experiment_summary.json").write_text(json.dumps(summary))
    (tmp_path / "untested").mkdir()
    assert addition_report.main(["--models", str(tmp_path), "--out", str(tmp_path / "figure.png")]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[2] == "| small | 760 | 8/2/2/1 | 20,000,000 | 8.5 | 1 of 3 | 0.5 | None |"
    assert lines[3].startswith("| large | 3,288 |") and "2 of 2" in lines[3]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_every_ablation_and_no_colour_comes_twice():
    figure = Figure(figsize=(12.0, 8.0), layout="constrained")
    axes = figure.subplots(1, 2)
    models = addition_report.read_models(ROOT / "addition_models")
    adders = addition_report.pictured(ROOT / "addition_models", models)
    ablations = [model["name"] for model in models if model["name"].startswith("ablation_")]
    assert len(ablations) > 20
    numbers = {name.removeprefix("ablation_") for name in ablations}
    assert {adder.name for adder in adders} == numbers | {"best", "course"}
    lines = draw_experiments(axes, adders, addition_report.public_points())
    assert len({line.get_color() for line in lines}) == len(lines) == len(adders)
    public = [f"{parameters:,}" for parameters, _ in addition_report.public_points()]
    names = [[text.get_text() for text in where.texts] for where in axes]
    assert sorted(names[0]) == sorted(adder.name for adder in adders)
    assert sorted(names[1]) == sorted([*names[0], *public])
    stars = [line for line in axes[1].lines if line.get_marker() == "*"]
    assert len(stars) == 1 and stars[0].get_xydata().tolist() == [[385.0, 1.0]]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axes[0].texts]  # without the leader lines
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_nothing_to_report_is_one_line(tmp_path, capsys):
    assert addition_report.main(["--models", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_heads_are_drawn_and_a_figure_without_a_name_is_refused(tmp_path, capsys):
    config = LlamaConfig(vocab_size=13, dim=8, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=4, max_seq_len=20)
    checkpoint = tmp_path / "adder.pth"
    save_checkpoint(checkpoint, config, Llama(config).state_dict())
    assert len(addition_report.POSITION_NAMES) == POSITIONS
    assert addition_report.main(["--heads_of", str(checkpoint), "--out", str(tmp_path / "heads.png")]) == 0
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert addition_report.main(["--parts_of", str(checkpoint), "--out", str(tmp_path / "parts.png")]) == 0
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
    assert addition_report.main(["--heads_of", str(checkpoint)]) == 2
    assert addition_report.main(["--heads_of", str(tmp_path / "none.pth"), "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_without_its_carrying_head_wrong_digits_of_the_best_model_are_off_by_one():
    """As docs/addition.md tells it."""
    model = load_adder(BEST, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(2000, 1))
    a, b = a[a + b >= 10000], b[a + b >= 10000]
    alone, large, carried, small = addition_report.digits_without(model, 1, 0, a, b)
    assert alone + large > 0.99 and carried + small > 0.99 and 0.5 < large + small < 1.5
    length = addition_report.digits_without(model, 0, 1, a, b)
    assert length == (1.0, 0.0, 1.0, 0.0)


def test_an_averaged_part_says_the_same_in_every_problem():
    """The mean over the problems, by hand: with one problem nothing changes. Afterwards the model is as before."""
    model = load_adder(BEST, torch.device("cpu"))
    matrix = model.layers[0].attention.compute_output
    inputs = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), addition_report.averaged(matrix, slice(0, 4)):
        alone, both = matrix(inputs[:1]), matrix(inputs)
    mean = torch.cat([inputs[..., :4].mean(dim=0).expand(2, 3, 4), inputs[..., 4:]], dim=-1)
    torch.testing.assert_close(alone, matrix(inputs[:1]), rtol=0, atol=0)
    torch.testing.assert_close(both, mean @ matrix.weight.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix(inputs), inputs @ matrix.weight.T, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def without() -> dict[str, dict[str, float]]:
    """Part -> kind of token -> share that stays right, on problems that the figure does not use."""
    model = load_adder(BEST, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(1500, 2))
    rows = {"nothing": addition_report.outcomes(model, a, b)}
    for name, matrix, columns in addition_report.parts(model):
        with addition_report.averaged(matrix, columns):
            rows[name] = addition_report.outcomes(model, a, b)
    return {name: dict(zip(addition_report.OUTCOMES, shares, strict=True)) for name, shares in rows.items()}


def test_each_part_of_the_best_model_does_what_docs_addition_says(without):
    assert len(without) == 1 + 2 * (2 + 1) and set(without["nothing"].values()) == {1.0}
    columns, length, unit_1 = (without[f"layer 1, {part}"] for part in ("head 1", "head 2", "unit 1"))
    assert columns["all digits"] < 0.15 and unit_1["all digits"] < 0.2
    assert length["end after 4"] < 0.01 and min(length["end after 5"], length["leading 1"]) > 0.99
    carry, fetch, unit_2 = (without[f"layer 2, {part}"] for part in ("head 1", "head 2", "unit 1"))
    assert fetch["all digits"] < 0.15
    assert 0.4 < carry["all digits"] < 0.6 and 0.4 < unit_2["all digits"] < 0.6
    assert carry["leading 1"] > 0.9 and carry["end after 4"] < 0.01 < 0.99 < carry["end after 5"]
    assert min(unit_2[name] for name in ("leading 1", "end after 4", "end after 5")) > 0.75


@pytest.mark.parametrize("five", [True, False], ids=["five digits", "four digits"])
def test_the_heads_of_the_best_model_look_where_docs_addition_says(five):
    """b's digits at a's; each position of the answer at its column, which the length moves, and at the carry's."""
    model = load_adder(BEST, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(1000, 3))
    a, b = a[(a + b >= 10000) == five][:300], b[(a + b >= 10000) == five][:300]
    names = addition_report.POSITION_NAMES
    maps = torch.stack([attention_weights(model, row) for row in problem_tokens(a, b).T])  # (n, layers, heads, 16, 16)
    for place in range(4):
        assert maps[:, 0, 0, names.index(f"b{place}"), names.index(f"a{place}")].min() > 0.9
    fetched = {"=": 3, "c4": 3, "c3": 2, "c2": 1, "c1": 0} if five else {"=": 3, "c4": 2, "c3": 1, "c2": 0}
    for query, column in fetched.items():
        row = names.index(query)
        assert maps[:, 1, 1, row, names.index(f"b{column}")].min() > 0.9
        carries = [(int(x), int(y), maps[index, 1, 0, row]) for index, (x, y) in enumerate(zip(a, b, strict=True))]
        right = [names[int(weights.argmax())] == names_of_carry(x, y, column) for x, y, weights in carries
                 if names_of_carry(x, y, column)]  # fmt: skip
        assert not column or sum(right) / len(right) > 0.98  # nothing is right of the last column


def names_of_carry(a: int, b: int, column: int) -> str:
    """b's digit in the first column to the right that does not sum to nine; empty if there is none."""
    for place in range(column - 1, -1, -1):
        if a // 10**place % 10 + b // 10**place % 10 != 9:
            return f"b{place}"
    return ""


def test_the_best_model_was_trained_as_docs_addition_says():
    """The minutes of all stages and the run, and what became of the eight models of the step to FFN 1."""
    result = json.loads((BEST.parent / "training_config.json").read_text("utf-8"))["result"]
    page = " ".join((ROOT / "docs" / "addition.md").read_text("utf-8").split())
    assert f"{result['minutes'] + result['trial']['minutes']:.0f} minutes on one AMD core" in page
    log = (BEST.parent / "shrink_4" / "log.jsonl").read_text("utf-8").splitlines()
    ends = [record for record in map(json.loads, log) if "seed_accuracies" in record][-1]["seed_accuracies"]
    assert len(ends) == 8 and f"between {min(ends):.2f} and {max(ends):.4f} of the dev problems" in page
