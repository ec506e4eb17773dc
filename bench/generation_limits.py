"""Limits of a long generation: peak memory, and speed as the window slides.

    python -m bench.generation_limits
    python -m bench.generation_limits --checkpoint models/stories.pt --tokens 10000

The first part runs `run_llama.py --option generate` in a fresh process and reports its peak resident size above the
weights and the cache; the second times every thousand tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.generate import random_model
from engine.decode.cpu_step import PRECISIONS
from engine.decode.fast_step import choose_step
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.checkpoint import save_checkpoint
from engine.io.word_tokenizer import word_vocabulary
from llama import Llama, load_pretrained

ALLOWED = 300  # MB above weights and cache
THOUSAND = 1000


def main() -> None:
    """Prints both parts, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="random", help="model, or random: 42 M random weights")
    parser.add_argument("--tokens", type=int, default=10000, help="tokens of the long run")
    parser.add_argument("--slide", type=int, default=64, help="oldest tokens dropped at a time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = args.checkpoint if args.checkpoint != "random" else written(Path(folder))
        memory = {dtype: peak(path, dtype) for dtype in PRECISIONS}
        model = load_pretrained(path)
    thousands = long_run(model, args.tokens, args.slide)
    print(json.dumps(vars(args) | {"above_weights_and_cache_mb": memory, "thousands": thousands}))


def written(folder: Path) -> str:
    """The random model as a checkpoint, with a vocabulary of made-up words."""
    model = random_model()
    letters = "abcdefghij"
    words = ("".join(letters[int(digit)] for digit in str(number)) for number in range(model.config.vocab_size))
    (folder / "words.json").write_text(word_vocabulary(words, model.config.vocab_size), encoding="utf-8")
    save_checkpoint(folder / "random.pt", model.config, model.state_dict(), folder / "words.json")
    return str(folder / "random.pt")


def peak(path: str, dtype: str, new: int = 200) -> float:
    """Peak resident size of a fresh process above its float32 weights and its cache, in MB."""
    flags = {"float32": [], "bfloat16": ["--dtype", "bfloat16"], "int8": ["--quantize", "int8"]}[dtype]
    command = [sys.executable, "run_llama.py", "--pretrained-model-path", path, "--prompt", "a", "--temperature", "0"]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--max_new_tokens", str(new), *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    assert status == 0
    model = load_pretrained(path)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    cache = model.new_cache(1, new + 2)
    kept = (weights + 2 * cache.keys.numel() * 4) / 1e6
    above = usage.ru_maxrss * 1024 / 1e6 - kept
    print(f"{dtype}: peak {above + kept:.0f} MB, {above:.0f} MB above weights and cache (allowed: {ALLOWED})", end="; ")
    print(f"{seconds:.1f} s in all, {usage.ru_utime + usage.ru_stime:.1f} s of them computing")
    return round(above, 1)


def long_run(model: Llama, tokens: int, slide: int) -> list[dict[str, float]]:
    """Tokens per second of processor time, and resident size in MB, after every thousand tokens."""
    step = choose_step(model)
    records, started = [], time.process_time()
    for count, _ in enumerate(stream(model, [[1]], tokens, Sampler(0.0), slide=slide, step=step), start=1):
        if count % THOUSAND == 0:
            spent, started = time.process_time() - started, time.process_time()
            size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            records.append({"tokens": count, "per_second": round(THOUSAND / spent, 1), "peak_mb": round(size)})
            print(f"{count:>7} tokens: {records[-1]['per_second']:>7.1f} tokens/s, peak {size:.0f} MB", flush=True)
    return records


if __name__ == "__main__":
    main()
