"""The sentiment tasks from the command line: printed lines, files, refused input, seeds, and a killed run resumed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import classifier
import lora
import run_llama
from bench import sentiment_table
from engine.io.checkpoint import load_plain
from engine.model import adapters
from engine.train import run_log
from tasks import cli
from tasks.sentiment import training
from tasks.sentiment.checkpoint import load_classifier
from tasks.sentiment.flags import COURSE_BATCH_SIZES, LoraSettings, PromptSettings
from tests.tiny import CLOCKS, ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer

MEMORY = {"peak_memory_mb": 0.0}  # differs from run to run

METHODS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


@pytest.fixture
def model(tmp_path) -> Path:
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def flags(option: str, model: Path, *more: str, name: str = "reviews") -> list[str]:
    folder, data = model.parent, ROOT / "data"
    inputs = [f"--{split}={data}/{name}-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={folder}/{name}-{split}-{METHODS[option]}-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={data}/{name}-label-mapping.json", f"--pretrained-model-path={model}"]
    return ["--option", option, *inputs, *outs, *names, f"--save_dir={folder}/runs", "--threads", "1", *more]


def run_folder(model: Path, run: str) -> Path:
    """The folder of a run whose name ends with the test's own model and with what else differs."""
    return next((model.parent / "runs").glob(f"{run}-*"))


def test_the_courses_defaults_are_kept():
    fields = {entry.name: entry for entry in dataclasses.fields(LoraSettings)}
    expected = {split: f"data/cfimdb-{split}.txt" for split in ("train", "dev", "test")}
    expected |= {f"{split}_out": f"cfimdb-{split}-prompting-output.txt" for split in ("dev", "test")}
    expected |= {"label_names": "data/cfimdb-label-mapping.json", "batch_size": 8, "hidden_dropout_prob": 0.3}
    expected |= {"lora_rank": 4, "lora_alpha": 1.0, "epochs": 5, "lr": 2e-5}
    outputs = ["--dev_out=x-dev-lora-output.txt", "--test_out=x-test-lora-output.txt"]
    tuned = cli.parse(run_llama.PROGRAM, ["--option=lora", *outputs])[1]
    args = vars(tuned) | {f"{split}_out": cli.default_of(fields[f"{split}_out"]) for split in ("dev", "test")}
    assert {name: args[name] for name in expected} == expected
    assert (tuned.schedule, tuned.warmup_steps) == ("constant", 0)
    assert (tuned.weight_decay, tuned.max_grad_norm, tuned.lr, tuned.save_dir) == (0.0, None, 2e-5, "runs")


@pytest.mark.parametrize(
    ("option", "dev_out", "test_out", "refused"),
    [
        ("prompt", "sst-dev-finetuning-output.txt", "sst-test-prompting-output.txt", "--dev_out"),
        ("prompt", "sst-dev-prompting-output.txt", "out.txt", "--test_out"),
        ("finetune", "sst-dev-prompting-output.txt", "sst-test-finetuning-output.txt", "--dev_out"),
        ("lora", "sst-dev-lora-output.txt", "sst-test-lora-output.tsv", "--test_out"),
        ("finetune", "a/b-dev-lora-output.txt", "dev-finetuning-output.txt", "--test_out"),
    ],
)
def test_a_wrong_output_name_is_refused_before_anything_else(option, dev_out, test_out, refused, capsys):
    with pytest.raises(SystemExit) as exit_info:
        flags = ["--option", option, "--dev_out", dev_out, "--test_out", test_out, "--train", "not there"]
        cli.parse(run_llama.PROGRAM, flags)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and error.count("\n") == 1 and refused in error


def predictions(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split(" ||| ")) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["reviews", "reviews5"])
def test_zero_shot_prints_and_writes_as_the_course(model, capsys, name):
    assert run_llama.main(flags("prompt", model, name=name)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^load 50 data from .*-dev\.txt$", shown, re.M)
    lines = predictions(model.parent / f"{name}-dev-prompting-output.txt")
    filed = predictions(ROOT / "data" / f"{name}-dev.txt")
    ends = "Is this movie bad or good? This movie is " if name == "reviews" else "or excellent? This movie is "
    pairs = list(zip(filed, lines, strict=True))
    assert all(sentence.startswith(own) and sentence.endswith(ends) for (_, own), (_, sentence) in pairs)
    right = sum(label == predicted for (label, _), (predicted, _) in pairs)
    assert f"dev acc :: {right / 50:.3f}\n" in shown
    assert re.search(r"^test acc :: 0\.\d{3}$", shown, re.M)


def test_zero_shot_has_a_second_scoring_and_calibration(model, capsys):
    assert run_llama.main(flags("prompt", model, "--label_scoring", "sequence", "--calibrate")) == 0
    assert "calibrated with" in capsys.readouterr().out
    assert run_llama.main(flags("prompt", model, "--pooling", "last_column", "--no_causal_mask")) == 0


@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_a_model_learns_and_its_best_state_is_saved(model, capsys, option):
    assert run_llama.main(flags(option, model, "--lr", "5e-3", "--epochs", "4", "--dtype", "bfloat16")) == 0
    shown = capsys.readouterr().out
    start = "LoRA epoch" if option == "lora" else "epoch"
    line = rf"^{start} \d: train loss :: \d\.\d{{3}}, train acc :: \d\.\d{{3}}, dev acc :: \d\.\d{{3}}$"
    assert len(re.findall(line, shown, re.M)) == 4
    trained, total = re.search(r"training ([\d,]+) of ([\d,]+) parameters \((.*) %\)", shown).groups()[:2]
    assert (trained == total) is (option == "finetune")
    run = run_folder(model, f"{option}-reviews-0.005-4-1337")
    evaluated = [record["dev_acc"] for record in run_log.read(run / "log.jsonl") if "dev_acc" in record]
    result = json.loads((run / "result.json").read_text())
    assert result["dev_acc"] == max(evaluated) > 0.6
    assert f"dev acc :: {result['dev_acc']:.3f}\n" in shown and f"test acc :: {result['test_acc']:.3f}\n" in shown
    for split in ("dev", "test"):
        assert (run / f"{split}-confusion.png").read_bytes().startswith(b"\x89PNG")
    trained_model, info = load_classifier(run / ("merged.pt" if option == "lora" else "best.pt"))
    assert info.label_names == ["bad", "good"]
    written = predictions(model.parent / f"reviews-test-{METHODS[option]}-output.txt")
    ids = torch.tensor([load_tokenizer(TOKENIZER).encode(written[0][1], bos=True, eos=False)])
    with torch.autocast("cpu", torch.bfloat16):
        assert trained_model(ids).argmax().item() == int(written[0][0])


def test_the_share_of_trained_parameters_is_printed_and_the_adapter_holds_only_them(model, capsys):
    assert run_llama.main(flags("lora", model, "--epochs", "1")) == 0
    base = sum(t.numel() for t in load_plain(model)["model"].values())
    factors, head = 2 * 4 * ((32 + 32) * 2 + (32 + 16) * 2), 32 * 2 + 2  # layers * rank * (in + out)
    share = 100 * (factors + head) / (base + factors + head)
    expected = f"training {factors + head:,} of {base + factors + head:,} parameters ({share:.2f} %)"
    assert expected in capsys.readouterr().out
    run = run_folder(model, "lora-reviews-2e-05-1-1337")
    assert sum(t.numel() for t in load_plain(run / "best.pt")["model"].values()) == factors + head


def test_placeholder_labels_are_reported_and_no_accuracy_is_claimed(model, capsys, tmp_path):
    test = tmp_path / "reviews-test.txt"
    test.write_text("".join(f"0 ||| {sentence}\n" for _, sentence in predictions(ROOT / "data" / "reviews-test.txt")))
    for option in ("prompt", "finetune"):
        assert run_llama.main([*flags(option, model, "--epochs", "1"), f"--test={test}"]) == 0
        shown = capsys.readouterr().out
        assert "test acc ::" not in shown and "a placeholder" in shown and "dev acc" in shown
        assert len(predictions(tmp_path / f"reviews-test-{METHODS[option]}-output.txt")) == 50


def test_several_seeds_give_mean_and_deviation(model, capsys):
    assert run_llama.main(flags("finetune", model, "--epochs", "1", "--lr", "1e-3", "--seeds", "1", "2", "3")) == 0
    shown = capsys.readouterr().out
    folders = [run_folder(model, f"finetune-reviews-0.001-1-{seed}") for seed in (1, 2, 3)]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    values = torch.tensor([result["test_acc"] for result in results])
    assert f"test acc :: {values.mean():.3f} ± {values.std():.3f}" in shown
    assert "over 3 seeds (1, 2, 3)" in shown
    assert run_llama.main(flags("finetune", model, "--epochs", "1", "--lr", "1e-3", "--seed", "3")) == 0
    alone = _without_clocks(run_folder(model, "finetune-reviews-0.001-1-3") / "result.json")
    assert alone == results[2] | MEMORY, "a run must not depend on the seeds before it"


@pytest.mark.parametrize(
    ("option", "more", "reason"),
    [
        ("finetune", ["--train", "nothing.txt"], "no such file: nothing.txt (setup.sh"),
        ("lora", ["--lora_rank", "17"], "rank 17"),
        ("lora", ["--seeds", "1", "1"], "the same seed twice"),
        ("prompt", ["--label_scoring", "sequence", "--pooling", "last_column"], "cannot be combined"),
        ("prompt", ["--dev_out", "no/folder/x-dev-prompting-output.txt"], "there is no folder"),
        ("prompt", ["--use_gpu"], "no CUDA device"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, capsys, monkeypatch, option, more, reason):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_llama.main([*flags(option, model), *more]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "more", "reason"),
    [
        ("finetune", ["--optimizer", "muon"], "these have it: pretrain"),
        ("finetune", ["--calibrate"], "these have it: prompt"),
        ("prompt", ["--seeds", "1"], "these have it: finetune, lora"),
    ],
)
def test_a_flag_of_another_option_is_refused_with_its_owners(model, capsys, option, more, reason):
    with pytest.raises(SystemExit) as exit_info:
        run_llama.main([*flags(option, model), *more])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and reason in error and error.count("\n") == 1


def test_a_training_file_with_one_label_is_refused(model, capsys, tmp_path):
    (tmp_path / "same.txt").write_text("1 ||| a\n1 ||| b\n")
    assert run_llama.main([*flags("finetune", model), "--train", str(tmp_path / "same.txt")]) == 2
    assert "nothing to learn" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_a_killed_run_resumes_to_the_same_bits(model, option, tmp_path):
    """The command is ended by SIGKILL at a random moment."""

    def given(folder: str, *more: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        words = flags(option, model, "--lr", "1e-3", "--epochs", "6", "--save_every", "3", *more)
        outputs = ("--dev_out", "--test_out", "--save_dir")
        return [w.replace(str(tmp_path), f"{tmp_path}/{folder}") if w.startswith(outputs) else w for w in words]

    assert run_llama.main(given("complete")) == 0
    run = f"runs/{option}-reviews-0.001-6-1337-model=tiny"
    state = tmp_path / "killed" / run / "last.pt"
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "run_llama.py", *given("killed")], **quiet) as process:
        deadline = time.monotonic() + 600
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert 0 < load_plain(state)["progress"]["step"] < 6 * 19
    assert run_llama.main(given("killed", "--resume")) == 0
    for file in ("last.pt", "best.pt"):
        complete, killed = (load_plain(tmp_path / name / run / file)["model"] for name in ("complete", "killed"))
        assert complete.keys() == killed.keys()
        assert all(torch.equal(tensor, killed[name]) for name, tensor in complete.items())
    logs = [run_log.read(tmp_path / name / run / "log.jsonl") for name in ("complete", "killed")]
    assert [{**r, **CLOCKS} for r in logs[0]] == [{**r, **CLOCKS} for r in logs[1]]
    for split in ("dev", "test"):
        name = f"reviews-{split}-{METHODS[option]}-output.txt"
        assert (tmp_path / "complete" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_another_run_is_not_resumed(model, capsys):
    assert run_llama.main(flags("finetune", model, "--epochs", "1")) == 0
    (model.parent / "reviews-train.txt").write_text("0 ||| dull\n1 ||| lovely\n", encoding="utf-8")
    train = f"--train={model.parent}/reviews-train.txt"
    assert run_llama.main([*flags("finetune", model, "--epochs", "1", "--resume"), train]) == 2
    assert "started with train " in capsys.readouterr().err
    assert run_llama.main(flags("finetune", model, "--epochs", "1", "--resume", "--batch_size", "9")) == 0
    assert "nothing to resume in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "more", "expected"),
    [
        ("finetune", ["--lr=2e-5"], "finetune-sst-2e-05-5-1337-batch_size=8"),
        ("finetune", ["--batch_size=80", "--epochs=3", "--seed=7"], "finetune-sst-2e-05-3-7"),
        ("lora", ["--batch_size=80", "--lora_rank=4", "--lora_alpha=1.0"], "lora-sst-2e-05-5-1337"),
        ("lora", ["--batch_size=80", "--lora_rank=8", "--no_causal_mask", "--max_grad_norm=0.5"],
         "lora-sst-2e-05-5-1337-max_grad_norm=0.5-no_causal_mask-lora_rank=8"),
        ("finetune", ["--batch_size=80", "--pretrained-model-path=models/stories.pt", "--save_every=9", "--threads=2"],
         "finetune-sst-2e-05-5-1337-model=stories"),
    ],
)  # fmt: skip
def test_a_run_folders_name_gains_what_differs_from_the_courses_command(option, more, expected):
    outs = [f"--{split}_out=x-{split}-{METHODS[option]}-output.txt" for split in ("dev", "test")]
    settings = cli.parse(run_llama.PROGRAM, ["--option", option, "--train=data/sst-train.txt", *outs, *more])[1]
    name = training.run_folder(settings, settings.seed).name
    assert sorted(name.split("-")) == sorted(expected.split("-")) and name.startswith(f"{option}-sst-2e-05-")


def test_a_runs_recipe_repeats_it(model, capsys):
    given = ["--epochs", "1", "--lr", "1e-3", "--batch_size", "16", "--seeds", "5", "6"]
    assert run_llama.main(flags("finetune", model, *given)) == 0
    shown = capsys.readouterr().out
    assert shown.count("predictions in ") == 2 and f"{model.parent}/reviews-dev-finetuning-output.txt" in shown
    folder = run_folder(model, "finetune-reviews-0.001-1-6")
    names = ("result.json", "log.jsonl", "reviews-dev-finetuning-output.txt", "reviews-test-finetuning-output.txt")
    before = [_without_clocks(folder / name) for name in names]
    recipe = model.parent / "again.toml"
    recipe.write_text((folder / "recipe.toml").read_text("utf-8"), encoding="utf-8")
    for name in names:
        (folder / name).unlink()
    assert run_llama.main(["--recipe", str(recipe)]) == 0
    assert [_without_clocks(folder / name) for name in names] == before


def _without_clocks(path: Path):
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8")) | MEMORY
    if path.suffix != ".jsonl":
        return path.read_text("utf-8")
    return [{**record, **CLOCKS} for record in run_log.read(path)]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[fl]*.toml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_the_rows_of_the_table(path):
    option, settings = cli.parse(run_llama.PROGRAM, ["--recipe", str(path)])
    assert option in ("finetune", "lora") and Path(settings.dev_out).parent == Path("runs")
    if path.stem == "finetune_reviews":
        return
    data = Path(settings.train).stem.removesuffix("-train")
    measured = json.loads((ROOT / "docs" / "sentiment_results.json").read_text("utf-8"))
    rows = [row for row in sentiment_table.TRAINED if row.startswith(option) and _has_flags(settings, row)]
    assert len(rows) == 1 and settings.epochs == measured["epochs"]
    assert settings.batch_size == COURSE_BATCH_SIZES[data][option]
    assert Path(settings.pretrained_model_path).name == measured["model"]
    for seed in settings.seeds:
        assert measured["runs"][f"{data} | {rows[0]} | {seed}"]["dtype"] == settings.dtype


def _has_flags(settings, row: str) -> bool:
    """Whether the recipe has exactly the flags of a row of the table."""
    outs = [f"--{split}_out=x-{split}-{METHODS[settings.option]}-output.txt" for split in ("dev", "test")]
    expected = cli.parse(run_llama.PROGRAM, ["--option", settings.option, *outs, *sentiment_table.TRAINED[row]])[1]
    names = ("lr", "schedule", "warmup_steps", "weight_decay", "lora_rank", "lora_alpha", "lora_targets")
    return all(getattr(settings, name, None) == getattr(expected, name, None) for name in names)


def test_the_flags_offer_what_the_classifiers_accept():
    def choices(settings: type, name: str) -> tuple[str, ...]:
        return next(e.metadata["keywords"]["choices"] for e in dataclasses.fields(settings) if e.name == name)

    assert choices(PromptSettings, "pooling") == classifier.POOLINGS
    assert choices(LoraSettings, "pooling") == classifier.TRAINED_POOLINGS
    assert choices(PromptSettings, "label_scoring") == classifier.LABEL_SCORINGS
    assert choices(LoraSettings, "lora_targets") == tuple(lora.TARGETS)
    assert choices(LoraSettings, "adapter") == tuple(adapters.FORMS)
