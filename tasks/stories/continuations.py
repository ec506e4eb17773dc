"""Continuations of held-out stories: perplexity, BLEU and speed of each decoding method, and attention maps.

    python run_llama.py --option evaluate --corpus valid.txt --stories 50 --save_dir measured
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.decode.beam import beam
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.files import check_readable, read_text, write_text
from engine.io.word_tokenizer import WordTokenizer, join_words, split_words
from engine.train.losses import perplexity, token_nll
from llama import Llama
from tasks import plots
from tasks.attention_maps import attention_weights
from tasks.stories.flags import EvaluateSettings
from tokenizer import AnyTokenizer

PROMPT = 5  # tokens of a story in the prompt, without BOS
CACHE_BATCH, CACHE_ROUNDS = 20, 3
SHOWN = 14  # tokens of a story on the axes of an attention map
Decode = Callable[[list[int]], list[int]]  # prompt -> new tokens


@dataclass(frozen=True)
class Story:
    """A story's prompt (with BOS), its true continuation as tokens, and as text."""

    prompt: list[int]
    continuation: list[int]
    text: str


def check(settings: EvaluateSettings) -> None:
    """Raises ValueError without a folder for the results or sacrebleu, OSError for a --prompt_file that is missing."""
    if settings.save_dir is None:
        raise ValueError("--stories needs --save_dir: a folder for the continuations and attention maps")
    check_bleu()
    if settings.prompt_file is not None:
        read_text(check_readable(settings.prompt_file))


def check_bleu() -> None:
    """Raises ValueError without sacrebleu."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError("sacrebleu is not installed: pip install -r requirements-ail861.txt")


def choose(
    documents: list[str], tokenizer: AnyTokenizer, count: int, room: int, prompt: int = PROMPT
) -> list[Story]:
    """The first `count` documents that are longer than a prompt, with continuations of at most `room` tokens.

    Raises ValueError if there are too few.
    """
    found = []
    for document in documents:
        ids = tokenizer.encode(document, bos=True, eos=False)
        if len(ids) > prompt + 1:
            following = ids[prompt + 1 : prompt + 1 + room]
            text = _text(document, following, prompt, tokenizer)
            found.append(Story(ids[: prompt + 1], following, text))
        if len(found) == count:
            return found
    raise ValueError(f"{len(found)} stories have more than {prompt} tokens; --stories asks for {count}")


def _text(document: str, following: list[int], prompt: int, tokenizer: AnyTokenizer) -> str:
    """The true continuation; with a word vocabulary the original words, so that <unk> never counts as right."""
    if isinstance(tokenizer, WordTokenizer):
        return join_words(split_words(document, tokenizer.lower)[prompt : prompt + len(following)])
    return tokenizer.decode(following)


def room(model: Llama, max_new_tokens: int, prompt: int = PROMPT) -> int:
    """New tokens that fit into the context after a prompt."""
    return max(1, min(max_new_tokens, model.config.max_seq_len - prompt - 1))


def report(model: Llama, tokenizer: AnyTokenizer, documents: list[str], settings: EvaluateSettings) -> dict:
    """Measures everything; writes continuations and attention maps to --save_dir."""
    new, folder = room(model, settings.max_new_tokens), Path(settings.save_dir)
    stories = choose(documents, tokenizer, settings.stories, new)
    measured = {"stories": len(stories), "prompt_tokens": PROMPT, "new_tokens": new}
    measured["continuation_perplexity"] = round(continuation_perplexity(model, stories), 3)
    texts = {"prompt": [tokenizer.decode(story.prompt) for story in stories], "truth": [s.text for s in stories]}
    measured["decoding"] = {}
    for name, decode in ways(model, tokenizer, new, settings).items():
        measured["decoding"][name], texts[name] = _timed(decode, stories, tokenizer)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in measured["decoding"][name].items()))
    measured["cache"] = cache_speed(model, [story.prompt for story in stories], new)
    rows = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    write_text(folder / "continuations.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    for number, ids in enumerate(_sentences(stories, tokenizer, settings), start=1):
        maps = attention_weights(model, torch.tensor(ids, device=model.device)).float().cpu().numpy()
        labels = [tokenizer.decode([token]) or "<sos>" for token in ids]
        plots.attention_maps(maps, labels, folder / f"attention-{number}.png")
    return measured


@torch.inference_mode()
def continuation_perplexity(model: Llama, stories: list[Story]) -> float:
    """Perplexity per token of the continuations, each given its prompt."""
    total = 0.0
    for story in stories:
        ids = torch.tensor(story.prompt + story.continuation, device=model.device)
        known = len(story.prompt)
        hidden = model.hidden_states(ids[None, :-1])[0, known - 1 :]
        total += token_nll(hidden, model.output.weight, ids[known:]).sum().item()
    return perplexity(total / sum(len(story.continuation) for story in stories))


def ways(model: Llama, tokenizer: AnyTokenizer, new: int, settings: EvaluateSettings) -> dict[str, Decode]:
    """The decoding methods by name, each for one prompt at a time."""
    generator = torch.Generator(model.device).manual_seed(settings.seed)

    def sampled(sampler: Sampler) -> Decode:
        return lambda prompt: [
            int(step) for step in stream(model, [prompt], new, sampler, generator, tokenizer.eos_id)
        ]

    def beams(width: int) -> Decode:
        return lambda prompt: beam(model, prompt, width, new, tokenizer.eos_id)[0].tokens

    rules = {"greedy": Sampler(0.0), f"sampling (top-p {settings.top_p})": Sampler(1.0, top_p=settings.top_p)}
    found = {name: sampled(sampler) for name, sampler in rules.items()}
    return found | {f"beam {width}": beams(width) for width in (5, 10)}


def _timed(decode: Decode, stories: list[Story], tokenizer: AnyTokenizer) -> tuple[dict, list[str]]:
    """BLEU and tokens per second, and the texts."""
    decode(stories[0].prompt)  # the warm-up
    started = time.perf_counter()
    rows = [decode(story.prompt) for story in stories]
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode(row) for row in rows]
    count = sum(map(len, rows))
    figures = {"bleu": round(bleu(texts, stories), 3), "tokens_per_second": round(count / seconds, 1), "tokens": count}
    return figures, texts


def bleu(texts: list[str], stories: list[Story]) -> float:
    """Corpus BLEU of continuations against the true ones, with sacrebleu's defaults."""
    import sacrebleu

    return sacrebleu.corpus_bleu(texts, [[story.text for story in stories]]).score


def cache_speed(model: Llama, prompts: list[list[int]], new: int) -> dict:
    """Tokens per second of a batch of greedy continuations with and without the cache: medians of three rounds."""
    prompts = [prompts[row % len(prompts)] for row in range(CACHE_BATCH)]
    seconds, texts = {True: [], False: []}, {}
    for _ in range(CACHE_ROUNDS):
        for use_cache in (True, False):
            started = time.perf_counter()
            steps = list(stream(model, prompts, new, Sampler(0.0), use_cache=use_cache))
            seconds[use_cache].append(time.perf_counter() - started)
            texts[use_cache] = torch.stack(steps).tolist()
    cached, uncached = (CACHE_BATCH * new / statistics.median(seconds[way]) for way in (True, False))
    return {
        "batch": CACHE_BATCH, "new_tokens": new, "cached_tokens_per_second": round(cached, 1),
        "uncached_tokens_per_second": round(uncached, 1), "times_faster": round(cached / uncached, 2),
        "same_output": texts[True] == texts[False],
    }  # fmt: skip


def _sentences(stories: list[Story], tokenizer: AnyTokenizer, settings: EvaluateSettings) -> list[list[int]]:
    """The lines of --prompt_file, or the beginnings of the first three stories."""
    if settings.prompt_file is None:
        return [(story.prompt + story.continuation)[:SHOWN] for story in stories[:3]]
    lines = read_text(settings.prompt_file).split("\n")
    return [tokenizer.encode(line, bos=True, eos=False) for line in lines if line.strip()]
