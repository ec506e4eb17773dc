"""Numbers at their limits, and commands that are called from another folder: they work, or one line says why not."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import addition_data_generation
import addition_run
import run_llama
from engine.decode.sampling import Sampler
from engine.io.checkpoint import save_checkpoint
from engine.train.losses import perplexity
from tasks.addition.flags import AdderTraining
from tasks.addition.plan import excluded_files, plan_run
from tasks.stories.data import TokenFile, split_tokens
from tests.tiny import CONFIG, ROOT, TOKENIZER, write_corpus, write_tiny_checkpoint

DATA = ROOT / "data"
ADDER = ["--dim", "8", "--n_layers", "1", "--n_heads", "2", "--n_kv_heads", "2", "--no_data_files", "--no_compile"]
ADDER += ["--examples", "256", "--batch_size", "256", "--epochs", "1", "--dev_examples", "50", "--save_dir", "adder"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A tiny checkpoint, in a folder that is not the project's."""
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    return ["--pretrained-model-path", str(tmp_path / "tiny.pt")]


def finetune(model: list[str], *more: str) -> int:
    flags = [f"--{split}=data/reviews-{split}.txt" for split in ("train", "dev", "test")]  # found beside the code
    flags += ["--label-names=data/reviews-label-mapping.json", "--dev_out=r-dev-finetuning-output.txt"]
    return run_llama.main(["--option", "finetune", *model, *flags, "--test_out=r-test-finetuning-output.txt", *more])


def one_line(capsys) -> str:
    shown = capsys.readouterr().err
    lines = [line for line in shown.replace("\r", "\n").split("\n") if ".py: " in line]
    assert len(lines) == 1 and "Traceback" not in shown, shown
    return lines[0]


@pytest.mark.parametrize("many", [False, True])
def test_a_context_shorter_than_slide(model, tmp_path, capsys, many):
    write_tiny_checkpoint(tmp_path / "short.pt", dataclasses.replace(CONFIG, max_seq_len=32))
    (tmp_path / "prompts.txt").write_text("Once upon\nThe end\n", encoding="utf-8")
    flags = ["--prompt_file", "prompts.txt"] if many else ["--prompt", "Once upon"]
    flags += ["--pretrained-model-path", "short.pt", "--temperature", "0", "--max_new_tokens", "70"]
    assert run_llama.main(flags) == 0
    assert f"{140 if many else 70} tokens in" in capsys.readouterr().out


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-46, 1e-320, 5e-324])
def test_the_coldest_sampling_is_greedy(temperature):
    logits = torch.tensor([[3e4, -2e8, 3e4 + 1, 0.0]])
    assert Sampler(temperature, top_p=0.9).choose(logits, torch.Generator().manual_seed(0)).tolist() == [2]


def test_no_new_tokens(model, capsys):
    assert run_llama.main([*model, "--max_new_tokens", "0", "--prompt", "Once upon a time"]) == 0
    assert capsys.readouterr().out.count("Once upon a time\n---------------\n0 tokens") == 2


@pytest.mark.parametrize("seed", ["-1", str(2**64), "one"])
def test_bad_seeds_are_refused_by_every_program(capsys, seed):
    for main, flags in [
        (addition_data_generation.main, ["--n", "5", "--out", "x.txt"]),
        (addition_run.main, ["train", *ADDER]),
        (run_llama.main, ["--option", "vectors", "--corpus", "a", "--tokenizer", "b", "--embeddings", "c"]),
    ]:
        with pytest.raises(SystemExit) as exit_info:
            main([*flags, "--seed", seed])
        assert exit_info.value.code == 2 and "argument --seed" in one_line(capsys)


def test_the_largest_seeds_work(model, capsys):
    assert addition_data_generation.main(["--n", "5", "--out", "x.txt", "--seed", str(2**63 - 1)]) == 0
    settings = AdderTraining(seed=2**63 - 1, seeds=2, examples=300, batch_size=100, dev_examples=9, no_data_files=True,
                             dim=8, n_layers=1, n_heads=2, n_kv_heads=2, epochs=1, save_dir="adder")  # fmt: skip
    workload = plan_run(settings, torch.device("cpu")).workload
    assert sorted(torch.cat(list(workload.epoch(0))).tolist()) == list(range(300))
    assert run_llama.main([*model, "--seed", str(2**63 - 1), "--num_samples", "3", "--temperature", "1",
                           "--max_new_tokens", "2"]) == 0  # fmt: skip


def test_one_document_is_held_out_by_tokens():
    tokens = np.arange(500, dtype=np.uint16)
    data = split_tokens(TokenFile(tokens, np.array([0, 500])), 0.1)
    assert data.offsets.tolist() == [0, 450, 500] and data.tokens is tokens
    assert split_tokens(TokenFile(tokens[:4], np.array([0, 4])), 0.01).offsets.tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="one document of 3 tokens: too short"):
        split_tokens(TokenFile(tokens[:3], np.array([0, 3])), 0.5)


PRETRAIN = ["--option", "pretrain", "--tokenizer", str(TOKENIZER), "--dim", "16", "--n_layers", "1", "--n_heads", "2"]
PRETRAIN += ["--n_kv_heads", "1", "--max_seq_len", "64", "--epochs", "1", "--save_dir", "run"]


@pytest.mark.parametrize("packing", ["off", "separate"])
def test_a_corpus_of_one_document_trains(model, tmp_path, capsys, packing):
    (tmp_path / "one.txt").write_text("Once upon a time there was a cat. " * 60, encoding="utf-8")
    assert run_llama.main([*PRETRAIN, "--corpus", "one.txt", "--packing", packing, "--batch_tokens", "9" * 12]) == 0
    shown = capsys.readouterr().out
    assert "the corpus is one document" in shown and (tmp_path / "run" / "best.pt").exists()


def test_a_perplexity_that_overflows_is_infinity(model, tmp_path, capsys):
    assert perplexity(1.0) == math.e and perplexity(1e4) == math.inf
    state = write_tiny_checkpoint(tmp_path / "tiny.pt").state_dict()
    state["tok_embeddings.weight"].mul_(3e4)  # tied to the output
    save_checkpoint(tmp_path / "wild.pt", CONFIG, state, TOKENIZER)
    write_corpus(tmp_path / "c.txt")
    flags = ["--option", "evaluate", "--pretrained-model-path", "wild.pt", "--corpus", "c.txt", "--save_dir", "m"]
    assert run_llama.main(flags) == 0
    assert "perplexity per token: infinity" in capsys.readouterr().out
    assert json.loads((tmp_path / "m" / "evaluate.json").read_text("utf-8"))["perplexity_per_token"] is None


@pytest.mark.parametrize("task", ["finetune", "pretrain", "addition"])
def test_a_model_broken_by_its_only_step_is_not_saved_and_claims_nothing(model, tmp_path, capsys, task):
    """The loss of the step itself is finite: only the weights show what it did."""
    write_corpus(tmp_path / "c.txt")
    if task == "pretrain":
        flags = ["--corpus", "c.txt", "--lr", "1e38", "--warmup_steps", "0", "--optimizer", "adamw"]
        code = run_llama.main([*PRETRAIN, *flags, "--batch_tokens", "1000000"])
    elif task == "addition":
        code = addition_run.main(["train", *ADDER, "--lr", "1e38"])
    else:
        code = finetune(model, "--lr=1e38", "--weight_decay=1", "--epochs=1", "--batch_size=1000000")
    shown = capsys.readouterr()
    assert code == 1 and "at step 1 with learning rate 1.00e+38: try a lower --lr" in shown.err.split(".py: ")[1]
    assert "wrote" not in shown.out and "acc ::" not in shown.out
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"tiny.pt"}
    assert not any(name.endswith((".pt", ".pth", "output.txt", "result.json")) for name in left), left


def test_a_dev_set_of_one_class_is_measured(model, tmp_path, capsys):
    (tmp_path / "d-dev.txt").write_text("1 ||| a film\n1 ||| bad film\n", encoding="utf-8")
    assert finetune(model, "--dev=d-dev.txt", "--epochs=1", "--lr=1e-4", "--test=d-dev.txt") == 0
    assert "dev macro-F1 :: " in capsys.readouterr().out
    (confusion,) = (tmp_path / "runs").glob("*/dev-confusion.json")
    assert json.loads(confusion.read_text("utf-8"))["matrix"][0] == [0, 0]


def test_a_dev_set_of_placeholders_selects_nothing(model, tmp_path, capsys):
    (tmp_path / "d-dev.txt").write_text("0 ||| a film\n" * 30, encoding="utf-8")
    assert finetune(model, "--dev=d-dev.txt") == 2
    assert "a placeholder" in one_line(capsys)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_a_character_shows_a_question_mark(model, monkeypatch, encoding):
    screen = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(screen, encoding, errors="strict", write_through=True))
    assert run_llama.main([*model, "--prompt", "漢字 ok", "--max_new_tokens", "1", "--temperature", "0"]) == 0
    assert run_llama.main([*model, "--prompt_file", "漢字.txt"]) == 2
    sys.stdout.flush()
    assert b"?? ok" in screen.getvalue() and b"no such file: ??.txt" in screen.getvalue()


def test_what_ships_is_found_from_another_folder_and_outputs_stay_there(model, tmp_path, capsys):
    shipped = {path: path.stat().st_mtime_ns for path in (ROOT / "addition_models").rglob("*") if path.is_file()}
    outputs = ["--dev_out=r-dev-finetuning-output.txt", "--test_out=r-test-finetuning-output.txt"]
    assert run_llama.main(["--recipe", "recipes/finetune_reviews.toml", *model, "--epochs=1", *outputs]) == 0
    assert (tmp_path / "r-dev-finetuning-output.txt").exists() and len(list(tmp_path.glob("runs/finetune-*"))) == 1
    assert run_llama.main(["--option", "addition", "--prompt", "1234+5678="]) == 0
    assert "1234+5678=6912" in capsys.readouterr().out
    best = "addition_models/best_model/best_model.pth"
    assert addition_run.main(["test", "--checkpoint", best, "--max_test_examples", "20"]) == 0
    assert (tmp_path / "experiment_summary.json").exists()
    assert shipped == {path: path.stat().st_mtime_ns for path in shipped}
    assert excluded_files(AdderTraining())[0] == str(DATA / "addition_test.txt")  # never trained on, from anywhere


def test_resume_with_more_epochs_says_that_a_new_run_begins(model, capsys):
    flags = ["--lr=1e-4", "--batch_size=50"]
    Path("runs/finetune-reviews-0.0001-1-1337-model=tiny-batch_size=50").mkdir(parents=True)
    assert finetune(model, *flags, "--epochs=2", "--resume") == 0
    (line,) = [line for line in capsys.readouterr().out.split("\n") if line.startswith("nothing to resume")]
    assert "reviews-0.0001-2-1337" in line and "a new run begins" in line
    assert "finetune-reviews-0.0001-1-1337-" in line and "another --epochs" in line
