"""The course's first application: continuing a sentence, greedily and by sampling.

    python run_llama.py --option generate
    python run_llama.py --option generate --prompt "Once upon a time" --temperature 0.8 --max_new_tokens 200
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.decode.continuous_batching import one_by_one, refilled
from engine.decode.fast_step import make_lean
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.files import appended, check_readable, check_writable, read_text, write_text
from llama import Llama
from tasks import provenance
from tasks.generate.flags import GenerateSettings
from tasks.pretrained import load_model
from tokenizer import AnyTokenizer
from utils import fastest_threads, set_up

SENTENCE = (
    "I have wanted to see this thriller for a while, and it didn't disappoint. "
    "Keanu Reeves, playing the hero John Wick, is"
)
RULE = "---------------"
BETWEEN = f"\n{RULE}\n"


@dataclass(frozen=True)
class Continuation:
    """One way of continuing the prompts, and the file it goes to, if any."""

    sampler: Sampler
    path: Path | None


class TextStream:
    """Turns tokens into text as they come, holding back a character whose bytes are not all there yet."""

    def __init__(self, tokenizer: AnyTokenizer, prompt: list[int]):
        self.tokenizer, self.ids = tokenizer, list(prompt)
        self.start, self.shown = 0, len(prompt)  # ids[start:shown] are on screen, and are the context to decode in

    def add(self, token: int) -> str:
        """The text that `token` completes: what decoding a little context with it gives beyond without it."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        after = self.tokenizer.decode(self.ids[self.start :])
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return after[len(before) :]


def prepare(settings: GenerateSettings) -> Callable[[], None]:
    """Checks the flags and the paths, loads the model; returns what generates. Raises ValueError or OSError."""
    texts = _prompts(settings)
    continuations = _continuations(settings)
    kind = _kind(settings)
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    model, tokenizer, path = load_model(settings, device, mapped=False)  # so that a weight laid out anew leaves
    make_lean(model, kind)
    print(f"load model from {path}")
    if settings.threads is None and device.type == "cpu":
        choose_threads(model, min(settings.batch_size, len(texts) * settings.num_samples))
    prompts = [tokenizer.encode(text, bos=True, eos=False) for text in texts]

    def work() -> None:
        for continuation in continuations:
            _continue(model, tokenizer, prompts, continuation, settings)
        written = [each.path for each in continuations if each.path is not None]
        data = [] if settings.prompt_file is None else [settings.prompt_file]
        provenance.record(written, "run_llama.py", "generate", settings, path, data)

    return work


def _prompts(settings: GenerateSettings) -> list[str]:
    if settings.prompt is not None and settings.prompt_file is not None:
        raise ValueError("--prompt and --prompt_file exclude each other")
    if settings.prompt_file is None:
        return [SENTENCE if settings.prompt is None else settings.prompt]
    lines = [line for line in read_text(check_readable(settings.prompt_file)).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{settings.prompt_file} holds no prompt: one a line is expected")
    return lines


def _kind(settings: GenerateSettings) -> str:
    """What the weights of single steps are kept as."""
    if settings.quantize != "float32" and settings.dtype != "float32":
        raise ValueError("--quantize int8 and --dtype bfloat16 exclude each other")
    if settings.dtype == "float16":
        raise ValueError("--dtype float16: generation has float32 and bfloat16")
    return settings.dtype if settings.quantize == "float32" else settings.quantize


def choose_threads(model: Llama, rows: int) -> None:
    """Sets the number of CPU threads with which one step of so many rows is the fastest here and now."""
    tokens = torch.zeros(rows, 1, dtype=torch.long)
    most, held = torch.get_num_threads(), min(128, model.config.max_seq_len) - 1
    cache = model.new_cache(rows, held + 1)

    def step() -> None:
        cache.length = held
        with torch.inference_mode():
            model.step(tokens, cache, greedy=True)

    chosen = fastest_threads(step, most)
    if most > 1:
        print(f"CPU threads: {chosen}, the fastest here of 1 to {most}")


def _continuations(settings: GenerateSettings) -> list[Continuation]:
    """Temperatures 0 and 1, or the one asked for. What is not the course's goes to its files only if they are named."""
    temperatures = [0.0, 1.0] if settings.temperature is None else [settings.temperature]
    if settings.num_samples > 1 and settings.temperature == 0.0:
        raise ValueError("--num_samples asks for different draws, and at temperature 0 there is one continuation")
    top_p = None if settings.epsilon is not None else settings.top_p
    course = settings.prompt is None and settings.prompt_file is None and settings.temperature is None
    found = []
    for temperature in temperatures:
        name = f"generated_sentence_{'low' if temperature == 0.0 else 'high'}_temp_out"
        path = check_writable(getattr(settings, name)) if course or name in settings.given else None
        found.append(Continuation(Sampler(temperature, top_p, settings.top_k, settings.min_p, settings.epsilon), path))
    return found


def _continue(
    model: Llama, tokenizer: AnyTokenizer, prompts: list[list[int]], how: Continuation, settings: GenerateSettings
) -> None:
    """Generates, shows and writes one continuation of every prompt, or `--num_samples` where they are drawn."""
    print(f"Temperature is {how.sampler.temperature}")
    samples = settings.num_samples if how.sampler.temperature > 0.0 else 1
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    started = time.perf_counter()
    if len(prompts) == 1:
        generator = torch.Generator(model.device).manual_seed(settings.seed)
        tokens = stream(
            model, prompts, settings.max_new_tokens, how.sampler, generator, tokenizer.eos_id,
            use_cache=model.config.use_cache, slide=settings.slide,
        )  # fmt: skip
        rows = [_show(tokens, tokenizer, prompts[0])]
    else:
        rows = _show_many(model, tokenizer, prompts, how, settings)
    seconds = time.perf_counter() - started
    new = sum(len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True))
    print(f"{RULE}\n{new} tokens in {seconds:.2f} s: {new / seconds:.0f} tokens/s")
    if how.path is not None:
        write_text(how.path, BETWEEN.join(tokenizer.decode(row) for row in rows))
        print(f"Wrote generated sentence to {how.path}.")


def _show_many(
    model: Llama, tokenizer: AnyTokenizer, prompts: list[list[int]], how: Continuation, settings: GenerateSettings
) -> list[list[int]]:
    """Shows each continuation when it and all before it have ended, and keeps it beside the file; returns all ids.

    What is kept beside the file stays there if the run is interrupted, and goes when the file is written whole.
    """
    options = (model, prompts, settings.max_new_tokens, how.sampler, settings.seed, tokenizer.eos_id, settings.slide)
    if model.config.use_cache:
        finished = refilled(*options, rows=settings.batch_size)
    else:
        finished = one_by_one(*options, use_cache=False)
    ended, rows = {}, []
    try:
        with appended(how.path) as keep:
            for index, new in finished:
                ended[index] = prompts[index] + new
                while len(rows) in ended:
                    text = (BETWEEN if rows else "") + tokenizer.decode(ended[len(rows)])
                    rows.append(ended.pop(len(rows)))
                    print(text, end="", flush=True)
                    keep(text)
    except KeyboardInterrupt:  # what waited for its turn
        print("".join(BETWEEN + tokenizer.decode(ended[index]) for index in sorted(ended)), end="")
        raise
    finally:
        print(flush=True)
    return rows


def _show(tokens, tokenizer: AnyTokenizer, prompt: list[int]) -> list[int]:
    """Prints the prompt and each piece of text as its token comes; returns all ids, without EOS."""
    text = TextStream(tokenizer, prompt)
    print(tokenizer.decode(prompt), end="", flush=True)
    try:
        for step in tokens:
            if (token := int(step[0])) != tokenizer.eos_id:
                print(text.add(token), end="", flush=True)
    finally:
        print(flush=True)
    return text.ids
