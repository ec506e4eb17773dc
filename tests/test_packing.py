"""Documents side by side in a row: every token is there once, and each document is what it is alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from engine.io.checkpoint import load_plain
from engine.model.masks import document_positions, padded_positions
from engine.train import run_log
from engine.train.losses import IGNORED, token_nll
from tasks import cli
from tasks.stories.data import StoryBatches
from tasks.stories.packing import PackedBatches, best_fit
from tests.oracles import random_llama
from tests.test_story_data import token_file
from tests.tiny import TOKENIZER, write_corpus

SHAPE = {"vocab_size": 300, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 48}
KINDS = {
    "rotary": {},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "ffn_type": "gelu"},
    "alibi": {"position_embedding_type": "alibi", "ffn_type": "relu", "norm_position": "post"},
    "window": {"sliding_window": 5, "gated_heads": True},
    "differential": {"attention_type": "differential", "position_embedding_type": "alibi", "sliding_window": 9},
    "none": {"position_embedding_type": "none", "norm_type": "rmsnorm"},
}


@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=40),
    max_seq_len=st.integers(3, 40),
    tokens_per_batch=st.integers(8, 300),
    epoch=st.integers(0, 9),
    crossing=st.booleans(),
)
def test_every_next_token_is_a_target_exactly_once(lengths, max_seq_len, tokens_per_batch, epoch, crossing):
    data = token_file(lengths)
    batches = PackedBatches(data, np.arange(len(data)), max_seq_len, tokens_per_batch, 3, crossing)
    pairs = []
    for batch in batches.epoch(epoch):
        (tokens, targets), documents = batches.tensors(batch), batches.documents(batch)
        kept = targets != IGNORED
        assert int(kept.sum()) == batches.count(batch)
        assert tokens.shape[1] <= max_seq_len and (len(tokens) == 1 or tokens.numel() <= tokens_per_batch)
        pairs += list(zip(tokens[kept].tolist(), targets[kept].tolist(), strict=True))
        assert (documents is None) == crossing
        if documents is not None:
            assert documents.shape == tokens.shape and torch.equal(documents > 0, kept)
            check_apart(tokens, documents, data.offsets)
    ends = set(data.offsets[1:].tolist())  # the ids count on from 1: an id that ends a document is no input
    assert sorted(pairs) == [(token, token + 1) for token in range(1, sum(lengths)) if token not in ends]


def check_apart(tokens, documents, offsets) -> None:
    """What has one number in a row is a run of one document."""
    for row, numbers in zip(tokens, documents, strict=True):
        for number in range(1, int(numbers.max()) + 1):
            ids = row[numbers == number].numpy()
            assert np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
            assert len(set(np.searchsorted(offsets, ids - 1, side="right").tolist())) == 1


@given(lengths=st.lists(st.integers(1, 30), max_size=60), room=st.integers(30, 70))
def test_best_fit_overfills_no_row_and_leaves_no_two_that_fit_together(lengths, room):
    rows = best_fit(np.asarray(lengths, dtype=np.int64), room, np.random.default_rng(0))
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[piece] for piece in row) for row in rows)
    assert all(fill <= room for fill in filled) and (len(filled) < 2 or filled[0] + filled[1] > room)


def test_a_piece_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a piece of 9 tokens is longer than a row of 8"):
        best_fit(np.array([3, 9]), 8, np.random.default_rng(0))


def packed_and_apart(**options) -> tuple[PackedBatches, StoryBatches]:
    data = token_file([7, 30, 12, 5, 49, 21, 3, 64, 2, 18])
    documents = np.arange(len(data))
    return PackedBatches(data, documents, 48, 9999, 0, **options), StoryBatches(data, documents, 48, 9999, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [0, 1])
def test_losses_and_gradients_are_those_of_rows_apart(kind, recompute):
    model = random_llama(scale=3.0, **SHAPE, **KINDS[kind]).double()
    model.recompute, found = recompute, []
    for batches in packed_and_apart():
        (batch,) = batches.epoch(0)
        tokens, targets = batches.tensors(batch)
        hidden = model.hidden_states(tokens, document_ids=batches.documents(batch)).flatten(0, 1)
        loss = F.cross_entropy(model.output(hidden), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        found.append({"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}})
        model.zero_grad()
    assert len(packed_and_apart()[0].packed) < len(packed_and_apart()[1].rows)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-6, atol=1e-6, msg=name)


def test_crossing_lets_a_document_see_those_before_it_and_no_other():
    model = random_llama(**SHAPE)
    packed, apart = packed_and_apart(crossing=True)[0], packed_and_apart()[0]
    nll = {}
    for batches in (packed, apart):
        (batch,) = batches.in_order()
        tokens, targets = batches.tensors(batch)
        with torch.no_grad():
            hidden = model.hidden_states(tokens, document_ids=batches.documents(batch))
            nll[batches] = token_nll(hidden.flatten(0, 1), model.output.weight, targets.flatten()).view(targets.shape)
    first = apart.documents(apart.in_order()[0]) == 1
    assert torch.allclose(nll[packed][first], nll[apart][first], atol=1e-4)
    assert not torch.allclose(nll[packed][~first], nll[apart][~first], atol=1e-2)


def test_positions_start_anew_with_each_document():
    numbers = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 3, 3, 3, 3, 3, 3]])
    assert document_positions(numbers).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]]
    assert padded_positions(numbers > 0)[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("packing", ["separate", "crossing"])
def test_packed_training_learns_and_goes_on_as_it_began(tmp_path, packing, capsys):
    corpus = write_corpus(tmp_path / "corpus.txt", 80)

    def train(kind: str, *more: str) -> int:
        shape = ["--dim=16", "--n_layers=1", "--n_heads=2", "--n_kv_heads=1", "--max_seq_len=64", "--threads=1"]
        paths = ["--corpus", str(corpus), "--tokenizer", str(TOKENIZER), "--save_dir", str(tmp_path / "run")]
        flags = ["--option", "pretrain", *shape, *paths, "--epochs=2", "--batch_tokens=256", "--packing", kind, *more]
        assert cli.parse(run_llama.PROGRAM, flags)[1].packing == kind
        return run_llama.main(flags)

    assert train(packing) == 0
    records = [record for record in run_log.read(tmp_path / "run" / "log.jsonl") if "held_out_loss" in record]
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    assert load_plain(tmp_path / "run" / "last.pt")["identity"]["packing"] == packing
    assert train("crossing" if packing == "separate" else "separate", "--resume") == 2
    assert f"was started with packing {packing}" in capsys.readouterr().err
