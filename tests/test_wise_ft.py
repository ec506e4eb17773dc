"""WiSE-FT: its ends are the two models exactly, its middle their mean; dev chooses, and bad input is one line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from classifier import LlamaZeroShotClassifier
from engine.train.averaging import weighted_mean
from tasks.methods.flags import WiseFtSettings
from tasks.methods.wise_ft import chosen_alpha, read_ends
from tasks.sentiment.checkpoint import load_classifier
from tests.tiny import ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer

DATA = ROOT / "data"


def train(folder, option: str, *more: str) -> None:
    inputs = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    method = {"finetune": "finetuning", "lora": "lora"}[option]
    outs = [f"--{split}_out={folder}/{split}-{method}-output.txt" for split in ("dev", "test")]
    names = [f"--label-names={DATA}/reviews-label-mapping.json", f"--pretrained-model-path={folder}/tiny.pt"]
    words = ["--option", option, *inputs, *outs, *names, f"--save_dir={folder}/runs", "--threads", "1", "--epochs", "2"]
    assert run_llama.main([*words, "--lr", "5e-3", *more]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wise_ft")
    write_tiny_checkpoint(folder / "tiny.pt")
    train(folder, "finetune", "--head", "label_words")
    train(folder, "lora", "--head", "label_words")
    return folder


def only(folder, pattern: str):
    return next(folder.glob(f"runs/{pattern}"))


def test_a_mean_of_one_is_its_model_and_of_two_their_mean():
    states = [{"w": torch.randn(3, 4), "b": torch.randn(4)} for _ in range(3)]
    for index in range(3):
        weights = [float(number == index) for number in range(3)]
        assert all(torch.equal(weighted_mean(states, weights)[name], states[index][name]) for name in "wb")
    middle = weighted_mean(states[:2], (0.5, 0.5))
    assert torch.equal(middle["w"], ((states[0]["w"].double() + states[1]["w"].double()) / 2).float())
    soup = weighted_mean(states, [1.0, 1.0, 1.0])
    assert torch.allclose(soup["b"], torch.stack([state["b"] for state in states]).mean(dim=0))


@given(st.lists(st.floats(0.0, 5.0), min_size=2, max_size=5).filter(lambda weights: sum(weights) > 0.01))
def test_means_stay_between_their_models(weights):
    states = [{"w": torch.randn(6)} for _ in weights]
    mean, rows = weighted_mean(states, weights)["w"], torch.stack([state["w"] for state in states])
    assert (mean >= rows.min(dim=0).values - 1e-6).all() and (mean <= rows.max(dim=0).values + 1e-6).all()


@pytest.mark.parametrize("other", [{"w": torch.zeros(2)}, {"v": torch.zeros(3)}])
def test_different_models_are_refused(other):
    with pytest.raises(ValueError, match="differ in shape: "):
        weighted_mean([{"w": torch.zeros(3)}, other], (0.5, 0.5))


def test_no_weight_is_refused():
    with pytest.raises(ValueError, match="positive sum"):
        weighted_mean([{"w": torch.zeros(3)}], [0.0])


@pytest.mark.parametrize("run", ["finetune-*/best.pt", "lora-*/merged.pt"])
def test_the_ends_are_the_zero_shot_and_the_trained_classifier(folder, run):
    path = only(folder, run)
    ends = read_ends(path, folder / "tiny.pt", WiseFtSettings(checkpoint=[str(path)], dev="x"))
    tuned, info = load_classifier(path)
    assert all(torch.equal(ends.at(1.0).state_dict()[name], tensor) for name, tensor in tuned.state_dict().items())
    zero = ends.at(0.0)
    tokenizer = load_tokenizer(TOKENIZER)
    zero_shot = LlamaZeroShotClassifier(
        SimpleNamespace(num_labels=len(info.label_names)), tokenizer, list(info.label_names), zero.llama, "sequence"
    )
    ids = torch.tensor([tokenizer.encode(f"A fine film. {info.question}", bos=True, eos=False)])
    assert all(len(tokens) == 1 for tokens in zero_shot.label_name_ids)  # then the mean of the rows is the row
    assert torch.allclose(zero(ids), zero_shot(ids).log_softmax(dim=1), atol=1e-6)


def test_the_command_measures_all_sets_and_keeps_the_chosen_models(folder, capsys):
    checkpoints = [str(only(folder, "finetune-*/best.pt")), str(only(folder, "lora-*/merged.pt"))]
    words = ["--option", "wise_ft", "--checkpoint", *checkpoints, "--dev", f"{DATA}/reviews-dev.txt", "--points", "3"]
    words += ["--shifted", f"{DATA}/reviews-test.txt", "--pretrained-model-path", f"{folder}/tiny.pt"]
    assert run_llama.main([*words, "--save_dir", f"{folder}/out", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("dev chooses α") == 2 and "reviews-test: chosen α against fine-tuned" in shown
    content = json.loads((folder / "out" / "wise_ft.json").read_text("utf-8"))
    assert content["alphas"] == [0.0, 0.5, 1.0] and (folder / "out" / "wise_ft.png").stat().st_size > 10_000
    for run, path in zip(content["runs"], checkpoints, strict=True):
        assert max(run["accuracy"]["dev"]) == run["accuracy"]["dev"][content["alphas"].index(run["alpha"])]
        chosen, info = load_classifier(folder / "out" / run["model"])
        assert info.question and chosen.pooling == load_classifier(path)[0].pooling


def test_ties_choose_the_middle():
    assert chosen_alpha([0.0, 0.25, 0.5, 0.75, 1.0], [0.5, 0.7, 0.7, 0.7, 0.6]) == 2


def test_a_head_without_label_words_is_refused(folder, capsys):
    train(folder, "finetune", "--epochs", "1", "--save_dir", f"{folder}/linear")
    path = next((folder / "linear").glob("*/best.pt"))
    words = ["--option", "wise_ft", "--checkpoint", str(path), "--dev", f"{DATA}/reviews-dev.txt"]
    capsys.readouterr()
    assert run_llama.main([*words, "--pretrained-model-path", f"{folder}/tiny.pt"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--head label_words" in error


def test_another_language_model_is_refused(folder, capsys):
    words = ["--option", "wise_ft", "--checkpoint", str(only(folder, "finetune-*/best.pt"))]
    words += ["--dev", f"{DATA}/reviews-dev.txt", "--pretrained-model-path", str(ROOT / "models" / "stories.pt")]
    assert run_llama.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was not trained from" in error
