r"""`--option export`: a model, classifier or adapter as a folder for transformers and peft, or as files for llama2.c.

    python run_llama.py --option export --out runs/stories_folder
    python run_llama.py --option export --pretrained-model-path runs/RUN/best.pt --out runs/folder --push USER/NAME \
        --dry_run
    python run_llama.py --option export --format llama2c --pretrained-model-path MODEL.pt --out runs/folder
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config import ATTENTION_VARIANTS, LlamaConfig
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.checkpoint import CLASSIFIER_FORMAT, Checkpoint, load_plain, read_checkpoint
from engine.io.checkpoint.identify import is_zip
from engine.io.files import atomic_path, check_writable, write_json, write_text
from engine.io.huggingface import write_folder
from engine.io.huggingface_config import check_exportable
from engine.io.llama2c_export import write_bin, write_quantized_bin
from engine.io.peft_adapter import BASE
from engine.io.tokenizer_export import described, write_tokenizer
from engine.io.vocabulary import bin_file, read_vocabulary
from llama import from_checkpoint
from tasks.cli import Work
from tasks.export.card import Facts, model_card, recorded
from tasks.export.flags import ExportSettings
from tasks.export.push import check_hub, listed, upload
from tasks.pretrained import choose_path, fitting_tokenizer, without_padding
from tasks.sentiment.checkpoint import ADAPTER_FORMAT, load_classifier, read_base
from tasks.sentiment.huggingface import check_classifier, per_token, write_classifier, write_peft
from tokenizer import AnyTokenizer
from utils import set_up

SAMPLE_TOKENS = 60
LLAMA2C_NEEDS = {"norm_type": "rmsnorm", "rope_theta": 10000.0, "layer_norm_eps": 1e-5}
Writer = Callable[[Path], None]


def prepare(settings: ExportSettings) -> Work:
    """Checks the settings and reads the model; returns what writes the folder. Raises ValueError or OSError."""
    out = _check_out(settings)
    set_up(settings.seed, False, settings.threads)
    api = check_hub(settings.push) if settings.push is not None and not settings.dry_run else None
    path = choose_path(settings.pretrained_model_path, named="pretrained_model_path" in settings.given)
    form = _format(path)
    if settings.base_model is not None and (form != ADAPTER_FORMAT or settings.format != "huggingface"):
        raise ValueError(f"--base_model is for an adapter in peft's format: leave it out for {path}")
    if settings.format == "llama2c":
        write = _llama2c(path, form, settings)
    elif form in (CLASSIFIER_FORMAT, ADAPTER_FORMAT):
        write = _classifier(path, form, settings)
    else:
        write = _language_model(path, settings)

    def work() -> None:
        out.mkdir(parents=True, exist_ok=True)
        write(out)
        print(f"wrote {out}:\n" + "\n".join(listed(out)))
        if settings.push is not None:
            print(f"{'would upload' if settings.dry_run else 'uploading'} these files to {settings.push}")
        if api is not None:
            upload(api, out, settings.push)

    return work


def _check_out(settings: ExportSettings) -> Path:
    """The folder to write, which is new or empty unless --overwrite is given."""
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file, not a folder")
    if out.exists() and any(out.iterdir()) and not settings.overwrite:
        raise ValueError(f"--out {out} is not empty: name another folder, or write into it with --overwrite")
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    check_writable(existing / "config.json")
    return out


def _format(path: Path) -> str | None:
    """The `format` entry of this project's files; None for any other checkpoint."""
    content = load_plain(path) if path.is_file() and is_zip(path) else None
    return content.get("format") if isinstance(content, dict) else None


def _read(path: Path, settings: ExportSettings) -> tuple[Checkpoint, AnyTokenizer]:
    checkpoint = read_checkpoint(path, **settings.unsaid())
    tokenizer = without_padding(path, checkpoint, settings.tokenizer)
    for note in checkpoint.notes:
        print(note)
    return checkpoint, tokenizer


def _language_model(path: Path, settings: ExportSettings) -> Writer:
    checkpoint, tokenizer = _read(path, settings)
    check_exportable(checkpoint.config)
    described(tokenizer)  # refuses a vocabulary of words before any work

    def write(out: Path) -> None:
        _write_causal(out, checkpoint, tokenizer)
        sample = _sample(checkpoint, tokenizer, settings.prompt)
        _write_card(out, path, settings, "causal", checkpoint.config, _size(checkpoint), sample=sample)

    return write


def _write_causal(out: Path, checkpoint: Checkpoint, tokenizer: AnyTokenizer) -> None:
    ids = {name: getattr(tokenizer, name.removesuffix("_token_id") + "_id") for name in
           ("bos_token_id", "eos_token_id", "pad_token_id")}  # fmt: skip
    write_folder(out, checkpoint.config, checkpoint.state_dict, ids)
    write_json(out / "generation_config.json", ids)
    write_tokenizer(out, tokenizer, checkpoint.config.max_seq_len)


def _classifier(path: Path, form: str, settings: ExportSettings) -> Writer:
    """A whole classifier, or an adapter beside its base model."""
    model, info = load_classifier(path)
    check_classifier(model)
    named = settings.tokenizer or info.tokenizer
    tokenizer = fitting_tokenizer(path, model.llama.config.vocab_size, info.vocabulary, named)
    described(tokenizer)
    size = sum(parameter.numel() for parameter in model.parameters())

    def write(out: Path) -> None:
        if form == ADAPTER_FORMAT:
            if settings.base_model is None:
                _write_base(path, out / BASE, tokenizer)
            write_peft(out, path, model, info, settings.base_model or BASE)
        else:
            write_classifier(out, model, info)
        write_tokenizer(out, tokenizer, model.llama.config.max_seq_len)
        what = "adapter" if form == ADAPTER_FORMAT else "classifier"
        labels = tuple(info.label_names)
        more = {"label_names": labels, "base": settings.base_model, "per_token": per_token(model)}
        _write_card(out, path, settings, what, model.llama.config, size, **more)

    return write


def _write_base(path: Path, folder: Path, tokenizer: AnyTokenizer) -> None:
    """Writes the base model of the adapter `path` as a folder for transformers."""
    content = load_plain(path)
    checkpoint = read_base(path.parent / content["base"], LlamaConfig.from_dict(content["config"]))
    folder.mkdir(exist_ok=True)
    _write_causal(folder, checkpoint, tokenizer)


def _llama2c(path: Path, form: str | None, settings: ExportSettings) -> Writer:
    """Weights of versions 0 and 2, and `tokenizer.bin`. Raises ValueError, naming the field, for what `run` lacks."""
    if form in (CLASSIFIER_FORMAT, ADAPTER_FORMAT):
        raise ValueError(f"{path} is a classifier; llama2.c runs language models only")
    checkpoint, tokenizer = _read(path, settings)
    config = checkpoint.config
    check_llama2c(config)
    vocabulary = bin_file(read_vocabulary(tokenizer))

    def write(out: Path) -> None:
        write_bin(out / "model.bin", config, checkpoint.state_dict)
        write_quantized_bin(out / "model_q80.bin", config, checkpoint.state_dict)
        with atomic_path(out / "tokenizer.bin") as temporary:
            temporary.write_bytes(vocabulary)

    return write


def check_llama2c(config: LlamaConfig) -> None:
    """Raises ValueError, naming the field, for a configuration that llama2.c does not have."""
    usual = LlamaConfig()
    names = ("position_embedding_type", "ffn_type", "norm_position", "causal", *ATTENTION_VARIANTS)
    needed = {name: getattr(usual, name) for name in names}
    for name, value in (needed | LLAMA2C_NEEDS).items():
        if getattr(config, name) != value:
            raise ValueError(f"llama2.c has no {name} {getattr(config, name)!r}, only {value!r}")
    if config.head_dim * config.n_heads != config.dim:
        raise ValueError(f"llama2.c has no head_size {config.head_dim}, only dim / n_heads")


def _size(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.state_dict.values())


@torch.inference_mode()
def _sample(checkpoint: Checkpoint, tokenizer: AnyTokenizer, prompt: str) -> str:
    """A greedy continuation."""
    model, ids = from_checkpoint(checkpoint), tokenizer.encode(prompt, bos=True, eos=False)
    new = min(SAMPLE_TOKENS, checkpoint.config.max_seq_len - len(ids))
    tokens = [int(step[0]) for step in stream(model, [ids], new, Sampler(0.0), eos_id=tokenizer.eos_id)]
    return tokenizer.decode([*ids, *(token for token in tokens if token != tokenizer.eos_id)])


def _write_card(
    out: Path, path: Path, settings: ExportSettings, what: str, config: LlamaConfig, parameters: int, **more: Any
) -> None:
    name = settings.push or out.resolve().name
    facts = Facts(name, what, config, parameters, **recorded(path, settings.data, settings.licence), **more)
    write_text(out / "README.md", model_card(facts))
