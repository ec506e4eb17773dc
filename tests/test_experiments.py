"""The list of experiments: what it runs, what it skips, how gains are paired, and one real run of its smallest form."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from engine.io.checkpoint import read_checkpoint
from tasks.methods import experiments
from tasks.methods.comparison import dev_gains, spread, table, write_comparison
from tests.tiny import ROOT, write_corpus, write_tiny_checkpoint

LIST = """
seeds = [1, 2, 3]
[data.reviews]
files = { train = "reviews-train.txt", dev = "reviews-dev.txt", test = "reviews-test.txt", label-names = "reviews-label-mapping.json" }
flags = { batch_size = 50, epochs = 1 }
final = { again = "reviews-dev.txt", nowhere = "none.txt" }
[[method]]
name = "zero-shot"
data = ["reviews"]
option = "prompt"
[[method]]
name = "plain"
data = ["reviews"]
option = "finetune"
[[method]]
name = "extra"
data = ["reviews"]
option = "finetune"
baseline = "plain"
flags = { files = { extra = "phrases.txt" } }
"""  # noqa: E501


@pytest.fixture
def written(tmp_path):
    (tmp_path / "list.toml").write_text(LIST, encoding="utf-8")
    return tmp_path / "list.toml"


def record(method: str, seed: int, dev: float, baseline: str | None = None, **final: float) -> dict:
    return {"method": method, "baseline": baseline, "data": "d", "seed": seed, "dev_acc": dev, "final": final}


def test_a_list_gives_a_job_per_seed_and_names_what_is_missing(written):
    jobs, missing = experiments.read_list(written, ROOT / "data", None)
    assert [(job.method.name, job.seed) for job in jobs] == [("zero-shot", 1), *(("plain", seed) for seed in (1, 2, 3))]
    assert len(missing) == 1 and "phrases.txt" in missing[0]
    assert len({job.key for job in jobs}) == 4


@pytest.mark.parametrize(
    "old, new",
    [
        ("[[method]]", "[[row]]"), ('option = "prompt"', 'option = "evaluate"'), ('"plain"\nflags', '"none"\nflags'),
        ('data = ["reviews"]', 'data = ["news"]'), ("seeds", "= seeds"), ('name = "plain"', 'title = "plain"'),
    ],
)  # fmt: skip
def test_a_bad_list_is_one_line(written, capsys, old, new):
    written.write_text(LIST.replace(old, new), encoding="utf-8")
    assert experiments.main(["--list", str(written), "--data", str(ROOT / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_gains_are_paired_over_common_seeds():
    records = [record("a", 1, 0.5), record("a", 2, 0.6), record("a", 3, 0.9)]
    records += [record("b", 1, 0.6, "a", far=0.5), record("b", 2, 0.9, "a", far=0.7)]
    assert dev_gains(records) == {"a": None, "b": pytest.approx((0.2, 0.1))}
    lines = table(records)
    assert lines[0] == "| method | runs | dev accuracy | gain on dev | far accuracy, gain |"
    assert lines[3] == "| b | 2 | 0.750 ± 0.212 | +0.200 ± 0.100 | 0.600 ± 0.141, – |"
    assert spread([0.25]) == "0.250"


def test_costs_have_columns_where_any_run_has_them():
    records = [record("zero-shot", 1, 0.5), record("a", 1, 0.5) | {"trained_parameters": 1200, "peak_memory_mb": 300.2}]
    records += [record("a", 2, 0.5) | {"trained_parameters": 1200, "peak_memory_mb": 412.6}]
    lines = table(records)
    assert lines[0].endswith("| gain on dev | trained parameters | peak memory |")
    assert lines[2].endswith("| – | – |") and lines[3].endswith("| 1,200 | 413 MB |")


def test_a_list_runs_once_and_looks_at_the_final_sets_on_request(written, tmp_path, capsys):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    model = f', pretrained-model-path = "{tmp_path}/tiny.pt" }}'
    written.write_text(LIST.replace("epochs = 1 }", "epochs = 1" + model), encoding="utf-8")
    words = ["--list", str(written), "--data", str(ROOT / "data"), "--seeds", "5", "--threads", "1"]
    words += ["--save_dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert experiments.main(words) == 0
    results = experiments.read_results(tmp_path / "out" / "results.jsonl")
    assert {record["method"] for record in results.values()} == {"zero-shot", "plain"}
    assert all("final" not in record and 0.0 <= record["dev_acc"] <= 1.0 for record in results.values())
    size = (tmp_path / "out" / "results.jsonl").stat().st_size
    assert experiments.main([*words, "--final"]) == 0
    results = experiments.read_results(tmp_path / "out" / "results.jsonl")
    for record in results.values():
        assert record["final"]["again"] == pytest.approx(record["dev_acc"])
        assert set(record["final"]) == {"test", "again"}
    first = (tmp_path / "out" / "results.jsonl").read_text("utf-8")[:size].splitlines()
    assert {json.loads(line)["key"] for line in first} == set(results)
    page = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| zero-shot | 1 |" in page and "again accuracy" in page


def test_a_failing_run_is_named(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments.subprocess, "run", lambda *args, **more: SimpleNamespace(returncode=2))
    words = ["--list", str(written), "--data", str(ROOT / "data"), "--save_dir", str(tmp_path / "runs")]
    assert experiments.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "reviews-zero_shot-" in capsys.readouterr().err.split("methods: ")[1]


def test_a_failing_run_does_not_stop_the_others(written, tmp_path, capsys, monkeypatch):
    def run_job(job, folder, machine):
        if job.seed == 2:
            raise ChildProcessError(f"{job.key} failed")
        return {"dev_acc": 0.5}

    monkeypatch.setattr(experiments, "run_job", run_job)
    words = ["--list", str(written), "--data", str(ROOT / "data"), "--save_dir", str(tmp_path / "runs")]
    assert experiments.main([*words, "--out", str(tmp_path / "out"), "--jobs", "3"]) == 1
    assert "-2 failed" in capsys.readouterr().err
    results = experiments.read_results(tmp_path / "out" / "results.jsonl").values()
    assert sorted((record["method"], record["seed"]) for record in results) == [
        ("plain", 1), ("plain", 3), ("zero-shot", 1),
    ]  # fmt: skip


def test_the_lists_that_ship_can_be_read():
    for path in [*(ROOT / "recipes").glob("methods*.toml"), ROOT / "recipes" / "architectures.toml"]:
        jobs, missing = experiments.read_list(path, ROOT / "data", None)
        assert jobs or missing


def test_an_architecture_is_trained_and_measured_in_bits_per_byte(tmp_path):
    """The list that ships, in its smallest form: one variant, one layer, a few sentences."""
    text = (ROOT / "recipes" / "architectures.toml").read_text("utf-8")
    small = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "max_seq_len": 32, "epochs": 1}
    for name, value in small.items():
        text = re.sub(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
    (tmp_path / "list.toml").write_text(text.replace("[1337, 1338, 1339]", "[1]"), encoding="utf-8")
    for name in ("train.txt", "valid.txt"):
        write_corpus(tmp_path / name, 20)
    words = ["--list", str(tmp_path / "list.toml"), "--data", str(tmp_path), "--threads", "1"]
    words += ["--save_dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--only", "differential"]
    assert experiments.main(words) == 0
    results = experiments.read_results(tmp_path / "out" / "results.jsonl").values()
    assert sorted(entry["method"] for entry in results) == ["differential"]
    assert all(0.0 < entry["dev_bits_per_byte"] < 20.0 for entry in results)
    (best,) = (tmp_path / "runs").glob("*differential*/best.pt")
    assert read_checkpoint(best).config.attention_type == "differential"
    assert not list((tmp_path / "runs").glob("**/last.pt"))


def test_language_models_are_compared_in_bits_per_byte(tmp_path, capsys):
    runs = [("a", None, 1, 0.7), ("a", None, 2, 0.8), ("b", "a", 1, 0.71), ("b", "a", 2, 0.79)]
    results = {
        f"{name}{seed}": {"method": name, "baseline": base, "data": "d", "seed": seed, "dev_bits_per_byte": bits}
        for name, base, seed, bits in runs
    }
    write_comparison(results, list(results), tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    assert "| method | runs | dev bits per byte | change on dev |" in page
    assert "| b | 2 | 0.7500 ± 0.0566 | +0.0000 ± 0.0100 |" in page and (tmp_path / "d.png").exists()
