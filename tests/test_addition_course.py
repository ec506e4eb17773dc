"""Adders for the course's own program: the checkpoint it reads, the twelve fields it builds from, and its names."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import addition_run
from addition_lib import create_datasets
from config import LlamaConfig
from llama import Llama
from tasks.submission.files import COURSES
from tasks.submission.zip_file import collect
from tests.leader_board import models
from tests.tiny import ROOT

MODELS = ROOT / "addition_models"
FIELDS = """vocab_size dim dropout n_layers n_heads n_kv_heads max_seq_len layer_norm_eps multiple_of hidden_dim
position_embedding_type use_cache""".split()


@pytest.fixture(autouse=True)
def keep_random_states():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def restored(folder: Path) -> dict:
    """The checkpoint, after its three random states were restored as the course's `addition_run.py test` does."""
    checkpoint = torch.load(folder / "best_model.pth", map_location="cpu", weights_only=True)
    random.setstate(checkpoint["system_rng"])
    np.random.set_state(checkpoint["numpy_rng"])
    torch.set_rng_state(checkpoint["torch_rng"])
    assert json.loads((folder / "training_config.json").read_text("utf-8"))["batch_size"] > 0
    return checkpoint


def course_load(folder: Path) -> Llama:
    """Stands in for the course's `addition_run.py test`: a model of twelve fields, loaded without strictness."""
    fields = json.loads((folder / "model_config.json").read_text("utf-8"))
    model = Llama(LlamaConfig(**{name: fields[name] for name in FIELDS}))
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in restored(folder)["model"].items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def right(model: Llama, problems: int = 300) -> float:
    """Share of right answers by the course's greedy loop."""
    words = (ROOT / "data" / "addition_test.txt").read_text("ascii").split("\n")[:problems]
    data = create_datasets(ROOT / "data" / "addition_test.txt")
    rows = torch.stack([torch.cat([torch.zeros(1, dtype=torch.long), data.encode(word[:10])]) for word in words])
    with torch.no_grad():
        for _ in range(6):
            rows = torch.cat([rows, model(rows)[0][:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    texts = ["".join(data.itos.get(token, "\n") for token in row[11:]).split("\n")[0] for row in rows.tolist()]
    return sum(word[:10] + text == word for text, word in zip(texts, words, strict=True)) / problems


@pytest.mark.parametrize("folder", sorted(path.parent for path in MODELS.glob("*/best_model.pth")), ids=str)
def test_every_shipped_checkpoint_has_the_random_states_of_its_seed(folder):
    restored(folder)
    seed = json.loads((folder / "training_config.json").read_text("utf-8"))["seed"]
    assert random.random() == random.Random(seed).random()
    assert np.random.random() == np.random.RandomState(seed).random_sample()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def test_only_the_models_of_the_twelve_fields_survive_the_courses_loader():
    assert right(course_load(MODELS / "course_best")) == 1.0
    with pytest.raises(ValueError, match="dim 5 cannot be split into 2 heads"):  # its head size is lost
        course_load(MODELS / "best_model")
    assert right(addition_run.load_model(str(MODELS / "best_model" / "best_model.pth"))) == 1.0


def test_course_best_is_the_smallest_perfect_one_of_the_twelve_fields():
    summary = json.loads((MODELS / "course_best" / "experiment_summary.json").read_text("utf-8"))
    assert summary["exhaustive"]["asked"] == 81_000_000 and summary["exhaustive"]["wrong"] == 0
    assert {name: result["wrong"] for name, result in summary["results"].items()} == {
        "addition_test": 0, "course_addition_test": 0,
    }  # fmt: skip
    rows = [row for row in models() if row["accuracy"] == 1.0 and row["fields"] == "the course's twelve"]
    assert rows[0]["name"] == "course_best" and rows[0]["parameters"] == summary["num_params"] < 1000


def test_the_zip_carries_course_best_for_the_courses_program(tmp_path):
    """The stand-in for the course's test over the unpacked files, which say which of the two models is which."""
    files, problems = collect(ROOT, COURSES["spring2026"], "student")
    assert not problems
    for name in (name for name in files if name.startswith(("addition_models/course_best/", "addition_models/README"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[name], tmp_path / name)
    assert right(course_load(tmp_path / "addition_models" / "course_best")) == 1.0
    page = (tmp_path / "addition_models" / "README.md").read_text("utf-8")
    assert "`course_best` is the smallest perfect one" in page


def test_the_starters_names_serve(tmp_path):
    model = addition_run.load_model(MODELS / "best_model" / "best_model.pth", "cpu")
    assert addition_run.generate(model, "9355+7217=") == "9355+7217=16572"
    assert addition_run.check("1000+1000=2000") and not addition_run.check("1000+1000=2001")
    (tmp_path / "few.txt").write_text("9355+7217=16572\n5611+2247=7858", encoding="ascii")
    accuracy, texts = addition_run.test_model(model, create_datasets(tmp_path / "few.txt"))
    assert accuracy == 1.0 and texts == ["9355+7217=16572", "5611+2247=7858"]
    fresh = addition_run.create_model(model.config)
    assert addition_run.test_model(fresh, create_datasets(tmp_path / "few.txt"))[0] == 0.0
