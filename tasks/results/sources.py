"""What was measured, read from the logs and JSON files that real runs left: tables, figures, samples.

    python -c "from tasks.results import sources as r; print(*(block.title for block in r.gather('.')[0]), sep=', ')"
"""

from __future__ import annotations

import json
import shlex
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.io.files import read_text
from engine.train import run_log
from tasks import plots
from tasks.sentiment.data import SEPARATOR, read_examples, read_label_names
from tasks.submission.files import GENERATED, MODELS, outputs, remedy

SENTIMENT = "docs/sentiment_results.json"
REFERENCES = {  # the course's README: mean (deviation) over 10 seeds with stories42M; prompting's is Spring 2026's
    ("sst", "prompt"): ("0.197", "0.176"),
    ("sst", "finetune"): ("0.411 (0.025)", "0.399 (0.023)"),
    ("sst", "lora"): ("0.275 (0.024)", "0.269 (0.020)"),
    ("cfimdb", "prompt"): ("0.514", "–"),  # every label of its test set is a placeholder
    ("cfimdb", "finetune"): ("0.833 (0.060)", "–"),
    ("cfimdb", "lora"): ("0.510 (0.051)", "–"),
}
STORY = "models/stories"
TRAINING_FLAGS = (
    "epochs", "lr", "optimizer", "schedule", "warmup_steps", "rate_floor", "weight_decay", "max_grad_norm",
    "batch_tokens", "accumulation", "dtype", "held_out", "evaluate_every", "save_every", "patience", "seed",
)  # fmt: skip
MODEL_FLAGS = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "dropout", "rope_theta")
CURVES = 16  # as many as one figure can hold apart


@dataclass(frozen=True)
class Table:
    """A table and the commands that print or make what it holds."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    commands: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure `name`, drawn into axes side by side, `height` inches of them."""

    title: str
    name: str
    draw: Callable[[list], None]
    commands: tuple[str, ...]
    columns: int = 1
    height: float = 2.9


@dataclass(frozen=True)
class Text:
    """Words that a model wrote."""

    title: str
    text: str
    commands: tuple[str, ...]


Block = Table | Figure | Text


def gather(root: str | Path) -> tuple[list[Block], list[str]]:
    """All there is to show, in order, and for each thing that is left out what it is and the file it lacks."""
    root, blocks, left_out = Path(root), [], []
    for what, read in (
        ("sentiment, ours beside the reference and TF-IDF", sentiment_table),
        ("confusion matrices of sst", partial(confusion_figure, "sst")),
        ("confusion matrices of cfimdb", partial(confusion_figure, "cfimdb")),
        ("the addition search", addition_table),
        ("accuracy of the adders against their parameters", addition_scatter),
        ("how the adders learned", addition_curves),
        ("the shipped story model", story_table),
        ("its training curves", story_curves),
        ("its measurement on held-out stories", story_measured),
        ("samples", samples),
    ):
        try:
            blocks.append(read(root))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no such file: {Path(error.filename).relative_to(root)}" if _is_absent(error, root) else error
            left_out.append(f"{what} ({reason})")
    return blocks, left_out


def _is_absent(error: Exception, root: Path) -> bool:
    return isinstance(error, FileNotFoundError) and error.filename and Path(error.filename).is_relative_to(root)


def _json(path: Path) -> dict:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from None


def sentiment_table(root: Path) -> Table:
    """Every data set and method, mean ± deviation over seeds, beside the course's reference and TF-IDF."""
    found = _json(root / SENTIMENT)
    baseline = found.get("tfidf", {})
    rows = []
    for (data, row), seeds in sorted(_by_row(found).items(), key=lambda item: _place(*item[0])):
        runs = list(seeds.values())
        cells = [data, row, str(len(runs))]
        reference = REFERENCES.get((data, option_of(row)), ("–", "–"))
        for split, quoted in zip(("dev", "test"), reference, strict=True):
            tfidf = baseline.get(data, {}).get(f"{split}_acc")
            cells += [mean_of(runs, f"{split}_acc"), quoted, "–" if tfidf is None else f"{tfidf:.3f}"]
        rows.append(tuple(cells))
    header = ("data", "method", "seeds", "dev", "course", "TF-IDF", "test", "course", "TF-IDF")
    note = f"Accuracy of {found['model']}, mean ± sample standard deviation over seeds; {found['epochs']} epochs of "
    note += f"training in {' and '.join(_precisions(found))}. "
    note += "Course: its reference with stories42M, deviation over 10 seeds in brackets."
    if not baseline:
        note += f" Left out: TF-IDF ({SENTIMENT} has no entry tfidf; python -m bench.tfidf data/sst data/cfimdb)."
    return Table("Sentiment", header, rows, _sentiment_commands(found), note)


def _by_row(found: dict) -> dict[tuple[str, str], dict[str, dict]]:
    """The runs of each (data, row) by their seed."""
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for key, run in sorted(found["runs"].items()):
        data, row, seed = key.split(" | ")
        rows.setdefault((data, row), {})[seed] = run
    return rows


def option_of(row: str) -> str:
    """The option of `run_llama.py` behind a row of the table."""
    return "prompt" if row.startswith("zero-shot") else row.split(",")[0].split()[0]


def _place(data: str, row: str) -> tuple:
    order = ("prompt", "finetune", "lora")
    option = option_of(row)
    return data != "sst", data, order.index(option) if option in order else len(order), row


def mean_of(runs: Sequence[dict], figure: str) -> str:
    """Mean, with the deviation where there are several; a dash where no run has the figure."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _sentiment_commands(found: dict) -> tuple[str, ...]:
    """The commands that make the runs, in this order: those trained in a rarer precision by name, then all others."""
    runs = found["runs"]
    usual, *rarer = _precisions(found)
    named = [(dtype, [key for key, run in runs.items() if run.get("dtype") == dtype]) for dtype in rarer]
    return (*(_sentiment_command(found, *each, by_name=True) for each in named), _sentiment_command(found, usual, runs))


def _precisions(found: dict) -> list[str]:
    """What the runs were trained in, the commonest first."""
    counted = Counter(run["dtype"] for run in found["runs"].values() if "dtype" in run)
    return [dtype for dtype, _ in counted.most_common()] or ["float32"]


def _sentiment_command(found: dict, dtype: str, keys: Iterable[str], by_name: bool = False) -> str:
    stems, rows, seeds = (sorted(set(column)) for column in zip(*(key.split(" | ") for key in keys), strict=True))
    stems.sort(key=lambda data: data != "sst")
    model = found["model"] if found["model"] == "stories42M.pt" else f"models/{found['model']}"
    chosen = " --rows " + " ".join(f'"{row}"' for row in rows) if by_name else ""
    return (
        f"python -m bench.sentiment_table --data {' '.join(f'data/{stem}' for stem in stems)} --model {model} "
        f"--seeds {' '.join(sorted(seeds, key=int))} --epochs {found['epochs']} --dtype {dtype}{chosen}"
    )


def confusion_figure(data: str, root: Path) -> Figure:
    """True and predicted labels on the dev set `data`: of the shipped runs, else of one's own prediction files."""
    found, commands = _shipped_confusions(root, data)
    if not found:
        found, commands = _own_confusions(root, data)
    draw = partial(_draw_confusions, found)
    return Figure(f"Confusion matrices, {data} dev", f"confusion-{data}", draw, commands, len(found), 2.5)


def _shipped_confusions(root: Path, data: str) -> tuple[dict[str, dict], tuple[str, ...]]:
    """Of each option the row best on dev, and in it the first seed that is there."""
    if not (root / SENTIMENT).is_file():
        return {}, ()
    measured, best = _json(root / SENTIMENT), {}
    for (its_data, row), seeds in _by_row(measured).items():
        seed, run = next(iter(seeds.items()))
        if its_data == data and "dev_confusion" in run:
            accuracy, option = statistics.mean(each["dev_acc"] for each in seeds.values()), option_of(row)
            if option not in best or accuracy > best[option][0]:
                best[option] = accuracy, f"{row}, seed {seed}", run["dev_confusion"]
    return {title: counts for _, title, counts in best.values()}, _sentiment_commands(measured)


def _own_confusions(root: Path, data: str) -> tuple[dict[str, dict], tuple[str, ...]]:
    there = [option for option in ("prompt", "finetune", "lora") if (root / outputs(option, data)[0]).is_file()]
    if not there or not (root / "data" / f"{data}-dev.txt").is_file():
        raise FileNotFoundError(f"neither in {SENTIMENT} nor as {data}-dev-*-output.txt; make submission writes these")
    names = read_label_names(root / "data" / f"{data}-label-mapping.json")
    found = {
        option: {"names": names, "matrix": confusion(root, outputs(option, data)[0], data, names)} for option in there
    }
    return found, tuple(remedy(outputs(option, data)[0]) for option in there)


def _draw_confusions(found: dict[str, dict], axes: list) -> None:
    for place, (title, counts) in zip(axes, found.items(), strict=True):
        plots.draw_confusion(place, counts["matrix"], counts["names"], size=7)
        place.set_title(textwrap.fill(title, 30), fontsize=7)


def confusion(root: Path, name: str, data: str, names: Sequence[str]) -> list[list[int]]:
    """Counts [true][predicted] of a dev prediction file; ValueError where it does not fit its data."""
    true = read_examples(root / "data" / f"{data}-dev.txt", len(names)).labels
    lines = read_text(root / name).removesuffix("\n").split("\n")
    predicted = [int(line.partition(SEPARATOR)[0]) for line in lines]
    matrix = [[0] * len(names) for _ in names]
    if len(true) != len(predicted) or not set(predicted) <= set(range(len(names))):
        raise ValueError(f"{name} does not fit data/{data}-dev.txt")
    for label, prediction in zip(true, predicted, strict=True):
        matrix[label][prediction] += 1
    return matrix


def adders(root: Path) -> list[tuple[str, dict]]:
    """The addition models that were tested, with their summaries, from the smallest to the largest, the best last."""
    found = [(path.parent.name, _json(path)) for path in (root / MODELS).glob("*/experiment_summary.json")]
    if not found:
        raise FileNotFoundError(f"no such file: {MODELS}/*/experiment_summary.json")
    return sorted(found, key=lambda item: (item[0] == "best_model", item[1]["num_params"], item[0]))


def addition_table(root: Path) -> Table:
    """Every adder: its shape, its size, what it has seen and how often it is right."""
    rows, commands = [], []
    for name, summary in adders(root):
        config, training = summary["model_config"], summary.get("train_config", {})
        shape = "/".join(str(config[key]) for key in ("dim", "n_layers", "n_heads", "n_kv_heads"))
        examples = run_log.examples_seen(training)
        seeds, exhaustive = training.get("trial_seeds") or training.get("seeds", "–"), summary.get("exhaustive")
        every = f"{exhaustive['asked'] - exhaustive['wrong']:,}" if exhaustive else "–"
        rows.append((
            name, shape, str(config.get("hidden_dim") or "–"), f"{config.get('rope_theta', 10000):g}",
            f"{summary['num_params']:,}", f"{examples:,}" if examples else "–", str(seeds),
            f"{summary['accuracy']:.4f}", every,
        ))  # fmt: skip
        if "command" in training:
            commands.append(training["command"])
        commands.append(f"python addition_run.py test --checkpoint {MODELS}/{name}/best_model.pth")
    header = ("model", "dim/layers/heads/kv", "FFN", "theta", "parameters", "examples", "seeds", "test", "right of all")
    note = "Test: share of right answers on 10,000 problems; all: 81,000,000. FFN –: the course's width."
    return Table("Addition", header, rows, tuple(commands), note)


def addition_scatter(root: Path) -> Figure:
    """Accuracy against parameters."""
    points = [(name, summary["num_params"], summary["accuracy"]) for name, summary in adders(root)]
    command = f"python addition_run.py test --checkpoint {MODELS}/NAME/best_model.pth"
    title = "Addition: accuracy on the test against parameters"
    return Figure(title, "addition-parameters", lambda axes: plots.draw_scatter(axes[0], points), (command,))


def addition_curves(root: Path) -> Figure:
    """The share of right answers on the dev problems as each adder trains."""
    curves = {}
    for name, _ in adders(root)[-CURVES:]:
        path = root / MODELS / name / "log.jsonl"
        measured = [record for record in run_log.read(path) if "accuracy" in record] if path.is_file() else []
        if measured:
            curves[name] = [(record["step"], record["accuracy"]) for record in measured]
    if not curves:
        raise FileNotFoundError(f"no such file: {MODELS}/*/log.jsonl")
    draw = partial(_draw_addition_curves, curves)
    command = f"python addition_run.py train … --save_dir {MODELS}/NAME   (the table's commands in full)"
    return Figure("Addition: right answers on dev as training goes", "addition-curves", draw, (command,))


def _draw_addition_curves(curves: dict, axes: list) -> None:
    plots.draw_lines(axes[0], curves, "optimizer step", "share of right answers on dev")


def story_table(root: Path) -> Table:
    """What the shipped model is and how it was trained."""
    found = _json(root / f"{STORY}.json")
    shown = {name: found["config"][name] for name in ("vocab_size", *MODEL_FLAGS)}
    shown |= {name: value for name, value in found["result"].items()}
    cells = [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
             for name, value in shown.items()]  # fmt: skip
    half = -(-len(cells) // 2)
    rows = [(*one, *other) for one, other in zip(cells[:half], [*cells[half:], ("", "")], strict=False)]
    return Table("The shipped story model", ("setting", "value") * 2, rows, (story_command(found),))


def story_command(found: dict) -> str:
    """The command that trains the shipped model, every setting spelled out."""
    settings = found["config"] | found["training"]
    words = ["python", "run_llama.py", "--option", "pretrain", "--corpus", "TEXT"]
    words += ["--tokenizer", f"{STORY}.model", "--save_dir", "runs/stories", "--export", f"{STORY}.pt"]
    for name in (*MODEL_FLAGS, *TRAINING_FLAGS):
        if settings.get(name) is not None:
            words += [f"--{name}", str(settings[name])]
    return shlex.join(words)


def story_curves(root: Path) -> Figure:
    """Training and held-out loss of the shipped model."""
    records = run_log.read(root / f"{STORY}.jsonl")
    command = story_command(_json(root / f"{STORY}.json"))
    draw = partial(_draw_story_curves, records)
    return Figure("The shipped story model's training", "stories", draw, (command,))


def _draw_story_curves(records: list[dict], axes: list) -> None:
    plots.draw_training_curves(axes[0], records)


def story_measured(root: Path) -> Table:
    """What `--option evaluate` wrote into `models/evaluate.json`."""
    found = _json(root / "models" / "evaluate.json")
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in found.items() if isinstance(value, int | float)]
    command = "python run_llama.py --option evaluate --corpus TEXT --save_dir models"
    return Table("The shipped story model on stories it has not seen", ("measure", "value"), rows, (command,))


def samples(root: Path) -> Text:
    """The continuations of the course's sentence: those that ship in `docs`, else one's own."""
    folder = root / "docs" if (root / "docs" / GENERATED[0]).is_file() else root
    texts = [f"({name})\n{read_text(folder / name).strip()}" for name in _there(folder, GENERATED)]
    return Text("The course's sentence, continued", "\n\n".join(texts), (remedy(GENERATED[0]),))


def _there(folder: Path, names: Iterable[str]) -> list[str]:
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"no such file: docs/{GENERATED[0]}")
    return found
