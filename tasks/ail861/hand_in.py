"""AIL861's hand-in: writes its README.md and report.pdf from the results of a run, packs the zip and checks it.

    make submission COURSE=ail861 ENTRY=2025XYZ123 HUB=user/repo
    python -m tasks.ail861.hand_in --entry 2025XYZ123 --hub user/repo
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import re
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engine.io.files import check_readable, read_json, read_json_object, read_text, write_text
from tasks import cli, plots
from tasks.ail861.flags import HandInSettings
from tasks.ail861.report import sections
from tasks.results.report import layout
from tasks.results.sources import Block, Figure, Table, Text
from tasks.submission.check import make_zip, summary
from tasks.submission.files import AIL861, check_andrew_id

OWN, SHIPPED = Path("runs") / "ail861" / "results", Path("results") / "ail861"
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NO_HUB = "not on a hub yet"
COMMAND = "make ail861 CORPUS=train.txt VALID=valid.txt"
ATTENTION = tuple(f"attention-{number}" for number in (1, 2, 3))
FIGURES = {  # by the section's title: the figures below its table
    "Training": {
        "Loss and perplexity of the measured model": ("loss", "perplexity"),
        "FastText, frozen FastText and random embeddings": ("embeddings",),
    },
    "Decoding": {"BLEU against speed": ("decoding",)},
    "Accumulation": {"Training loss by batches a step": ("accumulation",)},
    "Gradient checkpointing": {"Memory against time of one step": ("checkpointing",)},
}
SAMPLES = 5
PARTS = {  # of the assignment: where the code is
    "word tokens and FastText vectors": "engine/io/word_tokenizer.py, tasks/stories/fasttext.py",
    "the decoder, sinusoidal positions": "llama.py, engine/model/positions.py",
    "training, gradient accumulation": "engine/train/trainer.py, tasks/stories/pretrain.py",
    "sampling and beam search": "engine/decode/sampling.py, engine/decode/beam.py",
    "KV cache": "engine/model/kv_cache.py, engine/decode/loop.py",
    "gradient checkpointing, by hand": "engine/model/gradient_checkpointing.py, bench/checkpointing.py",
    "perplexity, BLEU, attention maps": "tasks/stories/continuations.py, tasks/attention_maps.py",
    "all commands in order": "tasks/ail861/run.py",
}


def hub_link(hub: str | None) -> str:
    """The model's address. Raises ValueError for what is neither USER/REPO nor a link."""
    if hub is None or hub.startswith("https://"):
        return hub or NO_HUB
    if not HUB.fullmatch(hub):
        raise ValueError(f"--hub {hub!r} is neither USER/REPO nor a link that starts with https://")
    return f"https://huggingface.co/{hub}"


def results_folder(given: str | None) -> Path:
    """The folder of the results: the given one, the own run's, or the shipped one. Raises OSError if it is none."""
    folder = Path(given) if given else OWN if (OWN / "results.json").is_file() else SHIPPED
    names = {name for figures in FIGURES.values() for row in figures.values() for name in row}
    needed = ["results.json", "tables.md", "continuations.json", *sorted(f"{name}.png" for name in names)]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise FileNotFoundError(f"no {missing[0]} in {folder}: {COMMAND} writes it")
    return folder


def report_blocks(folder: Path, discussion: str | None) -> list[Block]:
    """The report: the model, every table with its figures, continuations, and the attention of every head.

    Raises ValueError for results that `tasks.ail861.run` did not write.
    """
    results = read_json_object(folder / "results.json")
    try:
        blocks = _blocks(folder, results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} does not hold the results of {COMMAND}: {error!r} in its JSON files") from None
    if discussion is not None:
        blocks.insert(1, Text("Discussion", read_text(discussion).strip(), ()))
    return blocks


def _blocks(folder: Path, results: dict) -> list[Block]:
    blocks: list[Block] = [_model(results)]
    for section in sections(results):
        rows = [tuple(map(str, row)) for row in section.rows]
        note = "\n".join(part for part in (*section.before, *section.after) if part)
        blocks.append(Table(section.title, tuple(section.head), rows, (), note.replace("**", "").replace("`", "")))
        blocks += [_figure(folder, title, names) for title, names in FIGURES.get(section.title, {}).items()]
        if section.title == "Decoding":
            blocks.append(_samples(folder))
    shown = [name for name in ATTENTION if (folder / f"{name}.png").is_file()]
    maps = [_figure(folder, f"Attention of every head, story {name[-1]}", (name,)) for name in shown]
    return [*blocks, *maps]


def _model(results: dict) -> Table:
    config, data = results["data"]["config"], results["data"]
    cells = {
        "layers": config["n_layers"], "heads": config["n_heads"], "width": config["dim"],
        "context": config["max_seq_len"], "positions": config["position_embedding_type"],
        "feed-forward": config["ffn_type"], "norm": f"{config['norm_type']}, {config['norm_position']}-norm",
        "vocabulary": f"{data['words']:,} words and {data['vocabulary'] - data['words']} marks",
        "machine": f"{results['machine']}, {results['device']}", "size of the run": results["size"],
    }  # fmt: skip
    pairs = list(cells.items())
    rows = [(*map(str, left), *map(str, right)) for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
    return Table("The model", ("setting", "value") * 2, rows, ())


def _figure(folder: Path, title: str, names: Sequence[str]) -> Figure:
    paths = [folder / f"{name}.png" for name in names]
    return Figure(title, names[0], partial(plots.draw_images, paths=paths), (), len(names), 2.75, framed=False)


def _samples(folder: Path) -> Text:
    stories = read_json(folder / "continuations.json")[:SAMPLES]
    texts = ["\n".join(f"{name}: {text}" for name, text in story.items()) for story in stories]
    return Text(f"Continuations of {len(stories)} validation stories", "\n\n".join(texts), ())


def readme(entry: str, link: str, folder: Path) -> str:
    """The README.md of the zip: the model's address at its top, then how to run it, where what is, and the tables."""
    parts = "\n".join(f"| {part} | {', '.join(f'`{path}`' for path in paths.split(', '))} |"
                      for part, paths in PARTS.items())  # fmt: skip
    figures = "\n".join(f"![{path.stem}](results/{path.name})" for path in sorted(folder.glob("*.png")))
    return (
        f"# AIL861: a decoder from scratch\n\nEntry number: {entry}\n\nTrained model: {link}\n\n"
        "`report.pdf` shows the experiments, `results/` their figures and numbers.\n\n"
        f"## Run it\n\n```\nbash setup.sh --offline\n{COMMAND}\n```\n\n"
        "The two files hold stories, one per line or separated by `<|endoftext|>`. The run takes its steps one by one "
        "and can be interrupted; `python -m tasks.ail861.run --help` lists its sizes.\n\n"
        f"## Where what is\n\n| part of the assignment | code |\n| --- | --- |\n{parts}\n\n"
        f"# Results\n\n{read_text(folder / 'tables.md')}\n## Figures\n\n{figures}\n"
    )


def write_documents(settings: HandInSettings, folder: Path, blocks: list[Block], made: Path) -> None:
    """Writes README.md, report.pdf and `results/` of the zip to `made`, which is emptied first."""
    shutil.rmtree(made, ignore_errors=True)
    (made / "results").mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".md", ".png"):
            shutil.copyfile(path, made / "results" / path.name)
    link = hub_link(settings.hub)
    write_text(made / "README.md", readme(settings.entry, link, folder))
    opening = [f"Entry number: {settings.entry}", f"Trained model: {link}", f"Made by: {COMMAND}"]
    plots.save_report(layout(blocks, [], "AIL861: a decoder from scratch", opening), made / "report.pdf")


def prepare(settings: HandInSettings) -> cli.Work:
    """Checks the entry number, the hub and the results; returns the work. Raises ValueError or OSError."""
    root = Path.cwd()
    if not (root / "run_llama.py").is_file():
        raise FileNotFoundError("no run_llama.py here: run this in the project's own folder")
    entry, link = check_andrew_id(settings.entry), hub_link(settings.hub)
    folder = results_folder(settings.results)
    if settings.discussion is not None:
        check_readable(settings.discussion)
    blocks = report_blocks(folder, settings.discussion)

    def work() -> None:
        write_documents(settings, folder, blocks, root / AIL861.made)
        target = root / f"{entry}.zip"
        findings = make_zip(root, entry, AIL861, target)
        if findings.problems:
            print(*(f"- {problem}" for problem in findings.problems), sep="\n", file=sys.stderr)
            raise ChildProcessError(f"{target.name} is not written: {len(findings.problems)} problems, see above")
        print(summary(Path(target.name), findings, AIL861))
        print("\n".join([*(f"note: {note}" for note in findings.notes), *_remarks(folder, link)]))

    return work


def _remarks(folder: Path, link: str) -> list[str]:
    """What the student must still do."""
    lines = [f"report.pdf and README.md are made from {folder}; the model: {link}"]
    if folder == SHIPPED:
        lines.append(f"NOT your own run: these results ship with the project. {COMMAND} makes yours")
    if link == NO_HUB:
        lines.append("The brief wants the trained model on a hub: upload it, then add HUB=USER/REPO (--hub USER/REPO)")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Makes the zip. Exit code 2 for bad input, 1 if the check of the zip finds a problem."""
    settings = cli.parse_alone("hand_in", HandInSettings, __doc__.split("\n")[0], argv)
    return cli.carry_out("hand_in", lambda: prepare(settings))


if __name__ == "__main__":
    sys.exit(main())
