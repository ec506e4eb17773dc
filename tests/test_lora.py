"""LoRA: trained parameters, initial output, merging; peft as an independent oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from config import LlamaConfig
from llama import Llama
from lora import (
    TARGETS,
    LoRALayer,
    apply_lora,
    count_lora_parameters,
    get_lora_optimizer_params,
    merge_lora_weights,
)

CONFIG = LlamaConfig(vocab_size=50, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=32)
TOKENS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))


def adapted(rank: int = 4, alpha: float = 2.0, spread: float = 0.3) -> Llama:
    """A random model whose factors are not at their initial values."""
    torch.manual_seed(0)
    model = apply_lora(Llama(CONFIG), rank, alpha).eval()
    for parameter in get_lora_optimizer_params(model):
        nn.init.normal_(parameter, std=spread)
    return model


def test_the_layer_by_hand():
    layer = LoRALayer(nn.Linear(2, 2, bias=True), rank=1, alpha=3.0)
    with torch.no_grad():
        layer.original_layer.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        layer.original_layer.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, 1.0]]))
        layer.lora_B.copy_(torch.tensor([[2.0], [1.0]]))
    out = layer(torch.tensor([[1.0, 2.0]]))  # W x + b = (5.5, -2); 3 * B * (A x) = 3 * (2, 1) * 3 = (18, 9)
    assert out.tolist() == [[23.5, 7.0]]


def test_shapes_scale_and_start():
    layer = LoRALayer(nn.Linear(6, 10), rank=4, alpha=1.0)
    assert layer.lora_A.shape == (4, 6) and layer.lora_B.shape == (10, 4)
    assert layer.scaling == 0.25
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    before = model(TOKENS, TOKENS)[0]
    assert torch.equal(apply_lora(model)(TOKENS, TOKENS)[0], before)


def test_only_factors_are_trained():
    model = adapted(rank=3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    projections = [f"layers.{n}.attention.compute_{p}" for n in (0, 1) for p in ("query", "key", "value", "output")]
    assert trained == {f"{name}.lora_{factor}" for name in projections for factor in "AB"}
    by_hand = 2 * 3 * ((16 + 16) * 2 + (16 + 8) * 2)  # layers * rank * (in + out), two kv heads of four
    factors, total, share = count_lora_parameters(model)
    assert factors == by_hand == sum(parameter.numel() for parameter in get_lora_optimizer_params(model))
    assert total == Llama(CONFIG).parameter_count() + by_hand
    assert share == pytest.approx(100 * by_hand / total)


def test_all_linear_layers_but_the_output_can_be_adapted():
    model = apply_lora(Llama(CONFIG), rank=3, targets=TARGETS["all"])
    linear = {name for name, module in Llama(CONFIG).named_modules() if isinstance(module, nn.Linear)}
    adapted_names = {name for name, module in model.named_modules() if isinstance(module, LoRALayer)}
    assert adapted_names == linear - {"output"}


def test_merged_weights_give_the_same_logits():
    model = adapted()
    expected = model(TOKENS, TOKENS)[0]
    merged = merge_lora_weights(copy.deepcopy(model))
    assert not any(isinstance(module, LoRALayer) for module in merged.modules())
    assert set(merged.state_dict()) == set(Llama(CONFIG).state_dict())
    assert torch.allclose(merged(TOKENS, TOKENS)[0], expected, atol=1e-5)
    for parameter in get_lora_optimizer_params(model):
        nn.init.zeros_(parameter)
    assert (model(TOKENS, TOKENS)[0] - expected).abs().max() > 1e-2, "the factors must matter here"


def test_the_generator_determines_the_initial_factors():
    def initial(seed: int) -> torch.Tensor:
        model = apply_lora(Llama(CONFIG), generator=torch.Generator().manual_seed(seed))
        return torch.cat([parameter.detach().flatten() for parameter in get_lora_optimizer_params(model)])

    assert torch.equal(initial(1), initial(1)) and not torch.equal(initial(1), initial(2))


def test_bad_ranks_and_targets_are_refused():
    with pytest.raises(ValueError, match="rank 9"):
        apply_lora(Llama(CONFIG), rank=9)
    with pytest.raises(ValueError, match="no linear layer named nothing"):
        apply_lora(Llama(CONFIG), targets=("nothing",))


def test_a_layer_equals_pefts():
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(12, 7, bias=False))
    layer = LoRALayer(copy.deepcopy(base[0]), rank=3, alpha=6.0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"]))
    module = theirs.base_model.model[0]
    nn.init.normal_(layer.lora_B)
    with torch.no_grad():
        module.lora_A["default"].weight.copy_(layer.lora_A)
        module.lora_B["default"].weight.copy_(layer.lora_B)
    x = torch.randn(5, 12)
    assert torch.allclose(layer(x), theirs(x), atol=1e-6)
    assert torch.allclose(layer.merged()(x), theirs.merge_and_unload()(x), atol=1e-6)
