"""Language-model evaluation: bits per byte, and loss and perplexity per token.

    python run_llama.py --option evaluate --corpus stories.txt
    python run_llama.py --option evaluate --corpus stories.txt --stories 50 --save_dir measured
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from engine.io.files import check_writable, write_json
from engine.io.word_tokenizer import WordTokenizer
from engine.train.losses import perplexity, token_nll
from llama import Llama
from tasks.pretrained import load_model
from tasks.stories import continuations
from tasks.stories.data import StoryBatches, encode_documents, read_documents
from tasks.stories.flags import EvaluateSettings
from tokenizer import AnyTokenizer
from utils import set_up

BATCH_TOKENS = 4096


def prepare(settings: EvaluateSettings) -> Callable[[], None]:
    """Checks the corpus and loads the model; returns the work. Raises ValueError or OSError."""
    documents = [document for path in settings.corpus for document in read_documents(path)]
    if settings.stories:
        continuations.check(settings)
    target = None
    if settings.save_dir is not None:
        Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
        target = check_writable(Path(settings.save_dir) / "evaluate.json")
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    model, tokenizer, path = load_model(settings, device)
    print(f"load model from {path}")
    if settings.stride is not None and settings.stride > model.config.max_seq_len:
        raise ValueError(f"--stride {settings.stride} is more than the model's {model.config.max_seq_len} positions")
    if settings.stories:
        continuations.choose(documents, tokenizer, settings.stories, 1)

    def work() -> None:
        measured = measure(model, tokenizer, documents, settings.stride)
        print("\n".join(f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in measured.items()))
        if settings.stories:
            measured["continuations"] = continuations.report(model, tokenizer, documents, settings)
        if target is not None:
            write_json(target, measured)
            print(f"wrote {target}")

    return work


@torch.inference_mode()
def measure(
    model: Llama, tokenizer: AnyTokenizer, documents: list[str], stride: int | None = None
) -> dict[str, float]:
    """Scores every document from BOS; a document longer than the context is cut into windows.

    With a `stride`, windows overlap; each token is scored once, in the first window that contains it, from at least
    max_seq_len − stride tokens. `loss_per_token` includes the closing EOS, `bits_per_byte` does not. A word vocabulary
    cannot reproduce its text, so it reports the share of unknown words instead of bits per byte.
    """
    data = encode_documents(documents, tokenizer)
    batches = StoryBatches(data, np.arange(len(data)), model.config.max_seq_len, BATCH_TOKENS, seed=0, stride=stride)
    nll = eos_nll = 0.0
    for batch in tqdm(batches.in_order(), desc="measuring", unit="batch"):
        tokens, targets = (tensor.to(model.device) for tensor in batches.tensors(batch))
        costs = token_nll(model.hidden_states(tokens).flatten(0, 1), model.output.weight, targets.flatten()).double()
        nll += costs.sum().item()
        eos_nll += costs[targets.flatten() == tokenizer.eos_id].sum().item()
    count = len(data.tokens) - len(data)
    size = sum(len(document.encode("utf-8")) for document in documents)
    loss = nll / count
    if math.isnan(loss):
        raise ArithmeticError("the loss on this text is not a number: the model's activations overflow")
    measured = {"documents": len(documents), "bytes": size, "tokens": count, "loss_per_token": round(loss, 4)}
    measured["perplexity_per_token"] = round(perplexity(loss), 3)
    if isinstance(tokenizer, WordTokenizer):
        unknown = float(np.mean(data.tokens == tokenizer.unk_id))
        return measured | {"vocabulary": tokenizer.n_words, "unknown_share": round(unknown, 5)}
    nats = nll if math.isinf(nll) else nll - eos_nll
    return measured | {"bits_per_byte": round(nats / math.log(2) / size, 4)}


def _shown(value: float) -> str:
    return "infinity" if math.isinf(value) else f"{value:,}"
