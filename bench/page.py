"""Speed and memory of the page with the shipped model, in headless Chromium.

    python -m bench.page
    python -m bench.page --rounds 9 --out docs/page_results.json

Every time is processor time of the page's process, summed over its threads: it means one core, and other programs
disturb it little. Each round starts a new browser, and the medians over the rounds count. The last line is JSON;
`--out FILE` also writes it to a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import run_llama
from engine.io.files import write_text
from tests.chromium import PROGRAM, Chromium

ENGINE_TOKENS = 128
# The engine without any view: the greedy text after the first five tokens of the present one.
ENGINE = f"""(() => {{
  const {{ model }} = page.session;
  model.truncate(5);
  for (let i = 0; i < {ENGINE_TOKENS}; i++) model.feed(argmax(model.logits()));
}})()"""
# A text as the button Generate writes it, with nothing in the cache and all views drawn; returns its new tokens.
TEXT = """(async (length) => {
  page.session.settings.length = length;
  page.session.model.truncate(0);
  await page.text.start();
  return page.session.ids.length - page.session.promptLength;
})"""
# Thirty tokens looked at, one after the other, in all layers and heads.
LOOKS = """(async () => {
  const { n_layers, n_heads } = page.session.model.config;
  for (let i = 0; i < 30; i++) {
    look({ position: 5 + i, layer: i % n_layers, head: i % n_heads });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
})()"""


def main() -> None:
    """Prints the medians of all rounds; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="models/stories.pt", help="model of the page")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens of the text that a round writes")
    parser.add_argument("--rounds", type=int, default=5, help="number of browsers started")
    parser.add_argument("--out", metavar="FILE", help="also write the results here")
    args = parser.parse_args()
    if PROGRAM is None:
        sys.exit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        flags = ["--option", "page", "--pretrained-model-path", args.checkpoint, "--out", str(page)]
        if run_llama.main(flags):
            sys.exit(2)
        rounds = [measure(page, args.tokens) for _ in range(args.rounds)]
        size = page.stat().st_size
    medians = {name: round(statistics.median(each[name] for each in rounds), 1) for name in rounds[0]}
    for name, value in medians.items():
        print(f"{name}: {value:,}")
    text = json.dumps(vars(args) | {"page_mb": round(size / 1e6, 1), "medians": medians, "all_rounds": rounds})
    print(text)
    if args.out is not None:
        write_text(args.out, json.dumps(json.loads(text), indent=1) + "\n")


def measure(page: Path, tokens: int) -> dict[str, float]:
    """One browser: times in milliseconds, tokens per second, and the memory of the page's process in megabytes.

    `load_ms` ends when the page has read its prompt and drawn its views; `first_token_ms` is a text of one token, from
    the click to its views.
    """
    with Chromium() as browser:

        def milliseconds(expression: str) -> tuple[float, float]:
            started = browser.renderer_seconds()
            value = browser.evaluate(expression)
            return value, 1000 * (browser.renderer_seconds() - started)

        browser.resize(1280)
        empty, started = browser.renderer_bytes(), browser.renderer_seconds()
        browser.open(page, "length=0&temperature=0.8&seed=1")
        browser.wait("byId('stop').disabled")
        load = 1000 * (browser.renderer_seconds() - started)
        _, first = milliseconds(f"{TEXT}(1)")
        written, text = milliseconds(f"{TEXT}({tokens})")
        memory = browser.renderer_bytes()
        _, engine = milliseconds(ENGINE)
        browser.evaluate(LOOKS)
        return {
            "load_ms": round(load),
            "first_token_ms": round(first),
            "page_tokens_per_second": round(1000 * written / text, 1),
            "engine_tokens_per_second": round(1000 * ENGINE_TOKENS / engine, 1),
            "memory_mb": round(memory / 1e6),
            "memory_after_looks_mb": round(browser.renderer_bytes() / 1e6),
            "empty_page_memory_mb": round(empty / 1e6),
        }


if __name__ == "__main__":
    main()
