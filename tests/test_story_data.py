"""Documents are read as they stand, and no token is lost, doubled or seen across a boundary on the way to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.train.losses import IGNORED, token_nll
from tasks.stories.data import StoryBatches, TokenFile, encode_documents, read_documents, split_documents, tokenise
from tests.oracles import random_llama
from tests.tiny import TOKENIZER, stories, write_corpus
from tokenizer import load_tokenizer


def token_file(lengths: list[int]) -> TokenFile:
    """Documents whose ids count on without a repeat, so that every token can be told from every other."""
    return TokenFile(np.arange(1, sum(lengths) + 1, dtype=np.uint32), np.cumsum([0, *lengths], dtype=np.int64))


def data_of(batch: np.ndarray, batches: StoryBatches) -> list[set[int]]:
    """For each row of a batch all the tokens of the one document that it is of."""
    data = batches.data
    documents = np.searchsorted(data.offsets, batches.rows[batch, 0], side="right") - 1
    return [set(data.tokens[data.offsets[number] : data.offsets[number + 1]].tolist()) for number in documents]


@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=40),
    max_seq_len=st.integers(3, 40),
    tokens_per_batch=st.integers(8, 300),
    epoch=st.integers(0, 9),
)
def test_every_next_token_is_a_target_exactly_once(lengths, max_seq_len, tokens_per_batch, epoch):
    data = token_file(lengths)
    batches = StoryBatches(data, np.arange(len(data)), max_seq_len, tokens_per_batch, seed=3)
    pairs = []
    for batch in batches.epoch(epoch):
        tokens, targets = batches.tensors(batch)
        kept = targets != IGNORED
        assert int(kept.sum()) == batches.count(batch)
        assert tokens.shape[0] == 1 or tokens.numel() <= tokens_per_batch
        for row, limits in zip(tokens, data_of(batch, batches), strict=True):
            assert set(row[row > 0].tolist()) <= limits  # nothing of another document is in reach
        pairs += list(zip(tokens[kept].tolist(), targets[kept].tolist(), strict=True))
    expected = [
        (int(token), int(token) + 1)
        for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True)
        for token in data.tokens[start : end - 1]
    ]
    assert sorted(pairs) == expected


def test_a_document_costs_in_a_batch_what_it_costs_alone():
    """No padding and no neighbour changes a document's loss."""
    model = random_llama(vocab_size=4096, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=128)
    data = encode_documents(stories(12), load_tokenizer(TOKENIZER))
    batches = StoryBatches(data, np.arange(12), 128, 100_000, seed=0)
    (batch,) = batches.epoch(0)
    tokens, targets = batches.tensors(batch)
    with torch.no_grad():
        hidden = model.hidden_states(tokens)
        together = token_nll(hidden.flatten(0, 1), model.output.weight, targets.flatten()).view(targets.shape).sum(1)
        for place, number in enumerate(batch):
            ids = torch.from_numpy(data.tokens[data.offsets[number] : data.offsets[number + 1]].astype(np.int64))
            logits = model(ids[None, :-1], targets=ids[None, 1:])[0][0]
            alone = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            assert together[place].item() / len(ids) == pytest.approx(alone.item() / len(ids), abs=1e-5)


def test_an_epoch_depends_on_seed_and_number_alone():
    data = token_file([5, 9, 13, 40, 7, 22] * 20)
    orders = [
        [row for batch in StoryBatches(data, np.arange(len(data)), 32, 64, seed).epoch(epoch) for row in batch]
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]
    assert sorted(orders[0]) == sorted(orders[2])


def test_held_out_documents_are_not_trained_on():
    training, held_out = split_documents(500, 0.1, seed=4)
    assert len(held_out) == 50
    assert sorted([*training, *held_out]) == list(range(500))


def test_text_and_json_lines_hold_the_same_documents(tmp_path):
    import json

    text = write_corpus(tmp_path / "corpus.txt")
    lines = tmp_path / "corpus.jsonl"
    lines.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories()), encoding="utf-8")
    assert read_documents(text) == read_documents(lines) == stories()


def test_windows_line_ends_do_not_matter(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\r\n<|endoftext|>\r\nTwo\r\nlines.\r\n")
    assert read_documents(tmp_path / "a.txt") == ["One.", "Two\nlines."]


def test_tokens_are_kept_and_decode_to_the_documents(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER)
    corpus = write_corpus(tmp_path / "corpus.txt")
    data = tokenise([str(corpus)], tokenizer, tmp_path / "cache")
    again = tokenise([str(corpus)], tokenizer, tmp_path / "cache")
    assert data.digest == again.digest and len(list((tmp_path / "cache").iterdir())) == 2
    assert isinstance(data.tokens, np.memmap)
    in_memory = encode_documents(stories(), tokenizer)
    assert np.array_equal(data.tokens, in_memory.tokens) and np.array_equal(data.offsets, in_memory.offsets)
    for number, story in enumerate(stories()):
        ids = data.tokens[data.offsets[number] : data.offsets[number + 1]].tolist()
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.decode(ids[1:-1]) == story


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n<|endoftext|>\n\n", "holds no text"),
        ("a.txt", b"good \xff bad", "byte 5 is 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "line 2"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2"),
    ],
)
def test_bad_corpora_are_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_documents(tmp_path / name)
