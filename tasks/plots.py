"""All figures. Only this module imports matplotlib, and only when a figure is drawn.

    python -c "from tasks import plots; plots.training_curves('models/stories.jsonl', 'models/stories.png')"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.io.files import atomic_path
from engine.train import run_log

MOST_NAMES = 8  # that fit beside their points
MARKERS = "osv^D<>Ph*X8p"


def new_figure(width: float = 7.0, height: float = 4.2):
    """A figure and its axes, without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save_figure(figure, path: str | Path) -> None:
    """Writes the figure as PNG, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def training_curves(log: str | Path, path: str | Path) -> None:
    """Training loss (smoothed over 50 steps) and held-out loss against the step, from a run's JSON-lines log."""
    figure, axes = new_figure()
    draw_training_curves(axes, run_log.read(log))
    save_figure(figure, path)


def draw_training_curves(axes, records: Sequence[dict]) -> None:
    """The records of a run's log as two curves."""
    training = [(record["step"], record["loss"]) for record in records if record.get("loss") is not None]
    held_out = [
        (record["step"], record["held_out_loss"]) for record in records if record.get("held_out_loss") is not None
    ]
    if training:
        steps, losses = zip(*training, strict=True)
        smoothed = _smooth(losses, _fifty_steps(steps))
        axes.plot(steps, smoothed, label="training (mean of 50 steps, dropout on)", linewidth=1)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out", markersize=3, linewidth=1.5)
        axes.set_ylim(top=min(axes.get_ylim()[1], 2 * held_out[0][1]))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()


def run_curves(runs: Mapping[str, Sequence[dict]], path: str | Path) -> None:
    """The losses, the accuracies and the learning rate of one or more running trainings, from their logs' records."""
    from matplotlib.figure import Figure

    panels = {"loss": "loss", "accuracy": "acc", "learning rate": "lr"}  # and what the names of its fields contain
    lines = {panel: _run_lines(runs, word) for panel, word in panels.items()}
    drawn = {panel: series for panel, series in lines.items() if series}
    figure = Figure(figsize=(7.0, 1.0 + 2.4 * max(1, len(drawn))), layout="constrained")
    for number, (panel, series) in enumerate(drawn.items(), start=1):
        draw_lines(figure.add_subplot(len(drawn), 1, number), series, "optimizer step", panel)
    save_figure(figure, path)


def _run_lines(runs: Mapping[str, Sequence[dict]], word: str) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every numeric field whose name has the word; `loss`, one value a step, smoothed."""
    lines = {}
    for run, records in runs.items():
        names = dict.fromkeys(name for record in records for name in record if word in name)
        for name in names:
            points = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
            if points and name == "loss":
                steps, losses = zip(*points, strict=True)
                points = list(zip(steps, _smooth(losses, _fifty_steps(steps)), strict=True))
            if points:
                lines[f"{run}: {name}" if len(runs) > 1 else name] = points
    return lines


def _fifty_steps(steps: Sequence[int]) -> int:
    """The number of log records in fifty steps: some logs keep every tenth step."""
    return max(1, 50 // (steps[1] - steps[0])) if len(steps) > 1 else 1


def addition_curves(log: str | Path, path: str | Path) -> None:
    """Training and dev loss, and below them the dev accuracy of every seed, from a run's log."""
    from matplotlib.figure import Figure

    records = run_log.read(log)
    training = [(record["step"], record["loss"]) for record in records if record.get("loss") is not None]
    measured = [record for record in records if "held_out_loss" in record]
    steps = [record["step"] for record in measured]
    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if training:
        above.plot(*zip(*training, strict=True), label="training (mean of the seeds)", linewidth=0.8)
    if measured:
        above.plot(steps, [record["held_out_loss"] for record in measured], label="dev (best seed)", linewidth=1.5)
        seeds = [record.get("seed_accuracies", [record["accuracy"]]) for record in measured]
        below.plot(steps, seeds, linewidth=0.8, color="0.6")
        below.plot(steps, [record["accuracy"] for record in measured], "o-", markersize=3, label="dev (best seed)")
    above.set(ylabel="loss (nats per token)", yscale="log")
    below.set(ylabel="share of right answers", xlabel="optimizer step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def confusion_matrix(
    matrix: Sequence[Sequence[int]], names: Sequence[str], path: str | Path, title: str | None = None
) -> None:
    """Counts of (true label, predicted label), each cell shaded by its share of the row."""
    side = 2.4 + 0.8 * len(names)
    figure, axes = new_figure(side + 0.6, side)
    image = draw_confusion(axes, matrix, names)
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    save_figure(figure, path)


def draw_confusion(axes, matrix: Sequence[Sequence[int]], names: Sequence[str], size: float = 10):
    """Draws the matrix into `axes` with type of `size` points; returns the image for a colour bar."""
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            colour = "white" if shares[row][column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)
    small = size < 10
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=30 if small else 0)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=size)
    axes.set_ylabel("true", fontsize=size)
    return image


def attention_maps(maps, tokens: Sequence[str], path: str | Path) -> None:
    """Weights (layers, heads, tokens, tokens) as a grid of heat maps, one row per layer; queries down, keys across."""
    from matplotlib.figure import Figure

    layers, heads, count = len(maps), len(maps[0]), len(tokens)
    side = 1.1 + 0.115 * count
    figure = Figure(figsize=(side * heads, side * layers + 0.3), layout="constrained")
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, axes in enumerate(row):
            image = axes.imshow(maps[layer][head], cmap="viridis", vmin=0.0, vmax=1.0)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
            axes.set_xticks(range(count), tokens, rotation=90, fontsize=5.5)
            axes.set_yticks(range(count), tokens, fontsize=5.5)
            axes.tick_params(length=1, pad=1)
    label = "attention weight (rows: queries, columns: keys)"
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.01, pad=0.005)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=5.5, length=1, pad=1)
    save_figure(figure, path)


def shares_table(
    shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], path: str | Path
) -> None:
    """Shares (rows, columns) between 0 and 1 as a table of coloured cells with their values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 0.95 * len(columns), 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="RdYlGn", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
    save_figure(figure, path)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    path: str | Path,
    log_up: bool = False,
    paired: bool = False,
) -> None:
    """Named lines of (x, y) points; if `paired`, each consecutive pair shares a colour."""
    figure, axes = new_figure()
    for number, (name, points) in enumerate(series.items()):
        marker = "o-" if len(points) <= 40 else "-"
        colour = f"C{number // 2 if paired else number}"
        thin = 0.7 if paired and len(points) > 40 else 1.3
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=name, markersize=4, linewidth=thin)
    axes.set(xlabel=across, ylabel=up)
    if log_up:
        axes.set_yscale("log", subs=[])
        axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    save_figure(figure, path)


def named_points(points: Mapping[str, tuple[float, float]], across: str, up: str, path: str | Path) -> None:
    """Points with their names beside them, on the side that has room, or, if there are many, in a legend."""
    figure, axes = new_figure()
    middle = (min(x for x, _ in points.values()) + max(x for x, _ in points.values())) / 2
    many = len(points) > MOST_NAMES
    for number, (name, (x, y)) in enumerate(points.items()):
        axes.plot(x, y, MARKERS[number % len(MARKERS)] if many else "o", label=name)
        if not many:
            side, offset = ("right", -7) if x > middle else ("left", 7)
            axes.annotate(name, (x, y), xytext=(offset, 4), textcoords="offset points", ha=side)
    if many:
        axes.legend(fontsize=9)
    axes.set(xlabel=across, ylabel=up)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def log_points(log: str | Path, name: str, per: str = "step", width: int = 1) -> list[tuple[float, float]]:
    """(step, value) of the log records with `name`, smoothed over `width` of them."""
    records = [record for record in run_log.read(log) if record.get(name) is not None]
    values = _smooth(tuple(record[name] for record in records), width)
    return [(record[per], value) for record, value in zip(records, values, strict=True)]


def _smooth(values: tuple[float, ...], width: int) -> list[float]:
    smoothed, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        smoothed.append(total / min(index + 1, width))
    return smoothed


def draw_images(axes: Sequence, paths: Sequence[str | Path]) -> None:
    """PNG files, one in each of the axes."""
    from matplotlib.image import imread

    for axis, path in zip(axes, paths, strict=True):
        axis.imshow(imread(path), interpolation="none")
        axis.axis("off")


def draw_lines(axes, lines: dict[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> None:
    """Named curves of (x, y)."""
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=1 + len(lines) // 8)


def draw_table(axes, header: Sequence[str], rows: Sequence[Sequence[str]], size: float = 7.5) -> None:
    """A table that fills `axes`, with columns as wide as their longest words."""
    widest = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    axes.axis("off")
    table = axes.table(
        [list(row) for row in rows], colLabels=list(header), colWidths=[width / sum(widest) for width in widest],
        bbox=(0, 0, 1, 1), cellLoc="left",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(min(size, 900 / sum(widest)))
    for (row, _), cell in table.get_celld().items():
        cell.PAD = 0.03
        cell.set_linewidth(0.3)
        if row == 0:
            cell.set_text_props(weight="bold")
            cell.set_facecolor("0.93")


def wide_figure(draw: Callable, columns: int, height: float, path: str | Path, width: float = 7.0) -> None:
    """Draws into `columns` axes side by side, `width` and `height` inches together, and writes them as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(list(figure.subplots(1, columns, squeeze=False)[0]))
    save_figure(figure, path)


PAGE = (8.27, 11.69)  # inches: A4
MARGIN = 0.7


def page_room() -> tuple[float, float]:
    """Width and height between a page's margins, in inches."""
    return PAGE[0] - 2 * MARGIN, PAGE[1] - 2 * MARGIN


class Page:
    """A page of a report, filled from the top."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure, self.left = Figure(figsize=PAGE), page_room()[1]

    def text(self, text: str, height: float, size: float, **style) -> None:
        """Lines of text in `height` inches."""
        top = (self.left + MARGIN) / PAGE[1]
        self.figure.text(MARGIN / PAGE[0], top, text, va="top", fontsize=size, parse_math=False, **style)
        self.left -= height

    def axes(self, height: float, columns: int = 1, frame: float = 0.0) -> list:
        """Axes side by side in `height` inches, with `frame` inches free for labels."""
        self.left -= height
        width = page_room()[0] / columns
        sizes = ((width - 1.3 * frame) / PAGE[0], (height - 1.1 * frame) / PAGE[1])
        bottom = (MARGIN + self.left + 0.9 * frame) / PAGE[1]
        starts = [(MARGIN + column * width + frame) / PAGE[0] for column in range(columns)]
        return [self.figure.add_axes((start, bottom, *sizes)) for start in starts]


def save_report(pages: Sequence[Page], path: str | Path) -> None:
    """Writes the pages as PDF, atomically and without a date, so that equal pages give equal bytes."""
    from matplotlib.backends.backend_pdf import PdfPages

    with atomic_path(path) as temporary, PdfPages(temporary, metadata={"CreationDate": None}) as pdf:
        for page in pages:
            pdf.savefig(page.figure)
