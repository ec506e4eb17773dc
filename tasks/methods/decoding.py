"""Decoding methods compared on held-out stories: repetition, diversity, perplexity, BLEU and speed.

    python -m tasks.methods.decoding --corpus valid.txt --out results/methods

The shipped model, or the named one, continues the beginning of each story. The same figures of the stories' own
continuations stand beside those of the methods. A run that was stopped continues where it was.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.decode.beam import beams
from engine.decode.continuous_batching import refilled
from engine.decode.contrastive import contrastive
from engine.decode.fast_step import choose_step
from engine.decode.sampling import Sampler
from engine.io.files import check_writable, read_json_object, write_json
from llama import Llama
from tasks import cli, plots
from tasks.methods.flags import DecodingSettings
from tasks.pretrained import load_model
from tasks.provenance import digest
from tasks.stories.continuations import Story, bleu, check_bleu, choose, continuation_perplexity, room
from tasks.stories.data import read_documents
from tokenizer import AnyTokenizer
from utils import set_up

ROWS = 64  # prompts decoded in parallel
ROUNDS = 3  # of the speed, which is their median
GREEDY = Sampler(0.0)
RULES = {
    "greedy": GREEDY,
    "sampling": Sampler(1.0),
    "top-k 40": Sampler(1.0, top_k=40),
    "top-p 0.95": Sampler(1.0, top_p=0.95),
    "min-p 0.1": Sampler(1.0, min_p=0.1),
    "typical 0.2": Sampler(1.0, typical=0.2),
    "typical 0.95": Sampler(1.0, typical=0.95),
    "repetition penalty 1.2": replace(GREEDY, repetition_penalty=1.2),
}
CONTRASTIVE = {"contrastive, α 0.6, k 5": (0.6, 5)}
BEAMS = {"beam 5, length penalty 0": (5, 0.0), "beam 5, length penalty 1": (5, 1.0)}
OUTPUT = "decoding.json"
ALL = (*RULES, *CONTRASTIVE, *BEAMS)
Prompts = Sequence[list[int]]
Decode = Callable[[Prompts, int], list[list[int]]]  # prompts, seed -> new tokens without EOS
COLUMNS = {  # heading of the table: the figure, and its format
    "tokens": ("tokens", ".0f"),
    "repeated 4-grams": ("repeated_4grams", ".1%"),
    "distinct 1, 2, 3": (("distinct_1", "distinct_2", "distinct_3"), ".2f"),
    "perplexity": ("perplexity", ".2f"),
    "gap": ("gap", "+.2f"),
    "BLEU": ("bleu", ".1f"),
}


def ways(model: Llama, eos_id: int, new: int) -> dict[str, Decode]:
    """The decoding methods by name. The rules of logits use the fastest decode step, as `--option generate` does."""
    step = choose_step(model)

    def by_rule(sampler: Sampler) -> Decode:
        def decode(prompts: Prompts, seed: int) -> list[list[int]]:
            rows = dict(refilled(model, prompts, new, sampler, seed, eos_id, rows=ROWS, step=step))
            return [rows[index] for index in range(len(prompts))]

        return decode

    def by_contrast(alpha: float, k: int) -> Decode:
        def decode(prompts: Prompts, _seed: int) -> list[list[int]]:
            return torch.stack(list(contrastive(model, prompts, new, alpha, k, eos_id)), dim=1).tolist()

        return _in_batches(decode, eos_id)

    def by_beams(width: int, penalty: float) -> Decode:
        def decode(prompts: Prompts, _seed: int) -> list[list[int]]:
            return [hypotheses[0].tokens for hypotheses in beams(model, prompts, width, new, eos_id, penalty)]

        return _in_batches(decode, eos_id)

    decodes = {name: by_rule(sampler) for name, sampler in RULES.items()}
    decodes |= {name: by_contrast(*options) for name, options in CONTRASTIVE.items()}
    return decodes | {name: by_beams(*options) for name, options in BEAMS.items()}


def _in_batches(decode: Decode, eos_id: int) -> Decode:
    """`decode` for any number of prompts, a batch at a time, and without EOS."""

    def each(prompts: Prompts, seed: int) -> list[list[int]]:
        batches = [decode(prompts[start : start + ROWS], seed) for start in range(0, len(prompts), ROWS)]
        rows = [row for batch in batches for row in batch]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]

    return each


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens, in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repeated(rows: Sequence[Sequence[int]], n: int = 4) -> float:
    """1 − distinct / all n-grams of a text, the mean over texts that have any (seq-rep-n, Welleck et al. 2020)."""
    counted = [grams for row in rows if (grams := ngrams(row, n))]
    return statistics.fmean([1.0 - len(set(grams)) / len(grams) for grams in counted] or [0.0])


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Distinct / all n-grams of all texts together (distinct-n, Li et al. 2016)."""
    grams = [gram for row in rows for gram in ngrams(row, n)]
    return len(set(grams)) / max(1, len(grams))


def figures(
    model: Llama, tokenizer: AnyTokenizer, stories: list[Story], rows: list[list[int]], texts: list[str] | None = None
) -> dict[str, float]:
    """The figures of one continuation of every story; `texts` are the rows decoded, if they are known."""
    texts = texts or [tokenizer.decode(row) for row in rows]
    continued = [Story(story.prompt, row, "") for story, row in zip(stories, rows, strict=True)]
    measured = {"tokens": statistics.fmean(map(len, rows)), "repeated_4grams": repeated(rows)}
    measured |= {f"distinct_{n}": distinct(rows, n) for n in (1, 2, 3)}
    measured |= {"perplexity": continuation_perplexity(model, continued), "bleu": bleu(texts, stories)}
    return {name: round(value, 4) for name, value in measured.items()}


def speeds(decodes: Mapping[str, Decode], prompts: Prompts, seed: int) -> dict[str, float]:
    """Tokens of each method per second of processor time, one prompt at a time.

    The median of rounds in which all methods take turns. Processor time, unlike a clock, forgives other programs.
    """
    rates: dict[str, list[float]] = {name: [] for name in decodes}
    for _ in tqdm(range(ROUNDS), desc="speed", unit="round"):
        for name, decode in decodes.items():
            started = time.process_time()
            count = sum(len(decode([prompt], seed)[0]) for prompt in prompts)
            rates[name].append(count / (time.process_time() - started))
    return {name: round(statistics.median(rounds), 1) for name, rounds in rates.items()}


def compare(
    model: Llama, tokenizer: AnyTokenizer, stories: list[Story], settings: DecodingSettings, measured: dict[str, Any]
) -> None:
    """Completes `measured`, and writes it to `--out` after every draw: figures only, no text."""
    target = Path(settings.out) / OUTPUT
    prompts = [story.prompt for story in stories]
    decodes = ways(model, tokenizer.eos_id, room(model, settings.max_new_tokens, settings.prompt_tokens))
    if "real text" not in measured:
        rows, texts = [story.continuation for story in stories], [story.text for story in stories]
        truth = figures(model, tokenizer, stories, rows, texts)
        measured["real text"] = {name: value for name, value in truth.items() if name != "bleu"}
    methods = measured.setdefault("methods", {name: {"draws": []} for name in decodes})
    if settings.timed:
        for name, rate in speeds(decodes, prompts[: settings.timed], settings.seed).items():
            methods[name]["tokens_per_second"] = rate
        write_json(target, measured)
    for name, decode in tqdm(decodes.items(), desc="methods", unit="method"):
        sampled = name in RULES and RULES[name].temperature > 0.0
        draws = methods[name]["draws"]
        for number in range(len(draws), settings.draws if sampled else 1):
            rows = decode(prompts, settings.seed + len(stories) * number)
            draws.append(figures(model, tokenizer, stories, rows))
            write_json(target, measured)


def earlier(settings: DecodingSettings, model_path: Path) -> dict[str, Any]:
    """What an earlier run with the same settings, model and text has measured; else only how this run is made."""
    described = {name: getattr(settings, name) for name in ("stories", "prompt_tokens", "max_new_tokens", "seed")}
    described |= {"model": digest(model_path), "corpus": [digest(path) for path in settings.corpus]}
    target = Path(settings.out) / OUTPUT
    content = read_json_object(target) if target.exists() else {}
    same = all(content.get(name) == value for name, value in described.items())
    return content if same and set(content.get("methods", ())) == set(ALL) else described


def means(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of the real text and of every method, averaged over its draws, with the gap in perplexity."""
    rows = {"real text": dict(measured["real text"])}
    for name, method in measured["methods"].items():
        draws = method["draws"]
        rows[name] = {figure: statistics.fmean(draw[figure] for draw in draws) for figure in draws[0]}
        rows[name]["gap"] = rows[name]["perplexity"] - measured["real text"]["perplexity"]
        rows[name] |= {figure: value for figure, value in method.items() if figure != "draws"}
    return rows


def table(measured: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    columns = COLUMNS | {"tokens/s": ("tokens_per_second", ".0f")}
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in means(measured).items():
        cells = [_cell(row, (names,) if isinstance(names, str) else names, spec) for names, spec in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, float], names: Sequence[str], spec: str) -> str:
    return ", ".join(format(row[name], spec) for name in names if name in row)


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """The figure: repetition against perplexity."""
    points = {name: (row["perplexity"], 100 * row["repeated_4grams"]) for name, row in means(measured).items()}
    plots.named_points(points, "perplexity of the continuations", "repeated 4-grams (%)", path)


def prepare(settings: DecodingSettings) -> cli.Work:
    """Checks everything and loads the model; returns the work. Raises ValueError or OSError."""
    check_bleu()
    documents = [document for path in settings.corpus for document in read_documents(path)]
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / OUTPUT)
    device = set_up(settings.seed, settings.use_gpu, settings.threads)
    model, tokenizer, path = load_model(settings, device, mapped=False)
    longest = model.config.max_seq_len - 2
    if settings.prompt_tokens > longest:
        raise ValueError(f"--prompt_tokens {settings.prompt_tokens}: the model's context allows {longest}")
    new = room(model, settings.max_new_tokens, settings.prompt_tokens)
    stories = choose(documents, tokenizer, settings.stories, new, settings.prompt_tokens)

    def work() -> None:
        print(f"load model from {path}")
        measured = earlier(settings, path)
        compare(model, tokenizer, stories, settings, measured)
        draw(measured, out / "decoding.png")
        print(table(measured) + f"\nwrote {out / OUTPUT} and {out / 'decoding.png'}")

    return work


def main(argv: list[str] | None = None) -> int:
    """Compares the decoding methods; see `cli.carry_out` for the exit codes."""
    settings = cli.parse_alone("decoding", DecodingSettings, (__doc__ or "").split("\n")[0], argv)
    return cli.carry_out("decoding", lambda: prepare(settings))


if __name__ == "__main__":
    sys.exit(main())
