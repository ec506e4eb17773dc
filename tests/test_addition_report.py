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
    assert len(stars) == 1 and stars[0].get_xydata().tolist() == [[462.0, 1.0]]
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


def test_without_its_carrying_head_every_digit_of_the_best_model_has_a_carry():
    """As docs/addition.md tells it; and the model is as before afterwards."""
    model = load_adder(BEST, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(2000, 1))
    a, b = a[a + b >= 10000], b[a + b >= 10000]
    alone, large, carried, small = addition_report.digits_without(model, 1, 0, a, b)
    assert alone < 0.05 and alone + large > 0.98 and carried > 0.95 and carried + small > 0.99
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def switched_off() -> dict[str, dict[str, float]]:
    """Part -> kind of token -> share that stays right, on problems that the figure does not use."""
    model = load_adder(BEST, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(1500, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = {name: addition_report.without(model, weight, columns, a, b) for name, weight, columns in
            addition_report.parts(model)}  # fmt: skip
    rows["nothing"] = addition_report.outcomes(model, a, b)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return {name: dict(zip(addition_report.OUTCOMES, shares, strict=True)) for name, shares in rows.items()}


def test_each_part_of_the_best_model_does_what_docs_addition_says(switched_off):
    off = switched_off
    assert len(off) == 1 + 2 * (2 + 1) and set(off["nothing"].values()) == {1.0}
    columns, length, unit_1 = off["layer 1, head 2"], off["layer 1, head 1"], off["layer 1, unit 1"]
    assert columns["all digits"] < 0.15 and columns["end after 5"] > 0.9
    assert length["all digits"] < 0.15 and max(length["end after 4"], length["end after 5"]) < 0.15
    assert unit_1["digit, carry in"] < 0.1 < 0.3 < unit_1["digit, no carry in"] < 0.5
    fetch, carry, unit_2 = off["layer 2, head 2"], off["layer 2, head 1"], off["layer 2, unit 1"]
    assert fetch["all digits"] < 0.15 and fetch["end after 4"] > 0.99
    assert carry["digit, no carry in"] < 0.1 and carry["digit, carry in"] > 0.9
    assert max(carry["leading 1"], carry["end after 4"]) < 0.01 and carry["end after 5"] > 0.99
    assert unit_1["end after 4"] > 0.99 and unit_1["leading 1"] < 0.5
    assert unit_2["end after 4"] > 0.99 and max(unit_2["leading 1"], unit_2["end after 5"]) < 0.01
    assert unit_2["all digits"] < 0.3


def test_the_heads_of_the_best_model_look_where_docs_addition_says():
    """b's digits at a's, `=` at both thousands digits; each answer position at its column, which the length moves."""
    model = load_adder(BEST, torch.device("cpu"))
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(200, 3))
    column = {name: index for index, name in enumerate(addition_report.POSITION_NAMES)}
    for five in (True, False):
        rows = problem_tokens(a, b).T[(a + b >= 10000) == five][:60]
        maps = torch.stack([attention_weights(model, row) for row in rows]).mean(dim=0)  # (layers, heads, 16, 16)
        for place in range(4):
            assert maps[0, 1, column[f"b{place}"], column[f"a{place}"]] > 0.9
        halves = maps[0, 0, column["="]]
        assert min(halves[column["a3"]], halves[column["b3"]]) > 0.4
        fetched = ("b3", "b2", "b1", "b0") if five else ("b2", "b1", "b0")
        for query, key in zip(("c4", "c3", "c2", "c1"), fetched, strict=False):
            assert maps[1, 1, column[query], column[key]] > 0.9
        right_of = ("b2", "b1", "b0", "start") if five else ("b1", "b0", "start")
        for query, key in zip(("c4", "c3", "c2", "c1"), right_of, strict=False):
            assert maps[1, 0, column[query], column[key]] > 0.75
    assert maps[1, 0, column["="], column["b2"]] > 0.85  # of four-digit sums: does a carry reach the thousands?


def test_the_best_model_was_shrunk_as_docs_addition_says():
    """Sixteen choices in the first step, fifteen of them above 0.99, and the minutes of all steps and the run."""
    result = json.loads((BEST.parent / "training_config.json").read_text("utf-8"))["result"]
    first = result["trial"]["before"]["before"]["seed_accuracies"]
    assert len(first) == 16 and sum(accuracy > 0.99 for accuracy in first) == 15
    page = (ROOT / "docs" / "addition.md").read_text("utf-8")
    assert f"{result['minutes'] + result['trial']['minutes']:.0f} minutes on one AMD core" in page
