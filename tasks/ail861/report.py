"""Tables and figures of an AIL861 run, from the logs and results of its steps.

    python -m tasks.ail861.run --corpus train.txt --valid valid.txt
"""

from __future__ import annotations

import math
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.io.checkpoint import load_plain
from engine.io.files import as_written, read_json_object, write_json, write_text
from engine.io.word_tokenizer import SPECIAL
from engine.train import run_log
from tasks import plots

STARTS = {"fasttext": "FastText, trained on", "frozen": "FastText, frozen", "random": "random"}
SMOOTHED = 50  # steps
CLOCKS = {"cpu": "processor_seconds", "cuda": "seconds"}  # excludes the time of other processes


@dataclass(frozen=True)
class Section:
    """A table with its title and the paragraphs before and after it, in Markdown."""

    title: str
    head: list[str]
    rows: list[list]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def markdown(self) -> tuple[str, ...]:
        """The paragraphs and the table; a paragraph may be empty."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return (*self.before, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines), *self.after)


def write_report(work: Path, out: Path, size: str, device: str) -> dict:
    """Writes results.json, tables.md and the figures to `out`; returns the results.

    Times are processor seconds if `device` is "cpu", else wall-clock seconds.
    """
    clock = CLOCKS[device]
    results = {"size": size, "torch": torch.__version__, "machine": platform.machine(), "device": device}
    with as_written(work):
        results |= {"data": _data(work), "training": _training(work, clock), "evaluation": _evaluation(work)}
        results |= {"accumulation": _accumulation(work, clock), "checkpointing": _checkpointing(work, clock)}
    write_json(out / "results.json", results)
    write_text(out / "tables.md", _tables(results))
    _figures(work, out, results)
    for path in sorted((work / "evaluate").glob("attention-*.png")):
        shutil.copyfile(path, out / path.name)
    shutil.copyfile(work / "evaluate" / "continuations.json", out / "continuations.json")
    return results


def _data(work: Path) -> dict:
    words = read_json_object(work / "words.json")["words"]
    config = load_plain(work / "measured" / "best.pt")["config"]
    return {"vocabulary": len(words), "words": len(words) - len(SPECIAL), "config": config}


def _measured(work: Path, name: str) -> list[dict]:
    return [record for record in run_log.read(work / name / "log.jsonl") if "held_out_loss" in record]


def _training(work: Path, clock: str) -> dict:
    """Best validation perplexity of the measured model and of each kind of embeddings, on rows of 64 words."""
    found = {}
    for name, label in {"measured": "the measured model", **STARTS}.items():
        records = _measured(work, name)
        best = max(records, key=lambda record: record["score"])
        found[label] = {
            "steps": records[-1]["step"], "words": records[-1]["targets"], "minutes": round(records[-1][clock] / 60, 1),
            "validation_perplexity": round(best["validation_perplexity"], 3),
        }  # fmt: skip
    return found


def _evaluation(work: Path) -> dict:
    return read_json_object(work / "evaluate" / "evaluate.json")


def _accumulation(work: Path, clock: str) -> dict:
    found = {}
    folders = [path for path in work.glob("accumulation-*") if path.is_dir()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1])):
        last = _measured(work, folder.name)[-1]
        row = {"steps": last["step"], "seconds_per_epoch": round(last[clock], 1)}
        found[folder.name.split("-")[1]] = row | {"held_out_loss": round(last["held_out_loss"], 4)}
    return found


def _checkpointing(work: Path, clock: str) -> dict:
    """An epoch with and without recomputation, whether the losses are equal, and the measured memory."""
    plain, again = (_measured(work, name)[-1][clock] for name in ("accumulation-1", "recomputed"))
    losses = [plots.log_points(work / name / "log.jsonl", "loss") for name in ("accumulation-1", "recomputed")]
    epoch = {"plain_seconds": round(plain, 1), "recomputed_seconds": round(again, 1)}
    epoch |= {"times": round(again / plain, 3), "same_losses": losses[0] == losses[1]}
    return {"epoch": epoch, "step": read_json_object(work / "checkpointing.json")}


def _tables(results: dict) -> str:
    """All tables as Markdown."""
    parts = [part for section in sections(results) for part in (f"## {section.title}", *section.markdown())]
    return "\n\n".join(part for part in parts if part) + "\n"


def sections(results: dict) -> list[Section]:
    """The tables of `results.json`, each with the sentences around it."""
    return [
        _training_section(results), *_decoding_sections(results["evaluation"]["continuations"]),
        Section("Accumulation", ["batches a step", "steps", "seconds an epoch", "held-out loss"],
                [[count, *row.values()] for count, row in results["accumulation"].items()]),
        _checkpointing_section(results["checkpointing"]),
    ]  # fmt: skip


def _training_section(results: dict) -> Section:
    measured = results["evaluation"]
    rows = [[name, *row.values()] for name, row in results["training"].items()]
    head = ["embeddings", "steps", "words read", "minutes", "validation perplexity"]
    clock = "Minutes and seconds are the processor's own." if results["device"] == "cpu" else ""
    return Section("Training", head, rows, after=(
        clock,
        f"On the whole validation text ({measured['tokens']:,} words and marks, vocabulary "
        f"{measured['vocabulary']:,}, `<unk>` {measured['unknown_share']:.2%}), each word seen from at least half a "
        f"context: perplexity **{measured['perplexity_per_token']}** a word.",
    ))  # fmt: skip


def _decoding_sections(continued: dict) -> list[Section]:
    decoding = [[name, row["bleu"], row["tokens_per_second"]] for name, row in continued["decoding"].items()]
    cache = continued["cache"]
    rows = [["with", cache["cached_tokens_per_second"]], ["without", cache["uncached_tokens_per_second"]]]
    return [
        Section("Decoding", ["way", "BLEU", "tokens/s"], decoding, after=(
            f"{continued['stories']} stories, {continued['prompt_tokens']} tokens given, up to "
            f"{continued['new_tokens']} added, one story at a time; perplexity of the true continuations "
            f"**{continued['continuation_perplexity']}** a token.",
        )),
        Section(f"KV cache (batch of {cache['batch']})", ["cache", "tokens/s"], rows, after=(
            f"{cache['times_faster']} times faster; same output: {cache['same_output']}.",
        )),
    ]  # fmt: skip


def _checkpointing_section(measured: dict) -> Section:
    epoch, step = measured["epoch"], measured["step"]
    plain = step["ways"]["0"]
    rows = [
        [layers if layers != "0" else "none", f"{way['saved_bytes'] / 1e6:.1f}",
         f"{plain['saved_bytes'] / way['saved_bytes']:.2f}", f"{way['seconds'] / plain['seconds']:.2f}"]
        for layers, way in step["ways"].items()
    ]  # fmt: skip
    head = ["layers recomputed at a time", "MB kept at the peak", "times less", "times the seconds"]
    return Section("Gradient checkpointing", head, rows, (f"One step of {step['layers']} layers:",), (
        f"An epoch of the 3-layer model: {epoch['plain_seconds']} s plain, {epoch['recomputed_seconds']} s recomputed "
        f"({epoch['times']} times); same losses to the last digit: {epoch['same_losses']}.",
    ))  # fmt: skip


def _figures(work: Path, out: Path, results: dict) -> None:
    main = work / "measured" / "log.jsonl"
    losses = {f"training (mean of {SMOOTHED} steps)": _smoothed(main), "validation": _validated(main)}
    losses = {name: points for name, points in losses.items() if points}
    plots.curves(losses, "optimizer step", "loss (nats per word)", out / "loss.png")
    plots.curves(_perplexities(losses), "optimizer step", "perplexity per word", out / "perplexity.png", log_up=True)
    starts = {}
    for name, label in STARTS.items():
        log = work / name / "log.jsonl"
        starts |= {f"{label}: training": _smoothed(log), f"{label}: validation": _validated(log)}
    starts = {name: points for name, points in starts.items() if points}
    across = f"optimizer step (training: mean of {SMOOTHED}, dropout on)"
    plots.curves(_perplexities(starts), across, "perplexity per word", out / "embeddings.png", log_up=True, paired=True)
    plots.curves(_accumulated(work, results), "batches of 16 rows read", "training loss (nats per word)",
                 out / "accumulation.png")  # fmt: skip
    decoding = results["evaluation"]["continuations"]["decoding"]
    points = {name: (row["tokens_per_second"], row["bleu"]) for name, row in decoding.items()}
    plots.named_points(points, "tokens per second", "BLEU", out / "decoding.png")
    ways = results["checkpointing"]["step"]["ways"]
    points = {f"{layers} at a time" if layers != "0" else "plain": (way["seconds"], way["saved_bytes"] / 1e6)
              for layers, way in ways.items()}  # fmt: skip
    seconds = "seconds a step" if results["device"] == "cuda" else "the processor's seconds a step"
    plots.named_points(points, seconds, "MB kept for the backward pass", out / "checkpointing.png")


def _smoothed(log: Path) -> list[tuple[float, float]]:
    return plots.log_points(log, "loss", width=SMOOTHED)[SMOOTHED:]


def _validated(log: Path) -> list[tuple[float, float]]:
    return plots.log_points(log, "validation_loss")


def _perplexities(losses: dict[str, list]) -> dict[str, list]:
    return {name: [(step, math.exp(loss)) for step, loss in points] for name, points in losses.items()}


def _accumulated(work: Path, results: dict) -> dict[str, list]:
    """The loss curves of the accumulation runs against batches, labelled with the seconds per epoch."""
    series = {}
    for count, row in results["accumulation"].items():
        points = plots.log_points(work / f"accumulation-{count}" / "log.jsonl", "loss", width=max(1, 16 // int(count)))
        name = f"{count} batch{'es' if int(count) > 1 else ''} a step: {row['seconds_per_epoch']:.1f} s an epoch"
        series[name] = [(step * int(count), loss) for step, loss in points]
    return series
