"""The table and the figure of all adders, from the files that testing leaves."""

from __future__ import annotations

import json

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from config import LlamaConfig
from engine.io.checkpoint import save_checkpoint
from llama import Llama
from tasks.addition import report as addition_report
from tasks.addition.batched_model import POSITIONS
from tasks.addition.picture import draw_experiments
from tasks.addition.problems import sample_problems
from tasks.addition.testing import load_adder
from tests.tiny import ROOT


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
    assert {adder.name for adder in adders} == {name.removeprefix("ablation_") for name in ablations} | {"best"}
    lines = draw_experiments(axes, adders, addition_report.public_points())
    assert len({line.get_color() for line in lines}) == len(lines) == len(adders)
    public = [f"{parameters:,}" for parameters, _ in addition_report.public_points()]
    names = [[text.get_text() for text in where.texts] for where in axes]
    assert sorted(names[0]) == sorted(adder.name for adder in adders)
    assert sorted(names[1]) == sorted([*names[0], *public])
    stars = [line for line in axes[1].lines if line.get_marker() == "*"]
    assert len(stars) == 1 and stars[0].get_xydata().tolist() == [[570.0, 1.0]]
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
    assert addition_report.main(["--heads_of", str(checkpoint)]) == 2
    assert addition_report.main(["--heads_of", str(tmp_path / "none.pth"), "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_without_its_carrying_head_the_best_model_forgets_the_carry_alone():
    """As docs/addition.md tells it; and the model is as before afterwards."""
    model = load_adder(ROOT / "addition_models" / "best_model" / "best_model.pth", torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(2000, 1))
    a, b = a[a + b >= 10000], b[a + b >= 10000]
    alone, carried, short = addition_report.digits_without(model, 1, 0, a, b)
    assert alone > 0.8 and carried < 0.2 and carried + short > 0.99
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
