"""The table and the figure of `tasks.methods.experiments`: each method's figures and its paired gain over a baseline.

    python -m tasks.methods.experiments --quick
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.io.files import write_text
from tasks.methods.figures import draw_gains

Records = Mapping[str, Mapping[str, Any]]
SHORTEST = 2  # runs that a deviation needs
COSTS = {  # figures of a run's result that have a column where any run has them
    "trained_parameters": ("trained parameters", "{:,.0f}"), "trained_share": ("share", "{:.2%}"),
    "peak_memory_mb": ("peak memory", "{:,.0f} MB"), "tokens_per_second": ("tokens/s", "{:,.0f}"),
}  # fmt: skip
HEADING = (
    "Written by `python -m tasks.methods.experiments`. Gains are paired over the same seeds: mean ± standard error."
)
BITS = "dev_bits_per_byte"  # of language models, instead of dev_acc; less is better


def write_comparison(results: Records, keys: Sequence[str], folder: Path) -> None:
    """Writes `README.md` and one figure per data set to `folder`, and prints the tables."""
    records = [results[key] for key in keys if key in results]
    parts = ["# Methods against their baselines", HEADING]
    for data in dict.fromkeys(record["data"] for record in records):
        own = [record for record in records if record["data"] == data]
        lines = table(own)
        parts.append("\n".join([f"## {data}", "", *lines]))
        gains = {name: gain for name, gain in dev_gains(own).items() if gain is not None}
        if gains:
            across = "change in dev bits per byte, less is better" if BITS in own[0] else "gain in dev accuracy"
            draw_gains(gains, f"{data}: {across}", folder / f"{data}.png")
            parts.append(f"![gains on {data}]({data}.png)")
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")
    print("\n\n".join(parts[2:]))
    print(f"wrote {folder / 'README.md'}")


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines: a method's runs, dev accuracy and gain, its accuracy on every set that --final looked at, costs.

    Of trained parameters and memory the largest of a method's runs is shown.
    """
    sets = list(dict.fromkeys(name for record in records for name in record.get("final", {})))
    costs = [cost for cost in COSTS if any(cost in record for record in records)]
    bits = BITS in records[0]
    shown, digits = (("dev bits per byte", "change on dev"), 4) if bits else (("dev accuracy", "gain on dev"), 3)
    header = ["method", "runs", *shown, *[f"{name} accuracy, gain" for name in sets]]
    header += [COSTS[cost][0] for cost in costs]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    by_set = {name: accuracies(records, name) for name in ("dev", *sets)}
    for method, baseline in baselines(records).items():
        dev = by_set["dev"][method]
        gain = _gain(_paired(by_set["dev"], method, baseline), digits)
        cells = [method, str(len(dev)), spread(list(dev.values()), digits), gain]
        for name in sets:
            values = list(by_set[name].get(method, {}).values())
            cells.append(f"{spread(values)}, {_gain(_paired(by_set[name], method, baseline))}" if values else "–")
        own = [record for record in records if record["method"] == method]
        cells += [_largest(own, cost) for cost in costs]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _largest(records: Sequence[Mapping[str, Any]], cost: str) -> str:
    values = [record[cost] for record in records if cost in record]
    return COSTS[cost][1].format(max(values)) if values else "–"


def baselines(records: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """The baseline of every method, in the order of the records."""
    return {record["method"]: record["baseline"] for record in records}


def accuracies(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[int, float]]:
    """Accuracy, or on dev bits per byte, on a set ("dev" or one that --final looked at), by method and seed."""
    values: dict[str, dict[int, float]] = {}
    for record in records:
        value = record.get(BITS, record.get("dev_acc")) if name == "dev" else record.get("final", {}).get(name)
        if value is not None:
            values.setdefault(record["method"], {})[record["seed"]] = value
    return values


def dev_gains(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float] | None]:
    """(mean gain, standard error) in the dev figure of every method over its baseline, or None if there is none."""
    dev = accuracies(records, "dev")
    return {method: _paired(dev, method, baseline) for method, baseline in baselines(records).items()}


def _paired(
    values: Mapping[str, Mapping[int, float]], method: str, baseline: str | None
) -> tuple[float, float] | None:
    """Mean and standard error of the differences over the seeds that both methods have; None for fewer than two."""
    own, other = values.get(method, {}), values.get(baseline or "", {})
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    if len(differences) < SHORTEST:
        return None
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def _gain(gain: tuple[float, float] | None, digits: int = 3) -> str:
    return "–" if gain is None else f"{gain[0]:+.{digits}f} ± {gain[1]:.{digits}f}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation, or the value if there is only one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < SHORTEST else f"{mean} ± {statistics.stdev(values):.{digits}f}"
