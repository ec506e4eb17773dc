"""All experiments with adders in one picture: how each learned, and its accuracy against its parameters.

    python -m tasks.addition.report --models addition_models --out docs/addition_experiments.png
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import plots


@dataclass(frozen=True)
class Adder:
    """An adder in the picture of all experiments: its short name, what was changed, and what was measured."""

    name: str
    title: str
    parameters: int
    accuracy: float  # on the test
    curve: Sequence[tuple[float, float]]  # (examples, dev accuracy)

    @property
    def best(self) -> bool:
        """Whether it is the best model."""
        return self.name == "best"


def distinct_colours(count: int) -> list[tuple[float, float, float]]:
    """Colours around the circle of hues in steps of the golden ratio, light and dark in turn: no two are equal."""
    return [colorsys.hsv_to_rgb(0.618 * i % 1, (1.0, 0.65, 0.9)[i % 3], (0.85, 0.75, 0.5)[i % 3]) for i in range(count)]


def draw_experiments(axes: Sequence, adders: Sequence[Adder], public: Sequence[tuple[int, float]]) -> list:
    """All adders in two axes: dev accuracy while training, and test accuracy against parameters; returns the curves.

    Every curve and point bears its adder's name, the best model is black with a star, and public solutions, given as
    (parameters, accuracy), are grey crosses with their number of parameters.
    """
    learning, sizes = axes
    lines, ends, points = [], [], []
    for adder, colour in zip(adders, distinct_colours(len(adders)), strict=True):
        colour = (0.0, 0.0, 0.0) if adder.best else colour
        style = {"color": colour, "zorder": 3 if adder.best else 2}
        lines += learning.plot(
            *zip(*adder.curve, strict=True), linewidth=2 if adder.best else 1,
            label=f"{adder.name}: {adder.title} ({adder.parameters:,})", **style,
        )  # fmt: skip
        marker, size = ("*", 15) if adder.best else ("o", 5)
        sizes.plot(adder.parameters, adder.accuracy, marker, markersize=size, **style)
        ends.append((*adder.curve[-1], adder.name, colour))
        points.append((adder.parameters, adder.accuracy, adder.name, colour))
    for parameters, accuracy in public:
        sizes.plot(parameters, accuracy, "x", color="0.5", zorder=1)
        points.append((parameters, accuracy, f"{parameters:,}", "0.4"))
    learning.set(xscale="log", xlabel="training examples per seed", ylabel="share of right answers on dev, best seed")
    sizes.set(xscale="log", xlabel="parameters", ylabel="share of right answers on the test")
    on_curves = [point for adder in adders for point in adder.curve]
    for where, labels, avoided in ((learning, ends, on_curves), (sizes, points, [])):
        where.set_ylim(-0.04, 1.2)
        where.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
        where.grid(alpha=0.3)
        where.margins(x=0.12)
        _name_points(where, labels, avoided)
    return lines


def _name_points(axes, labels: Sequence[tuple], avoided: Sequence[tuple[float, float]]) -> None:
    """Writes the name of each (x, y, name, colour) right of it, moved up or down to where nothing else stands.

    Names also keep away from the points (x, y) in `avoided`.
    """
    low, high = (math.log10(limit) for limit in axes.get_xlim())
    across = [(math.log10(x) - low) / (high - low) for x, *_ in labels]
    taken = [(x - 0.013, x + 0.013, y) for x, (_, y, *_) in zip(across, labels, strict=True)]  # left, right, height
    taken += [(at, at, y) for x, y in avoided for at in [(math.log10(x) - low) / (high - low)]]

    def free(left: float, right: float, height: float) -> bool:
        return height >= 0.0 and not any(
            left < other[1] and other[0] < right and abs(height - other[2]) < 0.033 for other in taken
        )

    for left, (x, y, name, colour) in sorted(zip(across, labels, strict=True), key=lambda label: label[1][1]):
        left, right = left + 0.02, left + 0.025 + 0.017 * len(name)
        shifts = (sign * 0.011 * step for step in range(200) for sign in (1, -1))
        height = next(y + shift for shift in shifts if free(left, right, y + shift))
        taken.append((left, right, height))
        bottom, top = axes.get_ylim()
        axes.annotate(
            name, (x, y), (left, (height - bottom) / (top - bottom)), textcoords="axes fraction", fontsize=6.5,
            color=colour, va="center", zorder=4, bbox={"color": "white", "pad": 0.3, "alpha": 0.7},
            arrowprops=None if height == y else {"arrowstyle": "-", "linewidth": 0.4, "color": colour},
        )  # fmt: skip


def experiments(adders: Sequence[Adder], public: Sequence[tuple[int, float]], path: str | Path) -> None:
    """The picture of all experiments, with what each of them changed."""

    def draw(axes: list) -> None:
        lines = draw_experiments(axes, adders, public)
        cross = axes[1].plot([], [], "x", color="0.5", label="public solutions of the course")
        axes[0].figure.legend(handles=[*lines, *cross], loc="outside lower center", ncols=3, fontsize=7.5)

    plots.wide_figure(draw, 2, 8.0, path, width=12.0)
