"""Every figure in the tables of README and docs is what the measured JSON says."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict

import pytest

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes
from llama import Llama
from lora import TARGETS, apply_lora, count_lora_parameters
from tests import leader_board
from tests.tiny import ROOT

SENTIMENT = json.loads((ROOT / "docs" / "sentiment_results.json").read_text("utf-8"))
GENERATION = json.loads((ROOT / "docs" / "generation_results.json").read_text("utf-8"))
METRICS = ("dev_acc", "test_acc", "dev_macro_f1", "test_macro_f1")


def table_rows(page: str, heading: str | None = None) -> list[list[str]]:
    """The cells of every table row of a page, below a heading if one is named."""
    text = (ROOT / page).read_text("utf-8")
    if heading is not None:
        text = re.split(r"\n##+ ", text.split(f"## {heading}\n")[1])[0]
    return cells(text.splitlines())


def cells(lines: list[str]) -> list[list[str]]:
    """The rows of a Markdown table among these lines, without the rule below its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def measured_sentiment(data: str) -> dict[str, dict[str, str]]:
    """Row name -> metric -> mean, with the standard deviation of accuracies over several seeds."""
    runs = defaultdict(list)
    for name, run in SENTIMENT["runs"].items():
        of, row, _ = name.split(" | ")
        if of == data:
            runs[row].append(run)
    return {row: {metric: _shown(metric, group) for metric in METRICS} for row, group in runs.items()}


def _shown(metric: str, group: list[dict]) -> str:
    values = [run[metric] for run in group if run.get(metric) is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and metric.endswith("acc") else ""
    return f"{statistics.mean(values):.3f}{spread}"


@pytest.mark.parametrize(
    ("data", "heading", "columns"),
    [("sst", "SST-5", METRICS), ("cfimdb", "CFIMDB", ("dev_acc", "dev_macro_f1"))],
)
def test_the_sentiment_tables_are_what_was_measured(data, heading, columns):
    measured = measured_sentiment(data)
    shown = {row[0]: row[1:] for row in table_rows("docs/sentiment.md", heading) if row[0] in measured}
    assert set(shown) == set(measured)
    for row, cells in shown.items():
        assert cells == [measured[row][metric] for metric in columns], row


@pytest.mark.parametrize(
    ("data", "heading", "columns"),
    [("sst", "SST-5", METRICS), ("cfimdb", "CFIMDB", ("dev_acc", "dev_macro_f1"))],
)
def test_tf_idf_is_what_was_measured(data, heading, columns):
    shown = {row[0]: row[1:] for row in table_rows("docs/sentiment.md", heading)}
    tfidf = SENTIMENT["tfidf"][data]
    assert shown["TF-IDF and logistic regression"] == [f"{tfidf[name]:.3f}" for name in columns]


def test_the_speeds_of_generation_are_what_was_measured():
    columns = [(dtype, batch) for batch in (1, 20) for dtype in ("float32", "bfloat16", "int8")]
    names = {"this project": "this project, {}", "transformers": "transformers {}", "CTranslate2": "CTranslate2 {}"}
    engines = {name: [f"{key.format(dtype)}, batch {n}" for dtype, n in columns] for name, key in names.items()}
    programs = {("float32", 1): "llama2.c run, batch 1", ("int8", 1): "llama2.c runq, batch 1"}
    engines["llama2.c `run`, `runq`"] = [programs.get(column, "") for column in columns]
    rows = {row[0]: row[1:] for row in table_rows("docs/generation.md") if row[0] in engines}
    assert set(rows) == set(engines)
    for name, keys in engines.items():
        speeds = [GENERATION["engines"].get(key, {}).get("tokens_per_second") for key in keys]
        assert rows[name] == ["" if speed is None else f"{speed:,.0f}" for speed in speeds], name


def test_the_worth_of_the_fast_paths_is_what_was_measured():
    paths = json.loads((ROOT / "docs" / "fast_paths.json").read_text("utf-8"))
    page = (ROOT / "docs" / "generation.md").read_text("utf-8")
    relative = float(re.search(r"Continuous batching is ([\d.]+) times", page)[1])
    assert all(abs(paths[f"continuous batching, {n} thread(s)"]["relative"] - relative) < 0.1 for n in (1, 2))
    assert all(paths[f"shipped, {n} thread(s)"]["int8 weights"]["relative"] < 1 for n in (1, 2))


def test_the_comparison_with_transformers_is_what_was_measured():
    results = json.loads((ROOT / "docs" / "real_model.json").read_text("utf-8"))
    page, sides = (ROOT / "docs" / "real_models.md").read_text("utf-8"), ("ours", "transformers")
    shown = [row[1:] for row in table_rows("docs/real_models.md", "Against transformers")[1:]]
    errors = [f"{results[f'float64_error_{side}']:.1e}".replace("e-0", "e-") for side in sides]
    measured = [[f"{results[f'{name}_{side}']}" for side in sides]
                for name in ("tokens_per_second", "gigabytes_per_second")]  # fmt: skip
    assert shown == [*measured, errors]
    assert f"median ratio of the rounds: {results['ratio']})" in page and results["ratio"] > 2
    assert f"as many numbers: {results['gigabytes_per_second_of_reading']})" in page
    assert results["equal_texts"] == results["equal_texts_gguf"] == results["texts"] == 10
    for name in ("logit_error_folder", "threads_error_transformers"):
        assert f"{results[name]:.1e}".replace("e-0", "e-") in page


def test_the_shipped_models_figures_are_what_was_measured():
    page = (ROOT / "docs" / "pretraining.md").read_text("utf-8")
    evaluation = json.loads((ROOT / "models" / "evaluate.json").read_text("utf-8"))
    trained = json.loads((ROOT / "models" / "stories.json").read_text("utf-8"))
    rows = {row[0]: row[1] for row in table_rows("docs/pretraining.md")}
    assert rows[f"bits per byte on {evaluation['documents']} held-out stories"] == f"{evaluation['bits_per_byte']}"
    assert rows["perplexity per token on the same stories"] == f"{evaluation['perplexity_per_token']}"
    assert rows["tokens seen"] == f"{trained['result']['tokens']:,} in {trained['result']['steps']:,} steps"
    assert rows["time"].startswith(f"{trained['result']['hours']} hours")
    assert re.search(rf"{trained['config']['dim']} wide, {trained['config']['n_layers']} layers", page)


def test_the_pages_speed_and_memory_are_what_was_measured():
    results = json.loads((ROOT / "docs" / "page_results.json").read_text("utf-8"))
    medians = results["medians"]
    shown = {row[0]: row[1] for row in table_rows("docs/page.md") if row[0]}
    assert shown == {
        "size of the file": f"{results['page_mb']} MB",
        "load, until the views are drawn": f"{medians['load_ms'] / 1000:.1f} s",
        "a text of one token, from the click to its views": f"{medians['first_token_ms'] / 1000:.2f} s",
        "tokens per second, computing only": f"{medians['engine_tokens_per_second']:.0f}",
        f"tokens per second, a text of {results['tokens']} tokens with all views": (
            f"{medians['page_tokens_per_second']:.0f}"
        ),
        "memory after that text": f"{medians['memory_mb']:.0f} MB",
        "memory after looking at thirty tokens": f"{medians['memory_after_looks_mb']:.0f} MB",
        "memory of an empty page": f"{medians['empty_page_memory_mb']:.0f} MB",
    }


SOURCES = {  # page: the JSON files that its figures come from, and figures that are facts about the input or the shape
    "docs/generation.md": (["docs/generation_results.json"], ()),
    "docs/ail861.md": (
        ["results/ail861/results.json", "results/ail861/tables.md", "recipes/ail861_small.toml"],
        ("21,755", "456", "3.6"),  # stories of the two texts; million parameters
    ),
    "docs/pretraining.md": (["models/stories.json", "models/evaluate.json"], ("21,755", "2,783", "6,955,520")),
}
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])")
NO_FIGURES = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+| (?:19|20)\d\d\b", re.S)  # code, links, papers


def figures_of(value: object) -> set[float]:
    """All numbers in a JSON value, those within its texts included."""
    if isinstance(value, dict):
        return figures_of(list(value.values())) | figures_of(list(value))
    if isinstance(value, list):
        return set().union(*map(figures_of, value))
    return {float(text.replace(",", "")) for text in NUMBER.findall(str(value))}


def is_rounded(text: str, figures: set[float]) -> bool:
    """Whether a number is one of the figures, as it is, in per cent or in millions, rounded to its digits."""
    value, digits = float(text.replace(",", "")), len(text.partition("e")[0].partition(".")[2])
    shown = [value, value / 100, value * 1e6]
    return any(abs(figure - each) <= 0.5001 * 10**-digits * each / (value or 1) for figure in figures for each in shown)


@pytest.mark.parametrize("page", SOURCES)
def test_every_figure_of_a_page_is_in_its_sources(page):
    paths, facts = SOURCES[page]
    figures: set[float] = set()
    for path in paths:
        text = (ROOT / path).read_text("utf-8")
        figures |= figures_of(json.loads(text) if path.endswith(".json") else text)
    numbers = NUMBER.findall(NO_FIGURES.sub(" ", (ROOT / page).read_text("utf-8")))
    assert len(numbers) > 5
    assert [text for text in numbers if text not in facts and not is_rounded(text, figures)] == []


def test_the_speed_of_adder_training_is_what_was_measured():
    speed = json.loads((ROOT / "docs" / "addition_speed.json").read_text("utf-8"))
    rows = {row[0]: row[1:] for row in table_rows("docs/addition.md", "Speed")}
    muon = {name.split()[-1]: each for name, each in speed.items() if name.startswith("Muon,")}
    shown = {f"{int(batch):,}": (each, ("torch", "native")) for batch, each in muon.items()}
    shown |= {shape: (speed[shape], ("course", "torch", "native")) for shape in ("8/3/2/2", "16/6/4/4")}
    for row, (each, names) in shown.items():
        measured = [each[name] for name in names]
        assert rows[row] == [*(f"{value:,}" for value in measured), f"{measured[-1] / measured[0]:.1f}"]
    for name, each in speed["threads of Muon's updates"].items():
        parameters, models, batch = re.findall(r"\d+", name)
        row = rows[f"{parameters} parameters, {models} at a time, batches of {int(batch):,}"]
        assert row == [f"{each['1']:,}", f"{each['2']:,}", f"{each['2'] / each['1']:.2f}"]
    text = (ROOT / "docs" / "addition.md").read_text("utf-8")
    for name in ("1,784 parameters, 6 seeds", "exhaustive, 1,784 parameters"):
        assert f"{speed[name]:,}" in text


def test_the_figures_of_a_real_model_on_sst_are_what_was_measured():
    measured = json.loads((ROOT / "docs" / "real_model_sst.json").read_text("utf-8"))
    rows = {row[0]: row[1:] for row in table_rows("docs/real_models.md") if row[0] in measured}
    assert set(rows) == {"zero-shot, sequence scoring", "fine-tuning"}
    for name, cells in rows.items():
        assert cells == [f"{measured[name][metric]:.3f}" for metric in METRICS]


def test_facts_about_the_shapes():
    """The numbers of parameters that two pages name."""
    for source, shown in (("models/stories.json", 6_955_520), ("results/ail861/results.json", 3.6e6)):
        content = json.loads((ROOT / source).read_text("utf-8"))
        config = content.get("config") or content["data"]["config"]
        count = sum(math.prod(shape) for shape in parameter_shapes(LlamaConfig.from_dict(config)).values())
        assert abs(count - shown) <= (0.05e6 if shown == 3.6e6 else 0)


def test_the_ablations_of_the_adder_are_what_was_measured():
    rows = [row for row in table_rows("docs/addition.md", "The ablations") if row[0].isdigit()]
    assert len(rows) > 15
    for number, _, parameters, accuracy, seeds in rows:
        folder = ROOT / "addition_models" / f"ablation_{number}"
        summary = json.loads((folder / "experiment_summary.json").read_text("utf-8"))
        ends = summary["train_config"]["result"]["seed_accuracies_at_the_end"]
        assert (parameters, accuracy) == (f"{summary['num_params']:,}", f"{summary['accuracy']:.4f}"), number
        best = sorted(ends, reverse=True)[:4] if len(ends) > 3 else ends
        assert seeds == ", ".join(f"{each:.3f}" for each in best), number


def test_lora_trains_the_share_that_the_page_names():
    config = LlamaConfig.from_dict(json.loads((ROOT / "models" / "stories.json").read_text("utf-8"))["config"])
    model = apply_lora(Llama(config), rank=8, targets=TARGETS["all"])
    head = 5 * config.dim + 5
    factors, total, _ = count_lora_parameters(model)
    share = f"trains {100 * (factors + head) / (total + head):.1f} % of the parameters"
    assert share in " ".join((ROOT / "docs" / "sentiment.md").read_text("utf-8").split())


def test_the_leader_boards_are_what_the_models_measured():
    shown = (ROOT / "addition_models" / "README.md").read_text("utf-8")
    assert shown == leader_board.page(), "python -m tests.leader_board writes it anew"
