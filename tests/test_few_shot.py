"""`--train_examples`: a balanced, seeded, nested draw of training sentences; the other splits stay whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from tasks import cli
from tasks.sentiment.data import balanced, read_examples
from tasks.sentiment.training import prepare
from tests.tiny import ROOT, write_tiny_checkpoint

DATA = ROOT / "data"


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(0, 9), st.data())
def test_draws_are_balanced_nested_and_seeded(labels, seed, data):
    size = data.draw(st.integers(1, len(labels)))
    drawn = balanced(labels, size, seed)
    assert drawn == sorted(set(drawn)) and len(drawn) == size and drawn == balanced(labels, size, seed)
    assert set(balanced(labels, size - 1, seed)) < set(drawn)
    available, counts = Counter(labels), Counter(labels[index] for index in drawn)
    for label, count in counts.items():  # a label has less than another only if it has no more, or by one turn
        assert all(count + 1 >= counts[other] or count == available[label] for other in counts)
    assert balanced(labels, len(labels), seed) == list(range(len(labels)))


def test_seeds_draw_differently():
    assert len({tuple(balanced([0, 1] * 50, 10, seed)) for seed in range(5)}) == 5


@pytest.fixture
def words(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={tmp_path}/{split}-finetuning-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={tmp_path}/tiny.pt"]
    return ["--option", "finetune", *inputs, *outs, *names, f"--save_dir={tmp_path}/runs", "--threads=1", "--epochs=1"]


def test_every_seed_trains_on_its_own_draw(words, capsys):
    settings = cli.parse(run_llama.PROGRAM, [*words, "--train_examples", "12", "--seeds", "3", "4"])[1]
    runs = prepare(settings).__closure__[0].cell_contents
    train = read_examples(settings.train, 2)
    for run in runs:
        examples = run.experiment.splits["train"]
        expected = train.chosen(balanced(train.labels, 12, run.settings.seed))
        assert examples.sentences == expected.sentences and Counter(examples.labels) == {0: 6, 1: 6}
        assert len(examples.ids) == 12 and "train_examples=12" in run.folder.name
        assert len(run.experiment.splits["dev"]) == len(read_examples(settings.dev, 2))
    assert runs[0].experiment.splits["train"].sentences != runs[1].experiment.splits["train"].sentences
    assert "seed 3: train on 12 of" in capsys.readouterr().out


def test_the_command_trains_on_few(words, tmp_path, capsys):
    assert run_llama.main([*words, "--train_examples", "12", "--batch_size", "4", "--max_sentence_len", "12"]) == 0
    log = next(tmp_path.glob("runs/*/log.jsonl")).read_text("utf-8")
    assert log.count('"loss"') == 3


@pytest.mark.parametrize("size", ["1", "100000"])
def test_too_few_or_too_many_are_refused(words, capsys, size):
    assert run_llama.main([*words, "--train_examples", size]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--train_examples must be from 2" in error


def test_further_lines_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        run_llama.main([*words, "--train_examples", "8", "--extra", f"{DATA}/reviews-dev.txt"])
    assert "exclude each other" in capsys.readouterr().err
