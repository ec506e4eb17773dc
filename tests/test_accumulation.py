"""Accumulated language-model batches equal one large batch, even when the last one is ragged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from config import LlamaConfig
from engine.io.word_tokenizer import word_vocabulary
from engine.train.losses import cross_entropy
from engine.train.trainer import update
from llama import Llama
from tasks.stories.data import StoryBatches, encode_documents
from tests.tiny import stories
from tokenizer import load_tokenizer

SHAPE = {"dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "max_seq_len": 16}


class Recorder:
    """Stands for an optimizer: keeps the gradients it is given."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def step(self):
        self.seen.append([p.grad.clone() for p in self.model.parameters()])

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize("pieces", [2, 3, 4, 8])
@pytest.mark.parametrize("recompute", [0, 1])
def test_micro_batches_of_any_size_give_the_large_batch(tmp_path, pieces, recompute):
    (tmp_path / "words.json").write_text(word_vocabulary(stories(), 60), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "words.json")
    data = encode_documents(stories(23), tokenizer)  # 23 stories: no number of pieces divides them evenly
    batches = StoryBatches(data, np.arange(23), 16, 10_000, seed=0)
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=tokenizer.n_words, position_embedding_type="sinusoidal", **SHAPE))
    model.recompute, recorder = recompute, Recorder(model)

    def loss(model, rows):
        tokens, targets = batches.tensors(rows)
        return cross_entropy(model.hidden_states(tokens).flatten(0, 1), model.output.weight, targets.flatten())

    whole = np.arange(len(batches.rows))
    cuts = np.sort(np.random.default_rng(pieces).choice(whole[1:], pieces - 1, replace=False))
    for group in ([whole], np.split(whole, cuts)):
        mean, targets = update(model, recorder, group, batches.count, loss)
        recorder.seen[-1].append(torch.tensor([mean, float(targets)]))
    for large, accumulated in zip(*recorder.seen, strict=True):
        torch.testing.assert_close(accumulated, large, rtol=0, atol=1e-6)
