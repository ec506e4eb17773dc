"""The figures of methods: paths between two models, and gains over a baseline.

    python -m tasks.methods.experiments --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.plots import new_figure, save_figure


def interpolation(
    lines: Mapping[str, Sequence[tuple[float, float]]], ends: tuple[str, str], chosen: int, path: str | Path
) -> None:
    """Paths of (x, y) accuracies between two models, one per test set, with their ends and the chosen point marked."""
    figure, axes = new_figure()
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), ".-", color=f"C{number}", linewidth=1.2, label=name)
        for index, marker, label in ((0, "o", ends[0]), (-1, "s", ends[1]), (chosen, "*", "chosen on dev")):
            size = 14 if marker == "*" else 8
            axes.plot(*points[index], marker, color=f"C{number}", markersize=size, markeredgecolor="black",
                      label=label if number == 0 else None)  # fmt: skip
    axes.set(xlabel="accuracy on the dev set", ylabel="accuracy on the other set")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, path)


def draw_gains(values: Mapping[str, tuple[float, float]], across: str, path: str | Path) -> None:
    """A bar per name of (mean, standard error), whose whiskers are two standard errors, around a line at zero."""
    figure, axes = new_figure(height=1.2 + 0.4 * len(values))
    names = list(values)[::-1]
    means, errors = zip(*(values[name] for name in names), strict=True)
    axes.barh(names, means, xerr=[2 * error for error in errors], color="C0", alpha=0.7, capsize=3)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"{across}\n(whiskers: two standard errors)")
    axes.grid(alpha=0.3, axis="x")
    save_figure(figure, path)
