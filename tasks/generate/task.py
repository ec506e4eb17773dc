"""The course's first application: continue a sentence, greedily and by sampling.

    python run_llama.py --option generate
    python run_llama.py --option generate --prompt "Once upon a time" --temperature 0.8 --max_new_tokens 200
    python run_llama.py --option generate --prompt "Once upon a time" --contrastive 0.6
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.decode.beam import beam
from engine.decode.continuous_batching import Finished, one_by_one, refilled
from engine.decode.contrastive import CANDIDATES, contrastive
from engine.decode.fast_step import DecodeStep, choose_step
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.files import appended, check_readable, check_writable, read_text, write_text
from llama import Llama
from tasks import provenance
from tasks.cli import Work
from tasks.generate.flags import GenerateSettings
from tasks.pretrained import load_model
from tasks.provenance import hand_in_path
from tasks.settings import shared_fields
from tokenizer import AnyTokenizer
from utils import fastest_threads, set_up

SENTENCE = (
    "I have wanted to see this thriller for a while, and it didn't disappoint. "
    "Keanu Reeves, playing the hero John Wick, is"
)
RULE = "---------------"
BETWEEN = f"\n{RULE}\n"
REPLACEMENT = "\ufffd"  # what bytes that are no character decode to
INCOMPLETE = 3  # bytes of a character whose last byte is missing, at most
WINDOW, CONTEXT = 48, 8  # tokens after which the streamed window is shortened, and what is left of it


@dataclass(frozen=True)
class Search:
    """A search for one continuation of a prompt, which draws nothing."""

    title: str
    rows: int  # decoded in parallel
    tokens: Callable[[Llama, list[int], int], Iterable[Tensor]]  # model, prompt, EOS -> new tokens (1,), EOS included


@dataclass(frozen=True)
class Continuation:
    """A sampling rule, or the search that replaces it, and the file for its text, if any."""

    sampler: Sampler
    path: Path | None
    search: Search | None = None


class TextStream:
    """Turns tokens into text as they arrive; all pieces together are what `decode` gives for all tokens.

    The text of a token depends on those before it: a tokenizer drops the first space, and a character may take several
    tokens. So a window of recent tokens is decoded again, and what may be an incomplete character is held back.
    """

    def __init__(self, tokenizer: AnyTokenizer):
        self.tokenizer, self.ids = tokenizer, []
        self.start, self.shown = 0, 0  # the window ids[start:], and how many characters of its text are on screen

    def add(self, *tokens: int) -> str:
        """The text that the tokens complete."""
        self.ids += tokens
        text = self.tokenizer.decode(self.ids[self.start :])
        complete = text.rstrip(REPLACEMENT)
        complete += REPLACEMENT * (len(text) - len(complete) - INCOMPLETE)  # the others are no unfinished character
        new, self.shown = complete[self.shown :], max(self.shown, len(complete))
        if len(self.ids) - self.start > WINDOW and complete == text:
            self._shorten(text)
        return new

    def finish(self) -> str:
        """The text that was held back, at the end."""
        return self.tokenizer.decode(self.ids[self.start :])[self.shown :]

    def _shorten(self, text: str) -> None:
        """Moves the window's start to a place where both sides, decoded apart, give `text`, except a space between."""
        for cut in range(len(self.ids) - CONTEXT, len(self.ids) - 2 * CONTEXT, -1):
            before, after = (self.tokenizer.decode(ids) for ids in (self.ids[self.start : cut], self.ids[cut:]))
            if after and REPLACEMENT not in before[-1:] + after[0] and text in (before + after, f"{before} {after}"):
                self.start, self.shown = cut, len(after)
                return


@dataclass(frozen=True)
class Generation:
    """A loaded model with its decode step and the tokenised prompts."""

    settings: GenerateSettings
    model: Llama
    tokenizer: AnyTokenizer
    step: DecodeStep
    prompts: list[list[int]]

    def run(self, continuation: Continuation) -> None:
        """Generates, shows and writes a continuation of every prompt, or `--num_samples` of each if sampled."""
        sampler = continuation.sampler
        print(continuation.search.title if continuation.search else f"Temperature is {sampler.temperature}")
        samples = self.settings.num_samples if sampler.temperature > 0.0 else 1
        prompts = [prompt for prompt in self.prompts for _ in range(samples)]
        started = time.perf_counter()
        one = len(prompts) == 1
        rows = [self._show_one(prompts[0], continuation)] if one else self._show_many(prompts, continuation)
        seconds = time.perf_counter() - started
        new = sum(len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True))
        print(f"{RULE}\n{new} tokens in {seconds:.2f} s: {new / seconds:.0f} tokens/s")
        if continuation.path is not None:
            write_text(continuation.path, BETWEEN.join(self.tokenizer.decode(row) for row in rows))
            print(f"Wrote generated sentence to {continuation.path}.")

    def _show_one(self, prompt: list[int], continuation: Continuation) -> list[int]:
        """Prints a prompt and each piece of its continuation as it arrives; returns all ids, without EOS."""
        if continuation.search is not None:
            tokens = continuation.search.tokens(self.model, prompt, self.tokenizer.eos_id)
            return _show(tokens, self.tokenizer, prompt)
        settings, generator = self.settings, torch.Generator(self.model.device).manual_seed(self.settings.seed)
        tokens = stream(
            self.model, [prompt], settings.max_new_tokens, continuation.sampler, generator, self.tokenizer.eos_id,
            use_cache=self.model.config.use_cache, slide=settings.slide, step=self.step,
        )  # fmt: skip
        return _show(tokens, self.tokenizer, prompt)

    def _show_many(self, prompts: list[list[int]], continuation: Continuation) -> list[list[int]]:
        """Prints the continuations in order, each as soon as it and all before it are finished; returns all ids.

        The finished texts are also kept in a file beside the output, which stays if the run is interrupted.
        """
        settings, sampler = self.settings, continuation.sampler
        options = (self.model, prompts, settings.max_new_tokens, sampler, settings.seed, self.tokenizer.eos_id)
        if continuation.search is not None:
            finished = self._searched(continuation.search, prompts)
        elif self.model.config.use_cache:
            finished = refilled(*options, settings.slide, rows=settings.batch_size, step=self.step)
        else:
            finished = one_by_one(*options, settings.slide, use_cache=False)
        waiting: dict[int, list[int]] = {}
        rows: list[list[int]] = []
        try:
            with appended(continuation.path) as keep:
                for index, new in finished:
                    waiting[index] = prompts[index] + new
                    while len(rows) in waiting:
                        text = (BETWEEN if rows else "") + self.tokenizer.decode(waiting[len(rows)])
                        rows.append(waiting.pop(len(rows)))
                        print(text, end="", flush=True)
                        keep(text)
        except KeyboardInterrupt:  # also show the finished texts that waited for their turn
            print("".join(BETWEEN + self.tokenizer.decode(waiting[index]) for index in sorted(waiting)), end="")
            raise
        finally:
            print(flush=True)
        return rows

    def _searched(self, search: Search, prompts: list[list[int]]) -> Iterator[Finished]:
        """The results of a search, one prompt after the other, as `one_by_one` gives them."""
        eos = self.tokenizer.eos_id
        for index, prompt in enumerate(prompts):
            new = [int(token) for token in search.tokens(self.model, prompt, eos)]
            yield index, [token for token in new if token != eos]


def prepare(settings: GenerateSettings) -> Work:
    """Checks the settings and paths, loads the model; returns the work. Raises ValueError or OSError."""
    texts = _prompts(settings)
    continuations = _continuations(settings)
    dtype = _dtype(settings)
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    model, tokenizer, path = load_model(settings, device, mapped=False, max_len=settings.max_sentence_len)
    step = choose_step(model, dtype)
    print(f"load model from {path}")
    if settings.threads is None and device.type == "cpu":
        rows = min(settings.batch_size, len(texts) * settings.num_samples)
        search = continuations[0].search
        choose_threads(model, step, rows if search is None else search.rows)
    prompts = [tokenizer.encode(text, bos=True, eos=False) for text in texts]
    generation = Generation(settings, model, tokenizer, step, prompts)

    def work() -> None:
        for continuation in continuations:
            generation.run(continuation)
        written = [each.path for each in continuations if each.path is not None]
        data = [] if settings.prompt_file is None else [settings.prompt_file]
        provenance.record(written, "run_llama.py", "generate", settings, path, data)

    return work


def _prompts(settings: GenerateSettings) -> list[str]:
    if settings.prompt is not None and settings.prompt_file is not None:
        raise ValueError("--prompt and --prompt_file exclude each other")
    if settings.prompt_file is None:
        return [SENTENCE if settings.prompt is None else settings.prompt]
    lines = [line for line in read_text(check_readable(settings.prompt_file)).split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{settings.prompt_file} holds no prompt; write one per line")
    return lines


def _search(settings: GenerateSettings) -> Search | None:
    """The search that replaces sampling, if any."""
    new, slide = settings.max_new_tokens, settings.slide

    def by_contrast(model: Llama, prompt: list[int], eos_id: int) -> Iterable[Tensor]:
        return contrastive(model, [prompt], new, alpha, candidates, eos_id, slide)

    def by_beams(model: Llama, prompt: list[int], eos_id: int) -> Iterable[Tensor]:
        best = beam(model, prompt, width, new, eos_id, penalty, 1, model.config.use_cache, slide)[0]
        return torch.tensor(best.tokens, dtype=torch.long).view(-1, 1)

    if (alpha := settings.contrastive) is not None:
        candidates = settings.top_k or CANDIDATES
        return Search(f"Contrastive search: α = {alpha:g}, {candidates} candidates", candidates, by_contrast)
    if (width := settings.beams) is not None:
        penalty = settings.length_penalty
        return Search(f"Beam search: {width} beams, length penalty {penalty:g}", width, by_beams)
    return None


def _dtype(settings: GenerateSettings) -> str:
    """Precision of the decode weights."""
    if settings.quantize != "float32" and settings.dtype != "float32":
        raise ValueError("--quantize int8 and --dtype bfloat16 exclude each other")
    return settings.dtype if settings.quantize == "float32" else settings.quantize


def choose_threads(model: Llama, step: DecodeStep, rows: int) -> None:
    """Sets the number of CPU threads to the one with which a decode step of `rows` rows is fastest right now."""
    tokens = torch.zeros(rows, 1, dtype=torch.long)
    most, length = torch.get_num_threads(), min(128, model.config.max_seq_len) - 1
    cache = model.new_cache(rows, length + 1)

    def one_step() -> None:
        cache.length = length
        step(tokens, cache, None)

    chosen = fastest_threads(one_step, most)
    if most > 1:
        print(f"CPU threads: {chosen}, the fastest here of 1 to {most}")


def _continuations(settings: GenerateSettings) -> list[Continuation]:
    """Temperatures 0 and 1, or the given one; contrastive and beam search are one continuation.

    By default only the course's own texts go to the output files, and experiments with its sentence to runs/.
    """
    search = _search(settings)
    temperatures = [0.0, 1.0] if settings.temperature is None else [settings.temperature]
    if settings.num_samples > 1 and settings.temperature == 0.0:
        raise ValueError("--num_samples needs a temperature above 0: at temperature 0 there is one continuation")
    replaced = (settings.epsilon, settings.typical) != (None, None)
    top_p = None if replaced else settings.top_p
    course = settings.prompt is None and settings.prompt_file is None and settings.temperature is None
    course = course and search is None
    rules = shared_fields(settings, Sampler) | {"top_p": top_p}
    continuations = []
    for temperature in temperatures if search is None else [0.0]:
        name = f"generated_sentence_{'low' if temperature == 0.0 else 'high'}_temp_out"
        path = check_writable(hand_in_path(settings, name)) if course or name in settings.given else None
        continuations.append(Continuation(Sampler(**rules | {"temperature": temperature}), path, search))
    return continuations


def _show(tokens: Iterable[Tensor], tokenizer: AnyTokenizer, prompt: list[int]) -> list[int]:
    """Prints the prompt and each piece of text as its token arrives; returns all ids, without EOS."""
    text = TextStream(tokenizer)
    print(text.add(*prompt), end="", flush=True)
    try:
        for step in tokens:
            if (token := int(step[0])) != tokenizer.eos_id:
                print(text.add(token), end="", flush=True)
    finally:
        print(text.finish(), flush=True)
    return text.ids
