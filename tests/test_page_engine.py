"""The page's engine in headless Chromium: held against `Llama`, SentencePiece, and `engine.decode.sampling`.

    apt-get install chromium && python -m pytest tests/test_page_engine.py
"""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.checkpoint import read_checkpoint
from llama import Llama, load_pretrained
from tasks.addition.report import digits_without
from tasks.page.pack import dequantized
from tasks.page.task import BEST_ADDER
from tests import page_in_chromium
from tests.chromium import Chromium
from tests.page_in_chromium import STORIES, needs_chromium, write_page
from tests.tiny import CONFIG, ROOT, write_tiny_checkpoint
from tokenizer import load_tokenizer

pytestmark = needs_chromium
folder, opened = page_in_chromium.folder, page_in_chromium.opened  # fixtures
PROMPTS = (
    "Once upon a time|The little dog|Lily and Tom went to the park|A big red ball|One day|It was raining|Mom said|"
    "The cat sat on|There was a boy named Tim|In a small house|The sun was|She wanted|A bird flew|They found a box|"
    "He was very sad because|\"Look!\" said|Once there was a tree|The old man|At night|Ben likes"
).split("|")
ODD = [
    "", " ", "  two  spaces ", "🦙", "a🦙b 👩‍👩‍👧 ñ é 漢字", "\n\n line", "\ttab", "<s> </s> <0x0A> <unk>", "▁▁ a▁b",
    "e\u0301", "\ufeffmark", "1234567890", "don't—“stop”", "x" * 300, "\x00\x7f", "Ω≈ç√∫",
]  # fmt: skip
QUIET = "{pause: () => undefined, show: () => undefined}"


@pytest.fixture(scope="module")
def reference() -> Llama:
    return dequantized_model(STORIES)


def dequantized_model(path) -> Llama:
    checkpoint = read_checkpoint(path)
    model = Llama(checkpoint.config)
    model.load_state_dict(dequantized(checkpoint.config, checkpoint.state_dict))
    return model.eval()


def greedy_in_page(browser, prompt: str, tokens: int) -> list[int]:
    settings = f"{{temperature: 0, topP: 1, topK: 0, minP: 0, seed: 1, length: {tokens}}}"
    return browser.evaluate(
        f"(async () => {{ const text = new Session(page.session.model, page.session.tokenizer);"
        f"text.settings = {settings}; text.prompt = {json.dumps(prompt)};"
        f"await text.generate({QUIET}); return text.ids; }})()"
    )


@pytest.mark.parametrize(
    ("prompts", "tokens"), [(PROMPTS[:4], 30), pytest.param(PROMPTS, 60, marks=pytest.mark.slow)], ids=["short", "all"]
)
def test_greedy_texts_are_those_of_the_plain_model(opened, reference, prompts, tokens):
    tokenizer = load_tokenizer(ROOT / "models" / "stories.model")
    for prompt in prompts:
        ids = tokenizer.encode(prompt, bos=True, eos=False)
        new = [int(step[0]) for step in stream(reference, [ids], tokens, Sampler(0.0), eos_id=tokenizer.eos_id)]
        wanted = ids + [token for token in new if token != tokenizer.eos_id]
        assert greedy_in_page(opened, prompt, tokens) == wanted, prompt


def test_logits_are_within_a_thousandth(opened, reference):
    ids = greedy_in_page(opened, PROMPTS[2], 60)
    positions = [0, 1, 9, 30, len(ids) - 1]
    shown = opened.evaluate(f"{positions}.map((position) => Array.from(page.session.model.logits(position)))")
    with torch.no_grad():
        logits = reference(torch.tensor([ids]), targets=torch.tensor([ids]))[0][0, positions]
    assert (torch.tensor(shown, dtype=torch.float64) - logits).abs().max() < 1e-3


@pytest.mark.parametrize(
    "change", [{"norm_type": "rmsnorm"}, {"tie_embeddings": False}, {"head_size": 6, "rope_theta": 50.0}]
)
def test_other_shapes_of_llama(tmp_path, change):
    config = dataclasses.replace(CONFIG, **change)
    write_tiny_checkpoint(tmp_path / "tiny.pt", config)
    out = write_page(tmp_path / "tiny.pt", tmp_path / "tiny.html")
    with Chromium() as other:
        other.open(out, "length=20")
        other.wait("byId('stop').disabled")
        ids = other.evaluate("page.session.ids")
        shown = other.evaluate("Array.from(page.session.model.logits())")
        title = other.evaluate("byId('norm-title').innerText")
        assert title.endswith("RMSNorm" if "norm_type" in change else "LayerNorm")
        assert other.errors == []
    model = dequantized_model(tmp_path / "tiny.pt")
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0, 0]
    assert (torch.tensor(shown, dtype=torch.float64) - logits).abs().max() < 1e-3


def test_texts_are_encoded_as_sentencepiece_does(opened):
    own = load_tokenizer(ROOT / "models" / "stories.model").sp_model
    alphabet = st.text(st.sampled_from("ab é▁\n\t 🦙漢'the ing.") | st.characters(codec="utf-8"), max_size=40)
    texts, rows = list(ODD), []

    @given(alphabet)
    def collect(text):
        texts.append(text)

    collect()
    encoded = opened.evaluate(f"{json.dumps(texts)}.map((text) => page.session.tokenizer.encode(text))")
    for text, ids in zip(texts, encoded, strict=True):
        assert ids == own.encode(text), repr(text)
    draw = random.Random(0)
    rows += [own.encode(text) for text in texts]
    for _ in range(300):  # bytes and pieces as they come, also those that are no text
        rows.append([draw.choice([draw.randrange(3, 259), draw.randrange(1, own.vocab_size())]) for _ in range(12)])
    decoded = opened.evaluate(f"{json.dumps(rows)}.map((ids) => page.session.tokenizer.decode(ids))")
    for ids, text in zip(rows, decoded, strict=True):
        assert text == own.decode(ids), ids


@pytest.mark.parametrize(
    "rule", [(0.8, 0.9, None, None), (1.3, None, 7, None), (1.0, 0.95, 50, 0.05), (0.5, 1.0, None, 0.2)]
)
def test_the_same_tokens_are_cut_as_in_python(opened, rule):
    temperature, top_p, top_k, min_p = rule
    logits = 3 * torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    wanted = Sampler(temperature, top_p, top_k, min_p).logits(logits).softmax(dim=-1)
    settings = json.dumps({"temperature": temperature, "topP": top_p or 1, "topK": top_k or 0, "minP": min_p or 0})
    for row, shares in zip(logits.tolist(), wanted, strict=True):
        call = f"distribution(Float64Array.from({row}), {settings})"
        tokens = opened.evaluate(f"{call}.map((each) => [each.id, each.share])")
        shown = torch.zeros(300)
        for id_, share in tokens:
            shown[id_] = share
        torch.testing.assert_close(shown, shares, atol=1e-5, rtol=1e-4)


def test_draws_follow_the_distribution(opened):
    counts = opened.evaluate(
        "(() => { const tokens = [{id: 0, share: 0.6}, {id: 1, share: 0.3}, {id: 2, share: 0.1}], counts = [0, 0, 0];"
        "for (let i = 0; i < 20000; i++) counts[draw(tokens, uniform(3, i))] += 1; return counts; })()"
    )
    assert [round(count / 20000, 1) for count in counts] == [0.6, 0.3, 0.1]


def test_it_is_fast_enough(opened):
    """Tokens per second of the process's time, which another load of the machine does not change."""
    write = "for (let i = 0; i < 100; i++) model.feed(argmax(model.logits()));"
    started = opened.renderer_seconds()
    opened.evaluate(f"(() => {{ const {{ model }} = page.session; model.truncate(5); {write} }})()")
    assert 100 / (opened.renderer_seconds() - started) >= 30


def test_the_adder_is_right_on_a_thousand_problems(opened):
    draw = random.Random(1)
    problems = [(draw.randint(1000, 9999), draw.randint(1000, 9999)) for _ in range(1000)]
    answers = opened.evaluate(f"{json.dumps(problems)}.map(([a, b]) => page.adder.adder.answer(a, b))")
    assert answers == [str(a + b) for a, b in problems]


def test_a_head_that_is_off_gives_its_average_as_the_report_of_adders_does(opened):
    model, problems = load_pretrained(str(BEST_ADDER)), opened.evaluate("page.adder.problems")
    a, b = torch.tensor(problems).T
    assert len(problems) == 300 and (a + b >= 10000).all()
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        opened.evaluate(f"page.adder.toggle('{layer}.{head}', false)")
        shown = opened.evaluate("page.adder.adder.carryReport(page.adder.problems)")
        opened.evaluate(f"page.adder.toggle('{layer}.{head}', true)")
        assert list(shown.values()) == pytest.approx(digits_without(model, layer, head, a, b))
        if (layer, head) == (1, 0):  # the carry, as docs/addition.md has it
            assert shown["with"] + shown["oneTooSmall"] == shown["without"] + shown["oneTooLarge"] == 1.0
            assert min(shown.values()) > 0.3
