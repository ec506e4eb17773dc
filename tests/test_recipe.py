"""Recipes stand for flags: the command line wins, a bad one is refused in one line, and a run's own repeats it."""

from __future__ import annotations

import json
import tomllib

import pytest

import addition_run
import run_llama
from tasks import cli
from tasks.ail861.run import size_of
from tasks.recipe import recipe_text
from tests.tiny import ROOT

RECIPE = """program = "run_llama.py"
option = "pretrain"

[flags]
corpus = ["a b.txt", "c.txt"]
tokenizer = "words.json"
save_dir = "runs/x"
lr = 1e-4
compile = true
resume = false
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def test_a_recipe_is_read_as_flags_and_the_command_line_wins(recipe):
    option, settings = cli.parse(run_llama.PROGRAM, ["--recipe", recipe, "--lr", "0.5", "--epochs", "2"])
    assert option == "pretrain"
    assert (settings.corpus, settings.tokenizer, settings.compile) == (["a b.txt", "c.txt"], "words.json", True)
    assert (settings.lr, settings.epochs, settings.resume) == (0.5, 2, False)
    assert {"corpus", "lr", "epochs"} <= settings.given and "dim" not in settings.given


def test_what_a_run_writes_repeats_it(recipe, tmp_path):
    option, settings = cli.parse(run_llama.PROGRAM, ["--recipe", recipe, "--seed", "5", "--resume"])
    (tmp_path / "again.toml").write_text(recipe_text("run_llama.py", option, settings), encoding="utf-8")
    repeated = cli.parse(run_llama.PROGRAM, ["--recipe", str(tmp_path / "again.toml")])[1]
    assert vars(repeated) == vars(settings) | {"resume": False, "given": settings.given - {"resume"}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no toml", "is not TOML"),
        ('program = "addition_run.py"', "is for addition_run.py"),
        ('program = "run_llama.py"\noption = "sing"\n[flags]', "needs an `option`"),
        ('program = "run_llama.py"\noption = "evaluate"\n[flags]\nlora_rank = 9', "these have it: lora"),
        ('program = "run_llama.py"\noption = "generate"\n[flags]\ntop_k = 0', "at least 1"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(tmp_path, capsys, content, reason):
    (tmp_path / "bad.toml").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(run_llama.PROGRAM, ["--recipe", str(tmp_path / "bad.toml")])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and reason in error and error.count("\n") == 1


def test_a_missing_recipe_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.parse(addition_run.PROGRAM, ["train", "--recipe", "nothing.toml"])
    assert "no such file" in capsys.readouterr().err


LISTS = ("ail861_", "methods", "architectures")  # sizes and lists of several runs
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.toml")) if not path.stem.startswith(LISTS)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(path):
    recipe = tomllib.loads(path.read_text("utf-8"))
    program = {"run_llama.py": run_llama.PROGRAM, "addition_run.py": addition_run.PROGRAM}[recipe["program"]]
    files = {"pretrain": ["--corpus", "x", "--tokenizer", "x", "--save_dir", "x"], "test": ["--checkpoint", "x"]}
    files |= {"tokenizer": ["--corpus", "x", "--tokenizer", "x"], "submission": ["--andrewid", "x"]}
    sentiment = [f"--{split}_out=x-{split}-{recipe['option']}-output.txt" for split in ("dev", "test")]
    files |= {"lora": sentiment, "finetune": [word.replace("finetune", "finetuning") for word in sentiment]}
    option, settings = cli.parse(program, ["--recipe", str(path), *files.get(recipe["option"], [])])
    assert option == recipe["option"]
    assert {name.replace("-", "_") for name, value in recipe["flags"].items() if value is not False} <= settings.given


@pytest.mark.parametrize(
    ("name", "dim", "vocabulary"), [("tiny", 16, 300), ("small", 192, 6000), ("large", 512, 10000)]
)
def test_the_sizes_of_ail861_are_recipes(name, dim, vocabulary):
    size = size_of(name)
    assert (size.dim, size.vocabulary, size.stories) == (dim, vocabulary, 4 if name == "tiny" else 50)


def test_the_recipe_of_the_story_model_is_what_trained_it():
    recipe = tomllib.loads((ROOT / "recipes" / "stories.toml").read_text("utf-8"))["flags"]
    shipped = json.loads((ROOT / "models" / "stories.json").read_text("utf-8"))
    for name, value in (shipped["training"] | shipped["config"]).items():
        if name in recipe:
            assert recipe[name] == value, name
    assert {"epochs", "lr", "optimizer", "batch_tokens", "dim", "n_layers", "dtype", "seed"} <= set(recipe)
