"""Speed and memory of the page with the shipped model, in headless Chromium on one core.

    python -m bench.page
    python -m bench.page --rounds 9 --out docs/page_results.json

Chromium and everything that it starts run on one core, and each round starts a new browser. Tokens per second count
the processor time of the page's process, so that a busy machine changes them little; their medians count. Load and
first token are times by the clock, and the fastest round counts. The last line is JSON; `--out FILE` also writes it
to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import run_llama
from engine.io.files import write_text
from tests.chromium import PROGRAM, Chromium

# Notes when the page's scripts have run and when its first token is shown, in milliseconds after the navigation.
WATCH = """
window.times = {};
new MutationObserver(() => {
  if (window.ready) times.ready ??= performance.now();
  if (/^1 tokens/.test(document.getElementById("status")?.textContent ?? "")) times.first ??= performance.now();
}).observe(document, { childList: true, subtree: true, characterData: true });
"""
ENGINE_TOKENS = 128
# The engine without any view: the greedy text after the first five tokens of the present one.
ENGINE = f"""(() => {{
  const {{ model }} = page.session;
  model.truncate(5);
  for (let i = 0; i < {ENGINE_TOKENS}; i++) model.feed(argmax(model.logits()));
}})()"""
# A text with all views, as the button Generate writes it, without anything that is cached; returns its new tokens.
TEXT = """(async () => {
  page.session.model.truncate(0);
  await page.text.start();
  return page.session.ids.length - page.session.promptLength;
})()"""


def main() -> None:
    """Prints what the rounds gave; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="models/stories.pt", help="model of the page")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens of the text that a round writes")
    parser.add_argument("--rounds", type=int, default=5, help="number of browsers started")
    parser.add_argument("--out", metavar="FILE", help="also write the results here")
    args = parser.parse_args()
    if PROGRAM is None:
        sys.exit("no Chromium here: apt-get install chromium")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        flags = ["--option", "page", "--pretrained-model-path", args.checkpoint, "--out", str(page)]
        if run_llama.main(flags):
            sys.exit(2)
        rounds = [measure(page, args.tokens) for _ in range(args.rounds)]
        size = page.stat().st_size
    measured = {name: summary(name, [each[name] for each in rounds]) for name in rounds[0]}
    for name, value in measured.items():
        print(f"{name}: {value:,}")
    text = json.dumps(vars(args) | {"page_mb": round(size / 1e6, 1)} | measured | {"all_rounds": rounds})
    print(text)
    if args.out is not None:
        write_text(args.out, json.dumps(json.loads(text), indent=1) + "\n")


def summary(name: str, values: list[float]) -> float:
    """The fastest of times by the clock, the median of anything else."""
    return min(values) if name.endswith("_ms") else round(statistics.median(values), 1)


def measure(page: Path, tokens: int) -> dict[str, float]:
    """One browser: times in milliseconds, tokens per second, and the memory of the page's process in megabytes."""
    with Chromium() as browser:
        browser.resize(1280)
        empty = browser.renderer_bytes()
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        browser.open(page, f"length={tokens}&temperature=0.8&seed=1")
        browser.wait("byId('stop').disabled")
        times = browser.evaluate("times")
        started = browser.renderer_seconds()
        written = browser.evaluate(TEXT)
        shown = browser.renderer_seconds()
        browser.evaluate(ENGINE)
        computed = browser.renderer_seconds()
        return {
            "load_ms": round(times["ready"]),
            "first_token_ms": round(times["first"] - times["ready"]),
            "page_tokens_per_second": round(written / (shown - started), 1),
            "engine_tokens_per_second": round(ENGINE_TOKENS / (computed - shown), 1),
            "memory_mb": round(browser.renderer_bytes() / 1e6),
            "empty_page_memory_mb": round(empty / 1e6),
        }


if __name__ == "__main__":
    main()
