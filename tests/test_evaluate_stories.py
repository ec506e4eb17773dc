"""Continuations of stories measured as spelled out; strides give every token more context; attention as in NumPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import run_llama
from config import LlamaConfig
from engine.io.checkpoint import save_checkpoint
from engine.io.word_tokenizer import word_vocabulary
from llama import Llama
from tasks.attention_maps import attention_weights
from tasks.stories import continuations as evaluate_stories
from tasks.stories import evaluate
from tests.golden import numpy_llama
from tests.oracles import numpy_weights, random_llama
from tests.tiny import stories, write_corpus
from tokenizer import load_tokenizer

SHAPE = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 12}


@pytest.fixture
def words(tmp_path):
    (tmp_path / "words.json").write_text(word_vocabulary(stories(), 25), encoding="utf-8")
    return load_tokenizer(tmp_path / "words.json")


def model_of(words, **fields) -> Llama:
    return random_llama(vocab_size=words.n_words, **(SHAPE | fields)).eval()


@pytest.mark.parametrize("stride", [None, 12, 5, 1])
def test_strides_score_every_token_once_from_the_right_context(words, stride):
    model, documents = model_of(words), [" ".join(stories(9)[2:4]), "Ann.", stories(9)[5], " ".join(stories(9)[6:])]
    total, count, step = 0.0, 0, stride or 12
    for document in documents:
        ids = words.encode(document, bos=True, eos=True)
        for place in range(1, len(ids)):
            start = max(0, math.ceil((place - 12) / step)) * step
            logits = model(torch.tensor([ids[start:place]]))[0][0, -1]
            total, count = total - logits.double().log_softmax(-1)[ids[place]].item(), count + 1
    measured = evaluate.measure(model, words, documents, stride)
    assert measured["tokens"] == count
    assert measured["loss_per_token"] == pytest.approx(total / count, abs=1e-4)
    assert measured["unknown_share"] > 0 and "bits_per_byte" not in measured


def test_continuations_by_hand(words):
    model, documents = model_of(words), stories(9)
    chosen = evaluate_stories.choose(["Ann had.", *documents], words, 4, 3)
    ids = words.encode(documents[1], bos=True, eos=False)  # the first is just its prompt, and left out
    assert chosen[0].prompt == ids[:6] and chosen[0].continuation == ids[6:9]
    total = count = 0
    for story in chosen:
        for place, token in enumerate(story.continuation):
            logits = model(torch.tensor([story.prompt + story.continuation[:place]]))[0][0, -1]
            total, count = total - logits.double().log_softmax(-1)[token].item(), count + 1
    expected = math.exp(total / count)
    assert evaluate_stories.continuation_perplexity(model, chosen) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="7 stories have more than 5 tokens; --stories asks for 12"):
        evaluate_stories.choose(documents, words, 12, 3)


def test_an_unknown_word_of_the_truth_is_itself(words):
    assert evaluate_stories.choose(["Ann had a ball. A zebra, too."], words, 1, 9)[0].text == "a zebra, too."


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "alibi", "none"])
def test_attention_maps_equal_numpy(words, positions):
    model, ids = model_of(words, position_embedding_type=positions, n_layers=1), [1, 7, 5, 9, 4]
    maps = attention_weights(model, torch.tensor(ids))
    assert maps.shape == (1, 4, 5, 5)
    assert maps.sum(-1).flatten().tolist() == pytest.approx([1.0] * 20, abs=1e-5)
    assert maps.triu(1).abs().max() == 0
    seen, plain = [], numpy_llama.softmax
    numpy_llama.softmax = lambda scores: seen.append(plain(scores)) or seen[-1]
    try:
        numpy_llama.hidden_states(np.array(ids), numpy_weights(model), model.config.to_dict())
    finally:
        numpy_llama.softmax = plain
    rows = [np.pad(row, (0, 5 - len(row))) for row in seen]
    np.testing.assert_allclose(maps[0].numpy(), np.array(rows).reshape(4, 5, 5), atol=1e-5)
    before = model(torch.tensor([ids]))[1]
    attention_weights(model, torch.tensor(ids))
    assert torch.equal(model(torch.tensor([ids]))[1], before)


def command(words, tmp_path, *more: str) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus.txt", 60)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=words.n_words, position_embedding_type="sinusoidal", **SHAPE)
    save_checkpoint(tmp_path / "m.pt", config, Llama(config).state_dict(), tmp_path / "words.json")
    flags = ["--option", "evaluate", "--corpus", str(corpus), "--pretrained-model-path", str(tmp_path / "m.pt")]
    return [*flags, "--stories", "6", *more]


def test_the_command_measures_and_draws(words, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("Ann had a ball.\n", encoding="utf-8")
    more = ["--save_dir", str(tmp_path / "out"), "--prompt_file", str(tmp_path / "lines.txt")]
    assert run_llama.main(command(words, tmp_path, *more)) == 0
    measured = json.loads((tmp_path / "out" / "evaluate.json").read_text())["continuations"]
    assert set(measured["decoding"]) == {"greedy", "sampling (top-p 0.95)", "beam 5", "beam 10"}
    assert measured["new_tokens"] == 6 and measured["cache"]["same_output"]
    rows = json.loads((tmp_path / "out" / "continuations.json").read_text())
    assert len(rows) == 6 and set(rows[0]) == {"prompt", "truth", *measured["decoding"]}
    sacrebleu = pytest.importorskip("sacrebleu")
    expected = sacrebleu.corpus_bleu([row["beam 5"] for row in rows], [[row["truth"] for row in rows]]).score
    assert measured["decoding"]["beam 5"]["bleu"] == pytest.approx(expected, abs=1e-3)
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert drawn == ["attention-1.png"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "--stories needs --save_dir"),
        (["--save_dir", "OUT", "--stories", "61"], "asks for 61"),
        (["--save_dir", "OUT", "--stride", "13"], "more than the model's 12 positions"),
    ],
)
def test_bad_input_is_refused(words, tmp_path, capsys, more, reason):
    more = [str(tmp_path / "out") if word == "OUT" else word for word in more]
    assert run_llama.main(command(words, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
