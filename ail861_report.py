"""Tables and figures of the AIL861 run, from the logs and results that its steps left.

    python ail861.py --corpus train.txt --valid valid.txt
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import torch

import plots
import run_log
from checkpoint import load_plain
from files import write_text
from word_tokenizer import SPECIAL

STARTS = {"fasttext": "FastText, trained on", "frozen": "FastText, frozen", "random": "random"}
SMOOTHED = 50  # steps


def write_report(work: Path, out: Path, size: str) -> dict:
    """Writes results.json, tables.md and the figures into `out`; returns the results."""
    results = {"size": size, "torch": torch.__version__, "machine": platform.machine()}
    results |= {"data": _data(work), "training": _training(work), "evaluation": _evaluation(work)}
    results |= {"accumulation": _accumulation(work), "checkpointing": _checkpointing(work)}
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(out / "tables.md", _tables(results))
    _figures(work, out, results)
    for path in sorted((work / "evaluate").glob("attention-*.png")):
        shutil.copyfile(path, out / path.name)
    shutil.copyfile(work / "evaluate" / "continuations.json", out / "continuations.json")
    return results


def _data(work: Path) -> dict:
    words = json.loads((work / "words.json").read_text(encoding="utf-8"))["words"]
    config = load_plain(work / "fasttext" / "best.pt")["config"]
    return {"vocabulary": len(words), "words": len(words) - len(SPECIAL), "config": config}


def _measured(work: Path, name: str) -> list[dict]:
    return [record for record in run_log.read(work / name / "log.jsonl") if "held_out_loss" in record]


def _training(work: Path) -> dict:
    """Of each start the best validation perplexity (rows of the context's width, each seen from its own start)."""
    found = {}
    shortest = min(_measured(work, name)[-1]["step"] for name in STARTS)
    for name, label in STARTS.items():
        records = _measured(work, name)
        best = max(records, key=lambda record: record["score"])
        early = max((record for record in records if record["step"] <= shortest), key=lambda record: record["score"])
        found[label] = {
            "steps": records[-1]["step"], "words": records[-1]["targets"],
            "minutes": round(records[-1]["seconds"] / 60, 1),
            "validation_perplexity": round(best["validation_perplexity"], 3),
            f"validation_perplexity_by_step_{shortest}": round(early["validation_perplexity"], 3),
        }  # fmt: skip
    return found


def _evaluation(work: Path) -> dict:
    return json.loads((work / "evaluate" / "evaluate.json").read_text(encoding="utf-8"))


def _accumulation(work: Path) -> dict:
    found = {}
    folders = [path for path in work.glob("accumulation-*") if path.is_dir()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1])):
        last = _measured(work, folder.name)[-1]
        row = {"steps": last["step"], "seconds_per_epoch": round(last["seconds"], 1)}
        found[folder.name.split("-")[1]] = row | {"held_out_loss": round(last["held_out_loss"], 4)}
    return found


def _checkpointing(work: Path) -> dict:
    """An epoch with and without recomputation, whether they learned the same, and the measured memory."""
    plain, again = (_measured(work, name)[-1] for name in ("accumulation-1", "recomputed"))
    losses = [plots.log_points(work / name / "log.jsonl", "loss") for name in ("accumulation-1", "recomputed")]
    epoch = {"plain_seconds": round(plain["seconds"], 1), "recomputed_seconds": round(again["seconds"], 1)}
    epoch |= {"times": round(again["seconds"] / plain["seconds"], 3), "same_losses": losses[0] == losses[1]}
    return {"epoch": epoch, "step": json.loads((work / "checkpointing.json").read_text(encoding="utf-8"))}


def _table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _tables(results: dict) -> str:
    """All tables as Markdown."""
    measured, continued = results["evaluation"], results["evaluation"]["continuations"]
    training = [[name, *row.values()] for name, row in results["training"].items()]
    head = ["embeddings", "steps", "words read", "minutes", "validation perplexity", "the same, equal steps"]
    text = f"## Training\n\n{_table(head, training)}\n"
    text += (
        f"On the whole validation text ({measured['tokens']:,} words and marks, vocabulary "
        f"{measured['vocabulary']:,}, `<unk>` {measured['unknown_share']:.2%}), each word seen from at least half a "
        f"context: perplexity **{measured['perplexity_per_token']}** a word.\n\n"
    )
    decoding = [[name, row["bleu"], row["tokens_per_second"]] for name, row in continued["decoding"].items()]
    text += f"## Decoding\n\n{_table(['way', 'BLEU', 'tokens/s'], decoding)}\n"
    text += (
        f"{continued['stories']} stories, {continued['prompt_tokens']} tokens given, up to "
        f"{continued['new_tokens']} added, one story at a time; perplexity of the true continuations "
        f"**{continued['continuation_perplexity']}** a token.\n\n"
    )
    cache = continued["cache"]
    rows = [["with", cache["cached_tokens_per_second"]], ["without", cache["uncached_tokens_per_second"]]]
    text += f"## KV cache (batch of {cache['batch']})\n\n{_table(['cache', 'tokens/s'], rows)}\n"
    text += f"{cache['times_faster']} times faster; same output: {cache['same_output']}.\n\n"
    rows = [[count, *row.values()] for count, row in results["accumulation"].items()]
    text += f"## Accumulation\n\n{_table(['batches a step', 'steps', 'seconds an epoch', 'held-out loss'], rows)}\n"
    return text + _checkpointing_table(results["checkpointing"])


def _checkpointing_table(found: dict) -> str:
    epoch, step = found["epoch"], found["step"]
    plain = step["ways"]["0"]
    rows = [
        [layers if layers != "0" else "none", f"{way['saved_bytes'] / 1e6:.1f}",
         f"{plain['saved_bytes'] / way['saved_bytes']:.2f}", f"{way['seconds'] / plain['seconds']:.2f}"]
        for layers, way in step["ways"].items()
    ]  # fmt: skip
    head = ["layers recomputed at a time", "MB kept at the peak", "times less", "times the seconds"]
    return (
        f"## Gradient checkpointing\n\nOne step of {step['layers']} layers:\n\n{_table(head, rows)}\n"
        f"An epoch of the 3-layer model: {epoch['plain_seconds']} s plain, {epoch['recomputed_seconds']} s recomputed "
        f"({epoch['times']} times); same losses to the last digit: {epoch['same_losses']}.\n"
    )


def _figures(work: Path, out: Path, results: dict) -> None:
    main = work / "fasttext" / "log.jsonl"
    losses = {"training (mean of 50 steps, dropout on)": plots.log_points(main, "loss", width=SMOOTHED)[SMOOTHED:]}
    losses = {name: points for name, points in losses.items() if points}
    losses |= {"validation": plots.log_points(main, "validation_loss")}
    plots.curves(losses, "optimizer step", "loss (nats per word)", out / "loss.png")
    perplexities = {name: [(x, 2.718281828459045**y) for x, y in points] for name, points in losses.items()}
    plots.curves(perplexities, "optimizer step", "perplexity per word", out / "perplexity.png", log_up=True)
    starts = {label: plots.log_points(work / name / "log.jsonl", "validation_perplexity")
              for name, label in STARTS.items()}  # fmt: skip
    last = min(points[-1][0] for points in starts.values())
    starts = {name: [point for point in points if point[0] <= last] for name, points in starts.items()}
    plots.curves(starts, "optimizer step", "validation perplexity per word", out / "embeddings.png", log_up=True)
    series = {}
    for count, row in results["accumulation"].items():
        points = plots.log_points(work / f"accumulation-{count}" / "log.jsonl", "loss", width=max(1, 64 // int(count)))
        name = f"{count} batch{'es' if int(count) > 1 else ''} a step: {row['seconds_per_epoch']:.0f} s an epoch"
        series[name] = [(step * int(count), loss) for step, loss in points]
    plots.curves(series, "batches of 16 rows read", "training loss (nats per word)", out / "accumulation.png")
    decoding = results["evaluation"]["continuations"]["decoding"]
    points = {name: (row["tokens_per_second"], row["bleu"]) for name, row in decoding.items()}
    plots.named_points(points, "tokens per second", "BLEU", out / "decoding.png")
    ways = results["checkpointing"]["step"]["ways"]
    points = {f"{layers} at a time" if layers != "0" else "plain": (way["seconds"], way["saved_bytes"] / 1e6)
              for layers, way in ways.items()}  # fmt: skip
    plots.named_points(points, "seconds a step", "MB kept for the backward pass", out / "checkpointing.png")
