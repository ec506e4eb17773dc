"""Training and testing adders from the command line: files, capacity, resume, what is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import addition_run
import run_llama
from addition_lib import create_datasets
from addition_run import evaluate_loss, train_one_epoch
from config import LlamaConfig
from engine.io.checkpoint import load_plain, read_checkpoint, save_checkpoint
from engine.train.run_log import read
from llama import Llama
from tasks import cli
from tasks.addition.plan import TrainingPlan
from tasks.addition.problems import encode_problems, pair_number, read_problems
from tests.tiny import ROOT

CPU = torch.device("cpu")
TINY = ["--dim", "4", "--n_layers", "1", "--n_heads", "1", "--n_kv_heads", "1", "--hidden_dim", "2", "--lr", "1e-2"]
SHORT = ["--examples", "600", "--epochs", "2", "--batch_size", "100", "--dev_examples", "50", "--log_every", "1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    return training_in(tmp_path, monkeypatch)


def training_in(tmp_path, monkeypatch):
    """A function that runs `train` in a fresh folder that has the test file, and returns the exit code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    test_file = (ROOT / "data" / "addition_test.txt").read_text("ascii")
    (tmp_path / "data" / "addition_test.txt").write_text(test_file, encoding="ascii")
    return lambda *flags: addition_run.main(["train", *TINY, *SHORT, "--save_dir", "run", *flags])


@contextmanager
def interrupted(when: Callable[[TrainingPlan], bool]) -> Iterator[None]:
    """Within it a training is interrupted before the first step for which `when` holds."""
    begin = TrainingPlan.begin

    def stopping(plan):
        begin(plan)
        step = plan.trainer.step

        def failing(batches):
            if when(plan):
                raise KeyboardInterrupt
            return step(batches)

        plan.trainer.step = failing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingPlan, "begin", stopping)
        yield


def test_a_run_leaves_the_courses_files(train, tmp_path, capsys):
    assert train() == 0
    assert "model parameters are 164" in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made >= {"best_model.pth", "model_config.json", "training_config.json", "loss_curve.png", "log.jsonl"}
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert described["train_samples"] == 300 and described["capacity_used"] == 6 * 164 * 600
    assert described["result"]["examples_seen"] == 600 and described["command"].startswith("python ")
    sets = [set(pair_number(*read_problems(tmp_path / "data" / f"addition_{name}.txt")).tolist())
            for name in ("train", "dev", "test")]  # fmt: skip
    assert [len(numbers) for numbers in sets] == [300, 50, 10_000]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert addition_run.main(["test", "--checkpoint", "run/best_model.pth", "--max_test_examples", "40"]) == 0
    summary = json.loads((tmp_path / "run" / "experiment_summary.json").read_text())
    assert summary["num_params"] == 164 and 0 <= summary["accuracy"] <= 1
    assert summary["train_config"]["capacity"] == described["capacity"]
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert len(predictions) == 40 and len(predictions) - len(summary["wrong"]) == round(40 * summary["accuracy"])


def test_the_courses_test_problems_are_not_trained_on_either(train, tmp_path):
    """All that one draw would train on, kept as the course's test: the next run has none of them."""
    assert train() == 0
    first = (tmp_path / "data" / "addition_train.txt").read_text("ascii")
    (tmp_path / "data" / "course_addition_test.txt").write_text(first, encoding="ascii")
    assert train("--save_dir", "other") == 0
    kept, now = (set(pair_number(*read_problems(tmp_path / "data" / name)).tolist())
                 for name in ("course_addition_test.txt", "addition_train.txt"))  # fmt: skip
    assert len(now) == 300 and not kept & now
    described = json.loads((tmp_path / "other" / "training_config.json").read_text())
    assert described["excluded"] == ["addition_test.txt", "course_addition_test.txt"]


def test_plain_and_fast_training_give_the_same_curve(train, tmp_path):
    assert train("--save_dir", "fast", "--chunk", "50") == 0 and train("--save_dir", "plain", "--plain") == 0
    curves = [[record["loss"] for record in read(tmp_path / name / "log.jsonl") if "loss" in record]
              for name in ("fast", "plain")]  # fmt: skip
    assert len(curves[0]) == 6 and curves[0] == pytest.approx(curves[1], abs=1e-4)
    plain, fast = (read_checkpoint(tmp_path / name / "best_model.pth").state_dict for name in ("plain", "fast"))
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=0, atol=1e-4)


def test_seeds_side_by_side_are_those_alone(train, tmp_path):
    assert train("--seeds", "2", "--save_dir", "both", "--max_grad_norm", "1") == 0
    assert train("--plain", "--save_dir", "first", "--max_grad_norm", "1") == 0
    first = read_checkpoint(tmp_path / "both" / "seed_1337.pth").state_dict
    alone = load_plain(tmp_path / "first" / "last.pt")["model"]
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4)
    result = json.loads((tmp_path / "both" / "training_config.json").read_text())["result"]
    assert len(result["seed_accuracies_at_the_end"]) == 2 and result["best_seed"] in (1337, 1338)


RESUMED = [["--seeds", "2"], ["--hard", "0.5"], ["--optimizer", "muon"], ["--hard", "0.5", "--average_from", "0.3"]]


@pytest.mark.parametrize("more", RESUMED, ids=" ".join)
def test_a_stopped_run_resumes_to_the_same_weights(train, tmp_path, monkeypatch, more):
    """Also with Muon, with hard problems, and with averaged weights: both change at every evaluation."""
    monkeypatch.setattr("tasks.addition.hard.FIRST_LOOK", 512)
    monkeypatch.setattr("tasks.addition.hard.POOL", 16)
    flags = [*more, "--schedule", "cosine", "--warmup_steps", "2", "--save_every", "2", "--evaluate_every", "3"]
    assert train(*flags) == 0
    whole = load_plain(tmp_path / "run" / "last.pt")["model"]
    with interrupted(lambda plan: plan.trainer.progress.step == 5):
        assert train(*flags) == 130
    assert train(*flags, "--resume") == 0
    state = load_plain(tmp_path / "run" / "last.pt")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state["model"].items())
    assert "--hard" not in more or int(state["tensors"]["looks"]) == 3  # before the first step, after steps 3 and 6
    assert [record["step"] for record in read(tmp_path / "run" / "log.jsonl") if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert train(*flags, "--lr", "0.5", "--resume") == 2


def test_capacity_is_never_exceeded(train, tmp_path):
    """Course's count of distinct problems, rounded up; the last epoch is cut so that capacity is not passed."""
    capacity = 6 * 164 * 601 + 5
    flags = ["train", *TINY, "--epochs", "4", "--batch_size", "100", "--dev_examples", "50", "--save_dir", "run"]
    assert addition_run.main([*flags, "--capcaity", str(capacity)]) == 0
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert described["train_samples"] == 151 and described["examples"] == 601
    assert described["result"]["examples_seen"] == 601
    assert load_plain(tmp_path / "run" / "last.pt")["progress"]["targets"] in range(601 * 5, 601 * 6)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--capacity", "95000"], "allows 96 examples of a model with 164 parameters: less than one batch of 100"),
        (["--n_heads", "3"], "dim 4 cannot be split into 3 heads"),
        (["--head_dim", "3"], "odd"),
        (["--n_heads", "2", "--n_kv_heads", "3"], "not a multiple"),
        (["--chunk", "30"], "does not divide the batch of 100"),
        (["--hard", "0.5", "--seeds", "2"], "leave out --seeds"),
        (["--plain", "--seeds", "2"], "leave out --seeds"),
        (["--examples", "90000000", "--epochs", "1"], "repeat them with --epochs"),
        (["--exclude", "none.txt"], "none.txt"),
        (["--train_file", "data/addition_test.txt"], "has problems that are excluded"),
    ],
)
def test_bad_input_is_one_line_before_any_work(train, tmp_path, capsys, flags, complaint):
    if "--capacity" in flags:  # all that the capacity allows, in place of --examples
        code = addition_run.main(["train", *TINY, "--batch_size", "100", "--save_dir", "run", *flags])
    else:
        code = train(*flags)
    captured = capsys.readouterr()
    assert code == 2 and captured.err.count("\n") == 1 and complaint in captured.err
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_foreign_checkpoint_or_question_is_refused(train, tmp_path, capsys):
    config = LlamaConfig(vocab_size=14, dim=4, n_layers=1, n_heads=1, n_kv_heads=1)
    save_checkpoint(tmp_path / "foreign.pt", config, Llama(config).state_dict())
    assert addition_run.main(["test", "--checkpoint", "foreign.pt"]) == 2
    assert addition_run.main(["test", "--checkpoint", "none.pt"]) == 2
    assert train() == 0
    capsys.readouterr()
    best = ["--option", "addition", "--pretrained-model-path", "run/best_model.pth"]
    for question in ("12+34=", "1234*5678=", "1234+567=", ""):
        assert run_llama.main([*best, "--prompt", question]) == 2
        assert "not a question" in capsys.readouterr().err
    assert run_llama.main([*best, "--prompt", "1234 + 5678 ="]) == 0
    assert capsys.readouterr().out.startswith("1234+5678=")
    assert run_llama.main(best) == 0
    assert "test length 10000" in capsys.readouterr().out


def test_given_files_are_read_and_use_gpu_falls_back(train, tmp_path, capsys):
    assert train("--use_gpu") == 0
    if not torch.cuda.is_available():
        assert "running on the CPU" in capsys.readouterr().out
    before = (tmp_path / "data" / "addition_train.txt").read_bytes()
    assert train("--train_file", "data/addition_train.txt", "--val_file", "data/addition_dev.txt", "--seed", "7") == 0
    assert (tmp_path / "data" / "addition_train.txt").read_bytes() == before
    described = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert (described["train_samples"], described["dev_samples"]) == (300, 50)


def loader(tmp_path, batch: int):
    lines = (ROOT / "data" / "addition_test.txt").read_text("ascii").split("\n")[:50]
    (tmp_path / "few.txt").write_text("\n".join(lines), encoding="ascii")
    return torch.utils.data.DataLoader(create_datasets(tmp_path / "few.txt"), batch_size=batch)


def test_the_courses_loss_counts_the_answer_and_its_end(tmp_path):
    """Against log-probabilities picked by hand at the places of the answer."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=13, dim=8, n_layers=1, n_heads=2, n_kv_heads=2, max_seq_len=20))
    batches = loader(tmp_path, 25)
    x, y = encode_problems(*read_problems(tmp_path / "few.txt"))
    log_probs = model(x.long(), targets=y)[0].log_softmax(dim=-1)
    means = []
    for half in (range(25), range(25, 50)):
        picked = [-log_probs[i, t, y[i, t].long()].item() for i in half for t in range(10, 16) if y[i, t] >= 0]
        means.append(sum(picked) / len(picked))
    assert evaluate_loss(model, batches, CPU) == pytest.approx(sum(means) / 2, abs=1e-6)


def test_the_courses_epoch_is_a_plain_torch_loop(tmp_path):
    """Against a loop written with torch's own parts."""
    config = LlamaConfig(vocab_size=13, dim=8, n_layers=1, n_heads=2, n_kv_heads=2, max_seq_len=20)
    torch.manual_seed(0)
    model, batches = Llama(config), loader(tmp_path, 20)
    oracle = Llama(config)
    oracle.load_state_dict(model.state_dict())
    mean = train_one_epoch(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), CPU)
    losses, optimizer = [], torch.optim.SGD(oracle.parameters(), lr=0.1)
    for x, y in batches:
        y[:, :10] = -1
        loss = torch.nn.functional.cross_entropy(oracle(x, targets=y)[0].transpose(1, 2), y, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert mean == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    for name, tensor in oracle.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_another_test_is_added_and_replaces_nothing(train, tmp_path):
    """A shorter test, and one on another file, leave the summary's main result, its predictions and `exhaustive`."""
    folder = tmp_path / "run"
    assert train() == 0
    test = ["test", "--checkpoint", "run/best_model.pth"]
    assert addition_run.main(test) == 0
    summary = json.loads((folder / "experiment_summary.json").read_text())
    (folder / "experiment_summary.json").write_text(json.dumps(summary | {"exhaustive": {"wrong": 5}}))
    predictions = (folder / "predictions.json").read_bytes()
    (tmp_path / "other.txt").write_text("1234+5678=6912\n", encoding="ascii")
    for flags in (["--max_test_examples", "7"], ["--test_file", "other.txt"], []):
        assert addition_run.main([*test, *flags]) == 0
    merged = json.loads((folder / "experiment_summary.json").read_text())
    assert set(merged["results"]) == {"addition_test", "addition_test, first 7", "other"}
    assert {name: merged[name] for name in summary if name != "results"} | {"exhaustive": {"wrong": 5}} == {
        name: merged[name] for name in merged if name != "results"
    }
    assert (folder / "predictions.json").read_bytes() == predictions
    assert len(json.loads((folder / "predictions-addition_test-7.json").read_text())) == 7
    assert len(json.loads((folder / "predictions-other.json").read_text())) == 1


def test_a_run_writes_the_recipe_that_repeats_it(train, tmp_path):
    assert train() == 0
    first = load_plain(tmp_path / "run" / "last.pt")["model"]
    assert addition_run.main(["train", "--recipe", "run/recipe.toml", "--save_dir", "again"]) == 0
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_plain("again/last.pt")["model"].items())


def test_the_recipe_of_the_best_adder_is_what_it_was_trained_with():
    _, settings = cli.parse(addition_run.PROGRAM, ["train", "--recipe", str(ROOT / "recipes" / "best_adder.toml")])
    folder = ROOT / "addition_models" / "best_model"
    config, training = (json.loads((folder / f"{name}_config.json").read_text()) for name in ("model", "training"))
    words = [word for word in shlex.split(training["command"])[2:] if word != "--resume"]
    _, trained = cli.parse(addition_run.PROGRAM, words)
    elsewhere = {"save_dir": None, "threads": None, "given": None}
    assert vars(settings) | elsewhere == vars(trained) | elsewhere
    assert (settings.dim, settings.head_dim, settings.rope_theta, settings.lr, settings.trial_seeds) == (
        config["dim"], config["head_size"], config["rope_theta"], training["lr"], training["trial_seeds"],
    )  # fmt: skip
