"""The figures of docs/methods.md, and README's of the methods, are those of the files in results/."""

from __future__ import annotations

import json
import re
import statistics

import pytest

from bench.architectures import configs
from tasks.methods import decoding
from tasks.methods.comparison import accuracies, spread, table
from tasks.methods.experiments import read_results
from tests.test_figures import cells, table_rows
from tests.tiny import ROOT

METHODS = ROOT / "results" / "methods"


def test_readme_repeats_the_figures_of_the_methods():
    names = {
        "the story model": ("fine-tuning", "fine-tuning"),
        "`models/reviews.pt`": ("reviews: fine-tuning", "reviews: mean pooling"),
        "`models/reviews.pt`, CFIMDB and SST together": (None, "reviews: SST's sentences too"),
    }
    columns = [("sst", "dev"), ("sst", "test"), ("cfimdb", "dev"), ("cfimdb", "imdb")]
    measured = {column: accuracies(methods_on(column[0]), column[1]) for column in columns}
    shown = {row[0]: row[1:] for row in table_rows("README.md") if row[0] in names}
    for row, (sst, cfimdb) in names.items():
        methods = (sst, sst, cfimdb, cfimdb)
        runs = [measured[column].get(method, {}) for column, method in zip(columns, methods, strict=True)]
        assert shown[row] == [spread(list(each.values())) if each else "" for each in runs], row


def methods_on(data: str) -> list[dict]:
    """The records of results/methods on a data set."""
    return [record for record in read_results(METHODS / "results.jsonl").values() if record["data"] == data]


@pytest.mark.parametrize(
    ("folder", "data", "heading"),
    [
        ("methods", "sst", "SST-5"), ("methods", "cfimdb", "CFIMDB, and reviews from elsewhere"),
        ("adapters", "reviews", "LoRA's variants on the shipped reviews"),
    ],
)  # fmt: skip
def test_the_tables_of_the_methods_are_what_was_measured(folder, data, heading):
    records = [r for r in read_results(ROOT / "results" / folder / "results.jsonl").values() if r["data"] == data]
    header, *lines = cells(table(records))
    printed = table_rows(f"results/{folder}/README.md", data)
    assert printed[0] == header and sorted(printed[1:]) == sorted(lines)  # in the order of the list
    shown = table_rows("docs/methods.md", heading)
    columns = [header.index(name) for name in shown[0]]
    assert len(shown) > 5 and shown[1:] == [[line[column] for column in columns] for line in printed[1:]]


def test_the_zero_shot_figures_are_what_was_measured():
    rows = json.loads((METHODS / "zero_shot.json").read_text("utf-8"))["rows"]
    measured = {}
    for row in rows:
        prompts = "the task's question" if row["prompts"] == "the task's" else "fourteen, averaged"
        ending = {"none": "", "calibrate": ", calibrated", "pmi": ", PMI"}[row["calibration"]]
        if row["data"] == "cfimdb":
            key = (row["model"].removeprefix("models/"), prompts + ending, row["label_scoring"])
            measured[key] = f"{row['dev_acc']:.3f}"
    one = accuracies(methods_on("cfimdb"), "dev")["zero-shot, sequence scoring"]
    measured["stories.pt", "the task's question", "sequence"] = spread(list(one.values()))
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    text = page.split("### Zero-shot on CFIMDB\n")[1].split("\n#")[0]
    rows_shown = [line.strip("|").split("|") for line in re.sub(r"\[(\w+)\]\([^)]*\)", r"\1", text).splitlines()]
    shown = {tuple(map(str.strip, row[:3])): row[3].strip() for row in rows_shown if len(row) == 4 and ".pt" in row[0]}
    assert len(shown) == 8 and shown == {key: measured[key] for key in shown}
    for model in ("stories", "reviews"):
        scoring = "sequence" if model == "stories" else "course"
        single = [row["each"].values() for row in rows if row["model"] == f"models/{model}.pt" and "each" in row
                  and row["label_scoring"] == scoring and row["calibration"] == "none"]  # fmt: skip
        assert f"from {min(single[0]):.3f} to {max(single[0]):.3f}" in text


def gain_of(own: list[float], other: list[float]) -> str:
    gains = [one - two for one, two in zip(own, other, strict=True)]
    return f"{statistics.mean(gains):+.3f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.3f}"


def test_the_tables_of_wise_ft_and_soups_are_what_was_measured():
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    lines = json.loads((METHODS / "wise_ft.json").read_text("utf-8"))
    for name, measured in lines.items():
        runs, alphas = measured["runs"], measured["alphas"]
        for data in set(runs[0]["accuracy"]) - {"dev", "test"}:
            chosen = [run["accuracy"][data][alphas.index(run["alpha"])] for run in runs]
            tuned = [run["accuracy"][data][-1] for run in runs]
            figures = f"{runs[0]['accuracy'][data][0]:.3f} | {spread(tuned)} | {spread(chosen)}"
            assert f"| {name} | {data} | {figures} | {gain_of(chosen, tuned)} |" in page
    curves = [run["accuracy"]["imdb-test"] for run in lines["SST-2, reviews.pt"]["runs"]]
    means = list(map(statistics.mean, zip(*curves, strict=True)))
    assert (f"{max(means):.3f}", means.index(max(means))) == ("0.868", 3) and "IMDB, 0.868, at α = 0.3" in page
    for name, rows in json.loads((METHODS / "soup.json").read_text("utf-8")).items():
        line = next(line for line in page.split("\n") if line.startswith(f"| {name} |") and "→" in line)
        uniform = next(row["accuracy"] for row in rows if row.get("soup") == "uniform")
        for data in set(uniform) - {"test"}:
            members = [row["accuracy"][data] for row in rows if "soup" not in row]
            assert f"{spread(members)} → {uniform[data]:.3f}" in line
            assert data == "dev" or 0.008 < uniform[data] - statistics.mean(members) < 0.0305


def test_the_table_of_architectures_is_what_was_measured():
    records = list(read_results(ROOT / "results" / "architectures" / "results.jsonl").values())
    page = (ROOT / "docs" / "methods.md").read_text("utf-8").split("## Architectures\n")[1].split("\n## ")[0]
    assert "\n".join(table(records)) in page


def test_the_speeds_of_architectures_are_what_was_measured():
    measured = json.loads((ROOT / "results" / "architectures" / "speed.json").read_text("utf-8"))["architectures"]
    page = " ".join((ROOT / "docs" / "methods.md").read_text("utf-8").split())
    assert set(measured) == set(configs(4096))
    ratios = ", ".join(f"{name} {own['ratio']:.2f}" for name, own in measured.items() if name != "RoPE")
    own = f"{measured['RoPE']['tokens_per_second']:,}"
    assert f"one busy AMD core): {ratios}. RoPE itself trains on {own} tokens" in page


def test_tf_idf_out_of_distribution_is_what_was_measured():
    figures = json.loads((METHODS / "tfidf.json").read_text("utf-8"))["cfimdb"]
    shown = [f"{figures[name]:.3f}" for name in ("dev_acc", "imdb-test_acc", "original-dev_acc")]
    assert f"TF-IDF gets {shown[0]} on CFIMDB's dev set, but {shown[1]} there" in (ROOT / "README.md").read_text(
        "utf-8"
    )
    assert f"gets {shown[0]} on CFIMDB's dev set, but {shown[1]} on IMDB\n  and {shown[2]} on the originals" in (
        ROOT / "docs" / "methods.md"
    ).read_text("utf-8")


def test_question_answering_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "methods" / "qa.json").read_text("utf-8"))
    names = {"the nearest training question's answer": "nearest question", "the shipped model, untuned": "untuned"}
    names |= {f"fine-tuned (seed {', '.join(measured['test']['fine-tuned'])})": "fine-tuned"}
    shown = {row[0]: row[1:] for row in table_rows("docs/methods.md", "Question and answer")}
    columns = [(split, name) for split in ("dev", "test") for name in ("em", "f1")]
    columns += [("test", "em_known_plots"), ("test", "em_new_plots")]
    assert shown.keys() >= names.keys()
    for row, name in names.items():
        for cell, (split, column) in zip(shown[row], columns, strict=True):
            figures = measured[split][name]
            runs = list(figures.values()) if name == "fine-tuned" else [figures]
            spread = f" ± {statistics.stdev(run[column] for run in runs):.3f}" if len(runs) > 1 else ""
            assert cell == f"{statistics.mean(run[column] for run in runs):.3f}{spread}", (row, split, column)


def test_the_table_of_decoding_methods_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "methods" / "decoding.json").read_text("utf-8"))
    assert decoding.table(measured) in (ROOT / "docs" / "methods.md").read_text("utf-8")
