"""The page and the report of results hold what the logs say, leave out what has none, and come out the same twice."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tasks.results import report as results
from tasks.results.sources import Figure, confusion, gather, mean_of, option_of
from tests.submission_project import write_project

RUNS = {
    "sst | finetune, rate 2e-5 | 1": {
        "dtype": "bfloat16", "dev_acc": 0.4, "test_acc": 0.38,
        "dev_confusion": {"names": ["bad", "good"], "matrix": [[3, 1], [2, 4]]},
    },
    "sst | finetune, rate 2e-5 | 2": {"dtype": "bfloat16", "dev_acc": 0.42, "test_acc": 0.36},
    "sst | zero-shot, last token | 1": {"dev_acc": 0.25, "test_acc": 0.26},
    "cfimdb | lora, rate 2e-3 | 1": {"dtype": "float32", "dev_acc": 0.5},
}
MEASURED = {"model": "stories.pt", "epochs": 5, "runs": RUNS}
STORY = {
    "config": {"vocab_size": 4096, "dim": 256, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 1024,
               "dropout": 0.1, "rope_theta": 10000.0},
    "training": {"epochs": 7, "lr": 0.003, "optimizer": "muon", "max_grad_norm": None},
    "result": {"held_out_loss": 1.2345, "steps": 4000, "hours": 2.5},
}  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with made-up logs of everything."""
    folder = write_project(tmp_path / "project")
    (folder / "docs").mkdir()
    (folder / "docs" / "sentiment_results.json").write_text(
        json.dumps(MEASURED | {"tfidf": {"sst": {"dev_acc": 0.392, "test_acc": 0.417}}})
    )
    (folder / "models").mkdir()
    (folder / "models" / "stories.json").write_text(json.dumps(STORY))
    records = [{"step": step, "loss": 8.0 / step} for step in range(1, 40)] + [{"step": 39, "held_out_loss": 1.3}]
    (folder / "models" / "stories.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    log = [{"step": step, "held_out_loss": 1.0 / step, "accuracy": step / 5} for step in range(1, 6)]
    for path in (folder / "addition_models").iterdir():
        (path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folder


def make(project: Path, out: Path) -> int:
    return results.main(["--root", str(project), "--out", str(out)])


def test_the_page_holds_what_was_measured(project, tmp_path, capsys):
    assert make(project, tmp_path / "out") == 0
    page = (tmp_path / "out" / "README.md").read_text("utf-8")
    spread = statistics.stdev([0.4, 0.42])
    row = f"| sst | finetune, rate 2e-5 | 2 | 0.410 ± {spread:.3f} | 0.411 (0.025) | 0.392 | 0.370 ± "
    assert row in page
    assert "| cfimdb | lora, rate 2e-3 | 1 | 0.500 | 0.510 (0.051) | – | – | – | – |" in page
    whole = "--data data/sst data/cfimdb --model models/stories.pt --seeds 1 2 --epochs 5 --dtype bfloat16\n"
    rarer = '--data data/cfimdb --model models/stories.pt --seeds 1 --epochs 5 --dtype float32 --rows "lora, rate 2e-3"'
    assert "training in bfloat16 and float32" in page and 0 < page.index(rarer) < page.index(whole)
    assert "| ablation_1 | 4/1/1/1 |" in page and "addition_models/best_model/best_model.pth" in page
    assert "--dim 256 --n_layers 8" in page and "--lr 0.003 --optimizer muon" in page
    assert "> I have wanted to see this thriller" in page
    left_out = page.partition("## Left out")[2]
    assert "models/evaluate.json" in left_out and left_out.count("\n- ") == 1
    for line in page.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "out" / line.partition("](")[2].rstrip(")")).stat().st_size > 5000
    assert "left out: its measurement on held-out stories" in capsys.readouterr().out


def test_the_report_is_a_pdf_of_two_to_four_pages(project, tmp_path):
    assert make(project, tmp_path / "out") == 0
    content = (tmp_path / "out" / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    assert 2 <= content.count(b"/Type /Page ") <= 4


def test_the_same_logs_give_the_same_bytes(project, tmp_path):
    for name in ("one", "two"):
        assert make(project, tmp_path / name) == 0
    one, two = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
                for n in ("one", "two"))  # fmt: skip
    assert one == two and len(one) == 6


def test_what_has_no_source_is_left_out_and_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty", tmp_path / "out") == 1
    assert capsys.readouterr().out.count("left out: ") == 9
    page = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "docs/sentiment_results.json" in page and str(tmp_path) not in page


def test_a_damaged_source_is_left_out_with_the_reason(project):
    (project / "docs" / "sentiment_results.json").write_text('{"model": ')
    blocks, left_out = gather(project)
    assert "Sentiment" not in [block.title for block in blocks]
    assert len(left_out) == 4 and "sentiment_results.json is not JSON" in left_out[0]


def test_confusions_are_the_shipped_ones_or_ones_own(project):
    def titles(data: str, figures: list) -> list[str]:
        axes = [Recorder() for _ in range(next(f.columns for f in figures if f.name == f"confusion-{data}"))]
        next(f for f in figures if f.name == f"confusion-{data}").draw(axes)
        return [place.title for place in axes]

    figures = [block for block in gather(project)[0] if isinstance(block, Figure)]
    assert titles("sst", figures) == ["sst dev, finetune, rate 2e-5,\nseed 1: accuracy 0.700"]
    expected = [f"cfimdb dev, {option}: accuracy 0.556" for option in ("prompt", "finetune", "lora")]
    assert [" ".join(title.split()) for title in titles("cfimdb", figures)] == expected
    assert confusion(project, "cfimdb-dev-lora-output.txt", "cfimdb", ["bad", "good"]) == [[5, 0], [4, 0]]


class Recorder:
    """Axes that keep their title alone."""

    title = None

    def set_title(self, title: str, fontsize: int) -> None:
        self.title = title

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


def test_rows_are_known_by_their_option():
    assert [option_of(row) for row in ("zero-shot, sequence scoring", "finetune, rate 2e-5", "lora, rate 2e-3")] == [
        "prompt", "finetune", "lora",
    ]  # fmt: skip
    assert mean_of([{"a": 0.5}, {}], "a") == "0.500" and mean_of([{}], "a") == "–"


def test_bad_usage_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        results.main(["--root", "nowhere"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
