"""The course's names serve a student's own files: a stand-in for its `run_llama.py`, and its helper functions."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from config import LlamaConfig
from llama import Attention, FeedForward, Llama
from rope import reshape_for_broadcast, rotate, rotation_table
from tests import course_program
from tests.tiny import CONFIG, ROOT, TOKENIZER, write_tiny_checkpoint
from utils import get_extended_attention_mask, get_parameter_dtype


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder as the course's program expects it."""
    (tmp_path / "data").mkdir()
    for path in ROOT.glob("data/reviews*"):
        shutil.copyfile(path, tmp_path / "data" / path.name)
    shutil.copyfile(TOKENIZER, tmp_path / "tokenizer.model")
    write_tiny_checkpoint(tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ours(*flags: str) -> str:
    """What `--option prompt` writes for the same sentences."""
    data = [f"--{split}=data/reviews5-{split}.txt" for split in ("dev", "test")]
    outs = [f"--{split}_out=ours-{split}-prompting-output.txt" for split in ("dev", "test")]
    names = ["--label-names", "data/reviews5-label-mapping.json", "--pretrained-model-path", "model.pt"]
    assert run_llama.main(["--option", "prompt", "--batch_size", "10", *data, *outs, *names, *flags]) == 0
    with open("ours-dev-prompting-output.txt", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("students", [False, True])
def test_the_course_program_predicts_what_our_option_does(folder, students):
    course_program.prompt("model.pt", "reviews5", "theirs.txt", students)
    theirs = (folder / "theirs.txt").read_text("utf-8")
    assert theirs == ours("--pooling", "last_column" if students else "last_token")
    assert theirs != ours("--pooling", "last_token" if students else "last_column")


def test_the_course_program_trains_saves_and_loads(folder):
    losses, before, after = course_program.finetune("model.pt", "reviews", "saved.pt", epochs=3, lr=3e-3)
    assert losses[-1] < 0.8 * losses[0] and before == after and len(set(before)) == 2


def test_the_course_program_generates_what_our_option_does(folder):
    text = course_program.generate_sentence("model.pt", "Once upon a time", 12, 0.0)
    flags = ["--prompt", "Once upon a time", "--temperature", "0", "--max_new_tokens", "12"]
    out = ["--generated_sentence_low_temp_out", "ours.txt", "--pretrained-model-path", "model.pt"]
    assert run_llama.main(["--option", "generate", *flags, *out]) == 0
    assert (folder / "ours.txt").read_text("utf-8") == text


@pytest.mark.parametrize("causal", [True, False])
def test_attention_takes_causal_as_an_argument(causal):
    torch.manual_seed(0)
    attention, x = Attention(CONFIG, causal=causal), torch.randn(1, 5, CONFIG.dim)
    changed = x.clone()
    changed[0, -1] += 1.0
    assert torch.allclose(attention(x)[0, :4], attention(changed)[0, :4]) == causal


@given(st.integers(1, 40), st.sampled_from([1, 8, 32]), st.sampled_from([None, 5]))
def test_feed_forward_takes_the_courses_arguments(dim, multiple_of, hidden_dim):
    layer = FeedForward(dim=dim, hidden_dim=hidden_dim, multiple_of=multiple_of, dropout=0.1)
    config = LlamaConfig(dim=dim, hidden_dim=hidden_dim, multiple_of=multiple_of, n_heads=1, n_kv_heads=1,
                         position_embedding_type="none")  # fmt: skip
    assert layer.w1.weight.shape == layer.w3.weight.shape == (config.ffn_dim, dim)
    assert layer.w2.weight.shape == (dim, config.ffn_dim) and layer.dropout.p == 0.1


def test_params_is_the_config():
    model = Llama(CONFIG)
    assert model.params is CONFIG and get_parameter_dtype(model) == torch.float32


def test_the_config_keeps_fields_that_decide_nothing_here():
    config = LlamaConfig(dim=16, num_labels=5, pad_token_id=0, output_attentions=False, tie_word_embeddings=True)
    assert (config.num_labels, config.pad_token_id, config.output_attentions) == (5, 0, False)
    assert config == LlamaConfig(dim=16) and "num_labels" not in config.to_dict()
    with pytest.raises(ValueError, match="n_layer: did you mean n_layers"):
        LlamaConfig(n_layer=2)


def test_reshape_for_broadcast_serves_a_students_rope():
    x, (cos, sin) = torch.randn(2, 5, 3, 8), rotation_table(8, 5)
    pairs = x.unflatten(-1, (-1, 2))
    cos_of, sin_of = (reshape_for_broadcast(table, pairs[..., 0]) for table in (cos, sin))
    turned = torch.stack(
        (pairs[..., 0] * cos_of - pairs[..., 1] * sin_of, pairs[..., 0] * sin_of + pairs[..., 1] * cos_of), dim=-1
    ).flatten(-2)
    torch.testing.assert_close(turned, rotate(x, cos[:, None], sin[:, None]))
    with pytest.raises(ValueError, match=r"a table of \(5, 4\) was expected"):
        reshape_for_broadcast(cos[:4], pairs[..., 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_extended_mask_hides_keys_from_the_softmax(dtype):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights = (torch.randn(2, 4, 3, 3, dtype=dtype) + get_extended_attention_mask(mask, dtype)).softmax(dim=-1)
    assert torch.equal(weights > 0, mask.bool()[:, None, None].expand(2, 4, 3, 3))
    square = torch.ones(2, 3, 3).tril()
    assert torch.equal(get_extended_attention_mask(square, dtype)[:, 0] == 0, square.bool())


def test_seed_everything_seeds_three_generators():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = []
    for _ in range(2):
        run_llama.seed_everything(7)
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
