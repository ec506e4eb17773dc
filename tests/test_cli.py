"""The command line keeps the course's flags, answers quickly, and refuses bad input in one line before any work."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import run_llama
from tasks import cli
from tests.tiny import ROOT, write_tiny_checkpoint

OUTPUTS = ["--dev_out", "dev-finetuning-output.txt", "--test_out", "test-finetuning-output.txt"]
COURSE_DEFAULTS = {
    "option": "generate",
    "pretrained_model_path": "stories42M.pt",
    "max_sentence_len": None,
    "seed": 1337,
    "epochs": 5,
    "use_gpu": False,
    "generated_sentence_low_temp_out": "generated-sentence-temp-0.txt",
    "generated_sentence_high_temp_out": "generated-sentence-temp-1.txt",
    "lr": 2e-5,
}


def test_the_courses_defaults_are_kept():
    args = vars(cli.parse(run_llama.PROGRAM, [])[1]) | {"option": cli.parse(run_llama.PROGRAM, [])[0]}
    training = cli.parse(run_llama.PROGRAM, ["--option", "finetune", *OUTPUTS])[1]
    args |= {"epochs": training.epochs, "lr": training.lr}
    assert {name: args[name] for name in COURSE_DEFAULTS} == COURSE_DEFAULTS


def test_a_task_may_have_defaults_of_its_own_that_a_flag_overrides():
    base = ["--option", "pretrain", "--corpus", "c", "--tokenizer", "t", "--save_dir", "d"]
    assert cli.parse(run_llama.PROGRAM, base)[1].lr == 3e-3
    assert cli.parse(run_llama.PROGRAM, [*base, "--lr", "2e-5"])[1].lr == 2e-5


def test_help_answers_at_once_and_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "run_llama.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time, which other programs do not lengthen much
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert "--option" in shown.stdout and all(name in shown.stdout for name in run_llama.OPTIONS)
    loaded = "import sys, tasks.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--temperature", "-0.1"], "at least 0"),
        (["--temperature", "warm"], "invalid number"),
        (["--temperature", "nan"], "at least 0"),
        (["--top_p", "0"], "more than 0"),
        (["--top_p", "1.5"], "at most 1"),
        (["--max_new_tokens", "-1"], "at least 0"),
        (["--top_k", "0"], "at least 1"),
        (["--option", "sing"], "invalid choice"),
        (["--dtype", "float16"], "invalid choice"),
        (["--seed", "-1"], "at least 0"),
        (["--seed", str(2**63)], "at most"),
        (["--seed", "9" * 5000], "must be a number, not 99999999999999999999…"),
        (["--temperature", "inf"], "must be finite"),
        (["--threads", "100000"], "must be at most"),
        (["--max_new_tokens", "1000000000000000"], "at most 10000000"),
        (["--num_samples", "1000000000000"], "at most 1000000"),
        (["--prompt", "caf\udce9"], "not valid UTF-8 text: 'caf\\udce9'"),
        (["--option", "finetune", *OUTPUTS, "--lr", "inf"], "must be finite"),
        (["--option", "finetune", *OUTPUTS, "--epochs", "1000000000000"], "at most 1000000"),
        (["--option", "finetune", *OUTPUTS, "--seeds", "1", "-1"], "at least 0"),
        (["--option", "pretrain", "--corpus", "x"], "needs --save_dir"),
        (["--option", "pretrain", "--corpus", "x", "--save_dir", "y"], "needs --tokenizer"),
        (["--option", "evaluate", "--corpus", "x", "--lora_rank", "9"], "these have it: lora"),
        (["--vocab_size", "300"], "these have it: tokenizer"),
        (["--no_such_flag"], "unrecognized"),
    ],
)
def test_refused_flags(flags, reason, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(run_llama.PROGRAM, flags)[1]
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.count("\n") == 1
    assert reason in error


def test_the_courses_options_accept_every_flag_of_the_course():
    course = ["--epochs", "5", "--lora_rank", "4", "--batch_size", "8", "--hidden_dropout_prob", "0.3", "--lr", "2e-5"]
    course += ["--train", "x", "--label-names", "y", "--max_sentence_len", "9", "--dev_out", "z", "--use_gpu"]
    course += ["--generated_sentence_low_temp_out", "low.txt", "--lora_alpha", "1.0", "--pretrained-model-path", "m"]
    for option in ("generate", "addition"):
        assert cli.parse(run_llama.PROGRAM, ["--option", option, *course])[1].use_gpu


@pytest.fixture
def checkpoint(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def refused(capsys, *flags) -> str:
    """Runs the command line in this process; checks that it ends in code 2 and one line, which it returns."""
    assert run_llama.main([str(flag) for flag in flags]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    return shown.err


def test_a_missing_checkpoint_is_refused(capsys, tmp_path):
    assert "no such file" in refused(capsys, "--pretrained-model-path", tmp_path / "nothing.pt")


def test_a_truncated_checkpoint_is_refused(capsys, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert "cut short" in refused(capsys, "--pretrained-model-path", checkpoint)


def test_a_tokenizer_that_does_not_fit_is_refused_with_both_sizes(capsys, tmp_path):
    from config import LlamaConfig

    config = LlamaConfig(vocab_size=4000, dim=8, n_layers=1, n_heads=2, n_kv_heads=1)
    write_tiny_checkpoint(tmp_path / "other.pt", config)
    error = refused(capsys, "--pretrained-model-path", tmp_path / "other.pt")
    assert "4096" in error.replace(",", "") and "4000" in error.replace(",", "")


def test_an_empty_prompt_file_is_refused(capsys, checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    error = refused(capsys, "--pretrained-model-path", checkpoint, "--prompt_file", tmp_path / "prompts.txt")
    assert "no prompt" in error


def test_an_unwritable_output_path_is_refused_before_work(capsys, checkpoint, tmp_path):
    target = tmp_path / "no folder" / "out.txt"
    flags = ("--pretrained-model-path", checkpoint, "--generated_sentence_low_temp_out", target)
    assert "no folder" in refused(capsys, *flags)
    assert "there is no folder" in refused(capsys, *flags)
    assert "it is a folder" in refused(capsys, *flags[:3], tmp_path)


def test_gpu_is_refused_where_there_is_none(capsys, checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--use_gpu" in refused(capsys, "--pretrained-model-path", checkpoint, "--use_gpu", "--prompt", "x")
