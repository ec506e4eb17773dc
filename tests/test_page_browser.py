"""The page in headless Chromium: its views, keyboard, state, speed and memory, and what must not happen.

    apt-get install chromium && npm install --no-save axe-core && python -m pytest tests/test_page_browser.py
"""

from __future__ import annotations

import json

import pytest

from engine.io.checkpoint import read_checkpoint
from tasks.page.task import BEST_ADDER
from tests import page_in_chromium
from tests.chromium import Chromium
from tests.page_in_chromium import needs_chromium, write_page
from tests.tiny import ROOT, write_tiny_checkpoint

pytestmark = needs_chromium
folder, opened = page_in_chromium.folder, page_in_chromium.opened  # fixtures
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


def test_first_token_and_memory(folder):
    """Processor time of the page's process from the click to the views of a text of one token; its private memory."""
    write_one = "page.session.model.truncate(0); page.text.start().then(() => page.session.ids.length)"
    with Chromium() as browser:
        browser.resize(1280)
        browser.open(folder / "page.html", "length=0&prompt=Once+upon+a+time")
        browser.wait("byId('stop').disabled")
        before = browser.evaluate("page.session.settings.length = 1; page.session.ids.length")
        seconds = []
        for _ in range(3):
            started = browser.renderer_seconds()
            assert browser.evaluate(write_one) == before + 1
            seconds.append(browser.renderer_seconds() - started)
        assert 0 < min(seconds) < 0.5
        browser.evaluate("page.session.settings.length = 60; page.text.start().then(() => 0)")
        assert browser.evaluate("page.session.ids.length") > 40
        assert 10e6 < browser.renderer_bytes() < 200e6


def test_no_request_leaves_the_page_and_nothing_fails(opened):
    assert opened.requests == []
    assert opened.errors == []


@pytest.mark.parametrize("prompt", ["", "🦙🦙", "a " * 2000])
def test_no_prompt_makes_it_hang(opened, prompt):
    opened.evaluate(f"page.session.settings.length = 20; byId('prompt').value = {json.dumps(prompt)}; page.text.edit()")
    opened.evaluate("page.text.start()")
    status, count = opened.evaluate("[byId('status').textContent, page.session.ids.length]")
    assert ("only its last" in status) == (len(prompt) > 1000)
    assert 1 <= count <= 1024
    assert opened.evaluate("byId('stop').disabled")


def test_two_thousand_tokens_end_with_the_context(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    out = write_page(tmp_path / "tiny.pt", tmp_path / "tiny.html")
    with Chromium() as other:
        other.open(out, "length=2000&temperature=2&topP=1")
        other.wait("byId('stop').disabled")
        assert "the context of 128 tokens is full" in other.evaluate("byId('status').textContent")
        assert other.evaluate("page.session.ids.length") == 128
        assert other.errors == []


def restart(browser, **settings) -> None:
    fields = {"temperature": 0, "topP": 0.95, "topK": 0, "minP": 0, "seed": 1, "length": 30} | settings
    browser.evaluate(f"Object.assign(page.session.settings, {json.dumps(fields)}); page.session.forced.clear()")
    browser.evaluate("byId('prompt').value = 'Once upon a time'; page.text.edit(); page.text.start()")


def test_a_token_is_chosen_by_click_and_keyboard(opened):
    restart(opened)
    opened.evaluate("byId('tokens').children[9].click()")
    assert opened.evaluate("page.look.position") == 10
    opened.evaluate("byId('tokens').querySelector('[aria-current=true]').focus()")
    opened.press("ArrowRight", 39)
    opened.press("ArrowRight", 39)
    opened.press("ArrowLeft", 37)
    assert opened.evaluate("[page.look.position, document.activeElement.dataset.position]") == [11, "11"]
    opened.evaluate("document.querySelectorAll('.heads button')[9].focus(); document.activeElement.click()")
    assert opened.evaluate("[page.look.layer, page.look.head, byId('layer').value]") == [2, 1, "2"]
    assert opened.evaluate("document.activeElement.ariaLabel") == "Layer 3, head 2"  # the focus stays


def test_another_token_can_be_written_instead(opened):
    restart(opened)
    before = opened.evaluate("page.session.ids")
    opened.evaluate("byId('tokens').children[11].click(); document.querySelectorAll('.alternative')[1].click()")
    opened.wait("byId('stop').disabled")
    after = opened.evaluate("page.session.ids")
    assert after[:12] == before[:12] and after[12] != before[12] and len(after) > 20
    opened.evaluate("byId('tokens').children[1].click(); document.querySelectorAll('.alternative')[0].click()")
    opened.wait("byId('stop').disabled")
    assert opened.evaluate("page.session.prompt.startsWith('Once') && page.session.forced.size === 0")


def test_a_slider_acts_at_once(opened):
    restart(opened, temperature=1, topP=0.95)
    before = opened.evaluate("[byId('alternatives-rest').textContent, page.session.ids.join()]")
    opened.evaluate(
        "(() => { const slider = document.querySelector('#more-sliders [data-setting=topP]'); slider.value = 0.1;"
        "slider.dispatchEvent(new Event('input')); })()"
    )
    assert opened.evaluate("byId('alternatives-rest').textContent") != before[0]
    assert opened.evaluate("document.querySelector('#sliders [data-setting=topP]').value") == "0.1"
    opened.wait("page.text.timer && byId('stop').disabled && page.session.settings.topP === 0.1")
    opened.evaluate("page.text.start()")
    assert opened.evaluate("page.session.ids.join()") != before[1]


def test_the_address_holds_the_state(opened, folder):
    restart(opened, temperature=0.9, seed=5)
    opened.evaluate("look({position: 14, layer: 5, head: 2}); byId('switch-1-0').click()")
    opened.wait("location.hash.includes('off=1.0')")
    ids, fragment = opened.evaluate("[page.session.ids, location.hash.slice(1)]")
    with Chromium() as other:
        other.open(folder / "page.html", fragment)
        other.wait("byId('stop').disabled")
        assert other.evaluate("page.session.ids") == ids
        assert other.evaluate("[page.look.position, page.look.layer, page.look.head]") == [14, 5, 2]
        assert other.evaluate("[...page.adder.model.disabled]") == ["1.0"]
        broken = "temperature=x&position=-4&layer=99&forced=3:999999,a:b&sum=1&off=9.9&prompt=%F0%9F"
        other.open(folder / "page.html", broken)
        other.wait("byId('stop').disabled")
        assert other.errors == []
    opened.evaluate("byId('switch-1-0').click()")


def test_every_figure_is_saved_as_a_picture(opened):
    kinds = opened.evaluate(
        "(async () => { const saved = [];"
        "window.savePicture = async (picture, title) => saved.push(pictureBlob(picture, title));"
        "document.querySelectorAll('figcaption button').forEach((button) => button.click());"
        "return Promise.all(saved.map(async (blob) => [(await blob).type, (await blob).size])); })()"
    )
    assert len(kinds) == opened.evaluate("document.querySelectorAll('figure').length") >= 14
    assert all(kind == "image/png" and size > 2000 for kind, size in kinds)


def test_the_theme_is_chosen_by_a_button(opened):
    card = "getComputedStyle(document.documentElement).getPropertyValue('--card')"
    cell = "document.querySelector('#lens-figures rect').getAttribute('fill')"
    seen = []
    for _ in range(3):
        opened.evaluate("byId('theme').click()")
        seen.append(tuple(opened.evaluate(f"[document.documentElement.dataset.theme, {card}, {cell}]")))
    assert [theme for theme, *_ in seen] == ["light", "dark", "light"]  # the last is the system's
    assert seen[0] == seen[2] and seen[0][1] != seen[1][1] and seen[0][2] != seen[1][2]


def test_wrong_digits_and_bad_numbers_are_said(opened):
    opened.evaluate("page.adder.fill(4999, 5001)")
    assert opened.evaluate("byId('verdict').textContent") == "4999 + 5001 = 10000 is right"
    opened.evaluate("page.adder.answer = ''; page.adder.drawSum()")  # as of a model that ends at once
    assert "is no answer: the sum is 10000" in opened.evaluate("byId('verdict').textContent")
    opened.evaluate("page.adder.fill(1234, 5678); byId('switch-0-1').click()")  # it makes all answers long
    assert opened.evaluate("byId('verdict').textContent") == "1234 + 5678 = 69912 is wrong: the sum is 6912"
    assert opened.evaluate("document.querySelectorAll('.sum .wrong').length") > 0
    opened.evaluate("byId('switch-0-1').click(); page.adder.fill(12, 5001)")
    assert "four digits" in opened.evaluate("byId('verdict').textContent")
    opened.evaluate("page.adder.fill(1234, 5678)")


def test_every_weight_is_read_by_keys(opened):
    name = "layers.0.attention.compute_query.weight"
    query = read_checkpoint(BEST_ADDER).state_dict[name]
    reading = "document.querySelector('.reading p').textContent"
    opened.evaluate("document.querySelectorAll('.weights svg')[1].focus()")
    for key, code, row, column in (("ArrowRight", 39, 0, 1), ("ArrowDown", 40, 1, 1), ("ArrowLeft", 37, 1, 0)):
        opened.press(key, code)
        where, value = opened.evaluate(reading).split(": ")
        assert where == f"{name}, row {row + 1}, column {column + 1}"
        assert float(value.replace("−", "-")) == pytest.approx(float(query[row, column]), abs=6e-5)
    for _ in range(len(query) - 1):
        opened.press("ArrowDown", 40)
    assert opened.evaluate(reading).startswith("layers.0.attention.compute_key.weight, row 1, column 1: ")


@pytest.mark.parametrize("name", ["page", "adder"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible_and_fits(folder, name, width, dark):
    with Chromium() as browser:
        browser.resize(width, dark=dark)
        browser.open(folder / f"{name}.html", "length=30&layer=2&head=1")
        browser.wait("!page.session || byId('stop').disabled")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        if not AXE.exists():
            pytest.skip("no axe-core here: npm install --no-save axe-core")
        browser.evaluate(AXE.read_text("utf-8") + "; true")
        violations = browser.evaluate(
            "axe.run().then(({violations}) => violations.map((each) => [each.id, each.nodes.map((node) => node.html)]))"
        )
        assert violations == []
