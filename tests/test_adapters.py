"""rsLoRA, DoRA, IA³ and LoRA+ against peft: logits, merged weights, first losses; and the command that trains them."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import load_plain, save_plain
from engine.model.adapters import FORMS, apply_adapters, check_adapters, lora_plus_groups
from llama import Llama
from lora import TARGETS, get_lora_optimizer_params, lora_layers, merge_lora_weights
from optimizer import AdamW
from tasks.sentiment.checkpoint import load_classifier
from tests.oracles import RENAMED, half_split_rows, random_llama, transformers_model
from tests.tiny import ROOT, write_tiny_checkpoint

peft = pytest.importorskip("peft")

FIELDS = {"vocab_size": 60, "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 16}
RANK, ALPHA, STEPS, RATE = 3, 6.0, 20, 5e-3
TOKENS = torch.randint(0, 60, (4, 4, 12), generator=torch.Generator().manual_seed(0)).repeat(STEPS // 4, 1, 1)
THEIRS = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight", "ia3": "ia3_l.default",
          "magnitude": "lora_magnitude_vector.default.weight"}  # fmt: skip


def their_model(base: Llama, form: str) -> nn.Module:
    """The same base model in transformers, with peft's adapters on the same layers."""
    model = transformers_model(base).train()
    if form == "ia3":
        layers = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        return peft.get_peft_model(model, peft.IA3Config(**layers))
    layers = [theirs.split(".")[-1] for theirs in list(RENAMED.values())[:7]]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers, lora_dropout=0.0,
                             use_rslora=form == "rslora", use_dora=form == "dora")  # fmt: skip
    return peft.get_peft_model(model, config)


@torch.no_grad()
def copy_adapters(ours: Llama, theirs: nn.Module) -> None:
    """Gives peft's model our adapters' values, with rows in the order of its rotary features."""
    parents = {id(module): name for name, module in ours.named_modules()}
    config, parameters = ours.config, dict(theirs.named_parameters())
    heads = {"compute_query": config.n_heads, "compute_key": config.n_kv_heads}
    for parent, name, layer in lora_layers(ours):
        path = f"{parents[id(parent)]}.{name}".replace("layers.", "model.layers.", 1)
        for our_name, their_name in RENAMED.items():
            path = path.replace(our_name, their_name)
        for own, value in layer.named_parameters(recurse=False):
            target = parameters[f"base_model.model.{path}.{THEIRS[own]}"]
            if name in heads and own != "lora_A":
                value = half_split_rows(value.reshape(len(value), -1), heads[name])
            target.copy_(value.reshape(target.shape))


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, logits, change_eps: bool) -> list[float]:
    values = []
    for step, tokens in enumerate(TOKENS, start=1):
        for group in optimizer.param_groups if change_eps else []:
            group["eps"] = 1e-6 / math.sqrt(1.0 - 0.999**step)  # the course adds eps before the bias correction
        loss = loss_of(logits(model, tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def our_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, targets=tokens)[0]


def their_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


def random_adapters(base: Llama, form: str) -> Llama:
    """Adapters that are not at their initial values."""
    torch.manual_seed(1)
    model = copy.deepcopy(base)
    apply_adapters(model, form, RANK, ALPHA, TARGETS["all"])
    with torch.no_grad():
        for parameter in get_lora_optimizer_params(model):
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_logits_are_pefts_and_stay_when_merged(form):
    base = random_llama(**FIELDS, scale=3.0)
    ours, theirs = random_adapters(base, form), their_model(base, form).eval()
    plain, tokens = our_logits(base, TOKENS[0]), TOKENS[0]
    copy_adapters(ours, theirs)
    expected = their_logits(theirs, tokens)
    scale = expected.abs().max()
    assert (expected - plain).abs().max() > 1e-2 * scale, "the adapters must matter here"
    assert (our_logits(ours, tokens) - expected).abs().max() < 1e-5 * scale
    merged = merge_lora_weights(ours)
    assert set(merged.state_dict()) == set(base.state_dict())
    assert (our_logits(merged, tokens) - expected).abs().max() < 1e-5 * scale
    assert (their_logits(theirs.merge_and_unload(), tokens) - expected).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(("form", "ratio"), [*((form, 1.0) for form in FORMS), ("lora", 4.0)])
def test_the_first_losses_are_pefts(form, ratio):
    base = random_llama(**FIELDS, scale=2.0, norm_type="rmsnorm")
    torch.manual_seed(2)
    ours, theirs = copy.deepcopy(base), their_model(base, form)
    apply_adapters(ours, form, RANK, ALPHA, TARGETS["all"])
    copy_adapters(ours, theirs)
    with torch.no_grad():
        assert torch.equal(our_logits(ours, TOKENS[0]), our_logits(base, TOKENS[0])), "adapters must start as nothing"
    if ratio == 1.0:
        optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    else:
        two_rates = pytest.importorskip("peft.optimizers").create_loraplus_optimizer
        optimizer = two_rates(theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio)
    expected = losses(theirs, optimizer, their_logits, change_eps=True)
    groups = lora_plus_groups(ours.named_parameters(), RATE, ratio)
    own = losses(ours, AdamW([group for group in groups if group["params"]], lr=RATE), our_logits, change_eps=False)
    assert own == pytest.approx(expected, abs=1e-5)
    assert sum(own[-5:]) < sum(own[:5]) - 0.05, "training must matter"


def test_only_b_learns_at_the_higher_rate():
    model = apply_adapters(Llama(LlamaConfig(**FIELDS)), "dora", RANK, ALPHA, TARGETS["attention"])
    others, factors = lora_plus_groups(model.named_parameters(), 0.1, 16.0)
    assert {id(p) for p in factors["params"]} == {id(layer.lora_B) for _, _, layer in lora_layers(model)}
    assert len(others["params"]) == 2 * len(factors["params"]) and (others["lr"], factors["lr"]) == (0.1, 1.6)


def test_what_does_not_fit_is_refused():
    model = Llama(LlamaConfig(**FIELDS))
    with pytest.raises(ValueError, match="adapter 'prefix' is not one of lora, rslora, dora, ia3"):
        apply_adapters(model, "prefix", RANK, ALPHA, TARGETS["all"])
    with pytest.raises(ValueError, match="rank 13"):
        check_adapters(model, "dora", 13, TARGETS["all"])
    check_adapters(model, "ia3", 0, ())


def train(folder, *flags: str) -> int:
    write_tiny_checkpoint(folder / "base.pt")
    data = [f"--{split}=data/reviews-{split}.txt" for split in ("train", "dev", "test")]
    outs = [f"--{split}_out={folder}/reviews-{split}-lora-output.txt" for split in ("dev", "test")]
    rest = ["--label-names=data/reviews-label-mapping.json", "--epochs=1", "--batch_size=50", "--lr=1e-2"]
    paths = [f"--pretrained-model-path={folder}/base.pt", f"--save_dir={folder}/runs", "--threads=1"]
    return run_llama.main(["--option", "lora", *data, *outs, *paths, *rest, *flags])


@pytest.mark.parametrize("flags", [["rslora", "--lora_plus_ratio=8"], ["dora"], ["ia3"]], ids=lambda flags: flags[0])
def test_a_run_keeps_its_form_and_its_costs(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(ROOT)
    assert train(tmp_path, "--adapter", *flags) == 0
    folder = next((tmp_path / "runs").iterdir())
    assert f"adapter={flags[0]}" in folder.name
    content, result = load_plain(folder / "best.pt"), json.loads((folder / "result.json").read_text("utf-8"))
    assert content["adapter"] == flags[0]
    assert result["trained_parameters"] == sum(tensor.numel() for tensor in content["model"].values())
    assert 0.0 < result["trained_share"] < 0.1 and result["peak_memory_mb"] > 50
    adapted, merged = (load_classifier(folder / name)[0].state_dict() for name in ("best.pt", "merged.pt"))
    assert all(torch.equal(tensor, merged[name]) for name, tensor in adapted.items())
    wrong = {"lora": "dora", "rslora": "dora", "dora": "ia3", "ia3": "lora"}[flags[0]]
    for form in (wrong, "prefix", ["dora"]):
        save_plain(content | {"adapter": form}, folder / "wrong.pt")
        capsys.readouterr()
        assert run_llama.main(["--option=predict", f"--checkpoint={folder}/wrong.pt", "--text", "A film."]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--adapter", "ia3", "--lora_rank", "2"], "--lora_rank is not for --adapter ia3"),
        (["--lora_plus_ratio", "4", "--weight_decay", "0.1"], "--lora_plus_ratio and --weight_decay exclude"),
        (["--lora_plus_ratio", "4", "--layer_decay", "0.5"], "--lora_plus_ratio and --layer_decay exclude"),
        (["--lora_plus_ratio", "0"], "must be more than"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, capsys, flags, reason):
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, *flags)
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_rank_that_does_not_fit_is_refused_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert train(tmp_path, "--adapter", "dora", "--lora_rank", "99") == 2
    assert "rank 99" in capsys.readouterr().err and not list((tmp_path / "runs").iterdir())
