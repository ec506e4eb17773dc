"""A head size of its own: dim and the heads need not divide, and checkpoints carry it."""

from __future__ import annotations

import pytest
import torch

from config import LlamaConfig
from engine.io.checkpoint import parameter_shapes, save_checkpoint
from llama import Llama, load_pretrained

WIDE = {"vocab_size": 13, "dim": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 5, "max_seq_len": 20}


def test_the_head_size_is_dim_over_heads_unless_given():
    assert LlamaConfig(dim=64, n_heads=4, n_kv_heads=4).head_dim == 16
    config = LlamaConfig(**WIDE, head_size=4)
    assert config.head_dim == 4
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("size", "complaint"), [(3, "odd"), (0, "positive"), (None, "cannot be split")])
def test_an_impossible_head_size_is_refused(size, complaint):
    with pytest.raises(ValueError, match=complaint):
        LlamaConfig(**WIDE, head_size=size)


def test_a_model_of_wide_heads_is_saved_loaded_and_decodes_alike(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(**WIDE, head_size=4)
    model = Llama(config)
    named = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert named == parameter_shapes(config)
    assert named["layers.0.attention.compute_query.weight"] == (16, 6)
    assert named["layers.0.attention.compute_output.weight"] == (6, 16)
    save_checkpoint(tmp_path / "wide.pt", config, model.state_dict())
    tokens = torch.randint(13, (3, 9))
    again = load_pretrained(str(tmp_path / "wide.pt"))
    assert torch.equal(again(tokens)[0], model.eval()(tokens)[0])
    plain = [row.tolist() for row in again.generate(tokens, 5, temperature=0.0)]
    again.config.use_cache = False
    assert plain == [row.tolist() for row in again.generate(tokens, 5, temperature=0.0)]
