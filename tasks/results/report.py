"""Writes `results/README.md` and `results/report.pdf` from the logs and JSON files of real runs.

    make results
    python -m tasks.results.report --out results

Blocks whose source is missing are left out and listed. The same sources give the same bytes.
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from engine.io.files import write_text
from tasks import plots
from tasks.cli import new_parser
from tasks.results.sources import Block, Figure, Table, gather

WRAP = 132  # characters of small print across a page
ROW, LINE, SMALL_LINE = 0.2, 0.155, 0.125  # inches
FRAME = 0.55  # inches beside a figure's axes, for their labels


def prepare(root: Path, out: Path) -> tuple[list[Block], list[str]]:
    """Makes the output folder and reads all sources. Raises OSError if the folder cannot be made."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    return gather(root)


def main(argv: list[str] | None = None) -> int:
    """Returns 0; 1 if there is nothing to show; 2 for bad usage."""
    parser = new_parser("results.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--root", default=".", metavar="DIR", help="the project's folder")
    parser.add_argument("--out", default="results", metavar="DIR", help="folder for README.md and report.pdf")
    args: argparse.Namespace = parser.parse_args(argv)
    if not Path(args.root).is_dir():
        parser.error(f"no such folder: {args.root}")
    out = Path(args.out)
    try:
        blocks, left_out = prepare(Path(args.root), out)
        for block in blocks:
            if isinstance(block, Figure):
                plots.wide_figure(block.draw, block.columns, block.height, out / "figures" / f"{block.name}.png")
        write_text(out / "README.md", markdown(blocks, left_out))
        pages = layout(blocks, left_out)
        plots.save_report(pages, out / "report.pdf")
    except OSError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 1
    for what in left_out:
        print(f"left out: {what}")
    print(f"wrote {out / 'README.md'} and {out / 'report.pdf'} ({len(pages)} pages, {len(blocks)} blocks)")
    return 0 if blocks else 1


def markdown(blocks: list[Block], left_out: list[str]) -> str:
    """The page of results in Markdown."""
    parts = ["# Results\n\nWritten by `make results` from the logs and JSON files of real runs."]
    for block in blocks:
        parts.append(f"## {block.title}")
        if isinstance(block, Table):
            rule = ["|" + "---|" * len(block.header)]
            rows = [f"| {' | '.join(row)} |" for row in block.rows]
            parts.append("\n".join([f"| {' | '.join(block.header)} |", *rule, *rows]))
            parts += [block.note] if block.note else []
        elif isinstance(block, Figure):
            parts.append(f"![{block.title}](figures/{block.name}.png)")
        else:
            parts.append("\n".join(f"> {line}".rstrip() for line in block.text.split("\n")))
        parts.append("\n".join(["```", *block.commands, "```"]))
    if left_out:
        parts.append("## Left out, because the source is missing\n\n" + "\n".join(f"- {what}" for what in left_out))
    return "\n\n".join(parts) + "\n"


def layout(
    blocks: list[Block], left_out: list[str], title: str = "min-llama: results", opening: Sequence[str] = ()
) -> list[plots.Page]:
    """Places the title, the opening lines and the blocks in order on as many pages as they need."""
    pages = [plots.Page()]
    pages[0].text(title, 0.45, 15, weight="bold")
    _lines(pages[0], list(opening), 1.2 * LINE, 9)
    pages[0].left -= 0.2 if opening else 0.0
    for block in blocks:
        if pages[-1].left < height_of(block):
            pages.append(plots.Page())
        _put(pages[-1], block)
    if left_out:
        lines = _wrapped(["Left out, because the source is missing: " + "; ".join(left_out)])
        if pages[-1].left < LINE * len(lines):
            pages.append(plots.Page())
        pages[-1].text("\n".join(lines), LINE * len(lines), 7)
    return pages


def height_of(block: Block) -> float:
    """Height of a block on a page, in inches."""
    small = SMALL_LINE * len(_wrapped(_shown_commands(block))) + 0.25
    if isinstance(block, Table):
        return 0.36 + ROW * (len(block.rows) + 1) + LINE * len(_wrapped([block.note])) + small
    return 0.3 + small + (block.height if isinstance(block, Figure) else LINE * len(_wrapped([block.text])))


def _shown_commands(block: Block) -> list[str]:
    """The commands below a block; only the first of many, because the page of results lists all."""
    if len(block.commands) <= 6:
        return list(block.commands)
    return [*block.commands[:4], f"… and {len(block.commands) - 4} more in results/README.md"]


def _put(page: plots.Page, block: Block) -> None:
    page.text(block.title, 0.3, 11, weight="bold")
    if isinstance(block, Table):
        plots.draw_table(page.axes(ROW * (len(block.rows) + 1))[0], block.header, block.rows)
        page.left -= 0.06
        _lines(page, [block.note], LINE, 7)
    elif isinstance(block, Figure):
        block.draw(page.axes(block.height, block.columns, FRAME if block.framed else 0.05))
    else:
        _lines(page, [block.text], LINE, 7.5)
    _lines(page, _shown_commands(block), SMALL_LINE, 6, family="monospace", color="0.35")
    page.left -= 0.25


def _lines(page: plots.Page, texts: list[str], height: float, size: float, **style) -> None:
    lines = _wrapped(texts)
    if lines:
        page.text("\n".join(lines), height * len(lines), size, linespacing=72 * height / (1.2 * size), **style)


def _wrapped(texts: list[str]) -> list[str]:
    """The lines of the texts, wrapped to the page's width; empty texts give none."""
    lines = [line for text in texts if text for line in text.split("\n")]
    return [piece for line in lines for piece in (textwrap.wrap(line, WRAP, subsequent_indent="  ") or [""])]


if __name__ == "__main__":
    sys.exit(main())
