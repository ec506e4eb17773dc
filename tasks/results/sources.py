"""Reads the logs and JSON files of real runs into tables, figures and samples for `python -m tasks.results.report`."""

from __future__ import annotations

import os
import shlex
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.io.files import as_written, read_json_object, read_text
from engine.train import run_log
from tasks import plots
from tasks.addition.picture import draw_experiments
from tasks.addition.report import pictured, public_points, read_models
from tasks.sentiment.data import SEPARATOR, read_examples, read_label_names
from tasks.submission.files import GENERATED, MODELS, ZERO_SHOT_REFERENCES, outputs, remedy

SENTIMENT = "docs/sentiment_results.json"
SPRING = ZERO_SHOT_REFERENCES["spring2026"]
REFERENCES = {  # the course's, with stories42M: mean (deviation) over 10 seeds; prompting: Spring 2026
    ("sst", "prompt"): (f"{SPRING['sst-dev']:.3f}", f"{SPRING['sst-test']:.3f}"),
    ("sst", "finetune"): ("0.411 (0.025)", "0.399 (0.023)"),
    ("sst", "lora"): ("0.275 (0.024)", "0.269 (0.020)"),
    ("cfimdb", "prompt"): (f"{SPRING['cfimdb-dev']:.3f}", "–"),  # placeholder test labels
    ("cfimdb", "finetune"): ("0.833 (0.060)", "–"),
    ("cfimdb", "lora"): ("0.510 (0.051)", "–"),
}
STORY = "models/stories"
TRAINING_FLAGS = (
    "epochs", "lr", "optimizer", "schedule", "warmup_steps", "rate_floor", "weight_decay", "max_grad_norm",
    "batch_tokens", "accumulation", "dtype", "held_out", "evaluate_every", "save_every", "patience", "seed",
)  # fmt: skip
MODEL_FLAGS = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "dropout", "rope_theta")


@dataclass(frozen=True)
class Table:
    """A table and the commands that make its figures."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    commands: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure `name` of `columns` axes side by side, `height` inches high."""

    title: str
    name: str
    draw: Callable[[list], None]
    commands: tuple[str, ...]
    columns: int = 1
    height: float = 2.9
    framed: bool = True  # the axes need room for labels; pictures do not


@dataclass(frozen=True)
class Text:
    """Text that a model wrote."""

    title: str
    text: str
    commands: tuple[str, ...]


Block = Table | Figure | Text


def gather(root: str | Path) -> tuple[list[Block], list[str]]:
    """All blocks in order, and what is left out, each with the file it lacks."""
    root, blocks, left_out = Path(root), [], []
    for what, read in (
        ("sentiment, ours beside the reference and TF-IDF", sentiment_table),
        ("confusion matrices of sst", partial(confusion_figure, "sst")),
        ("confusion matrices of cfimdb", partial(confusion_figure, "cfimdb")),
        ("the addition search", addition_table),
        ("all experiments with adders in one picture", addition_experiments),
        ("the shipped story model", story_table),
        ("its training curves", story_curves),
        ("its measurement on held-out stories", story_measured),
        ("samples", samples),
    ):
        try:
            blocks.append(read(root))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            left_out.append(f"{what} ({_reason(error, root)})")
    return blocks, left_out


def _reason(error: Exception, root: Path) -> str:
    """The error's text, with the path of a missing file relative to `root`."""
    text = f"no such file: {error.filename}" if isinstance(error, FileNotFoundError) and error.filename else str(error)
    return text.replace(f"{root}{os.sep}", "")


def sentiment_table(root: Path) -> Table:
    """Accuracy of each method on each data set, mean ± deviation over seeds, with the reference and TF-IDF."""
    measured = read_json_object(root / SENTIMENT)
    baseline = measured.get("tfidf", {})
    rows = []
    for (data, row), seeds in sorted(_by_row(measured).items(), key=lambda item: _order(*item[0])):
        runs = list(seeds.values())
        cells = [data, row, str(len(runs))]
        reference = REFERENCES.get((data, option_of(row)), ("–", "–"))
        for split, quoted in zip(("dev", "test"), reference, strict=True):
            tfidf = baseline.get(data, {}).get(f"{split}_acc")
            cells += [mean_of(runs, f"{split}_acc"), quoted, "–" if tfidf is None else f"{tfidf:.3f}"]
        rows.append(tuple(cells))
    header = ("data", "method", "seeds", "dev", "course", "TF-IDF", "test", "course", "TF-IDF")
    note = f"Accuracy of {measured['model']}, mean ± sample standard deviation over seeds, after "
    note += f"{measured['epochs']} epochs of training in {' and '.join(_precisions(measured))}. "
    note += "Course: its reference with stories42M, with the deviation over 10 seeds in brackets."
    if not baseline:
        note += f" Left out: TF-IDF ({SENTIMENT} has no entry tfidf; python -m bench.tfidf data/sst data/cfimdb)."
    return Table("Sentiment", header, rows, _sentiment_commands(measured), note)


def _by_row(measured: dict) -> dict[tuple[str, str], dict[str, dict]]:
    """The runs of each (data set, row), by seed."""
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for key, run in sorted(measured["runs"].items()):
        data, row, seed = key.split(" | ")
        rows.setdefault((data, row), {})[seed] = run
    return rows


def option_of(row: str) -> str:
    """The option of `run_llama.py` that makes a row of the table."""
    return "prompt" if row.startswith("zero-shot") else row.split(",")[0].split()[0]


def _order(data: str, row: str) -> tuple:
    order = ("prompt", "finetune", "lora")
    option = option_of(row)
    return data != "sst", data, order.index(option) if option in order else len(order), row


def mean_of(runs: Sequence[dict], figure: str) -> str:
    """Mean of a figure, with the deviation if several runs have it; a dash if none has."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _sentiment_commands(measured: dict) -> tuple[str, ...]:
    """The commands that make the runs: first the rows trained in a rarer precision, by name, then all others."""
    runs = measured["runs"]
    usual, *rarer = _precisions(measured)
    named = [(dtype, [key for key, run in runs.items() if run.get("dtype") == dtype]) for dtype in rarer]
    return (
        *(_sentiment_command(measured, *each, by_name=True) for each in named),
        _sentiment_command(measured, usual, runs),
    )


def _precisions(measured: dict) -> list[str]:
    """The precisions of training, the most frequent first."""
    counts = Counter(run["dtype"] for run in measured["runs"].values() if "dtype" in run)
    return [dtype for dtype, _ in counts.most_common()] or ["float32"]


def _sentiment_command(measured: dict, dtype: str, keys: Iterable[str], by_name: bool = False) -> str:
    stems, rows, seeds = (sorted(set(column)) for column in zip(*(key.split(" | ") for key in keys), strict=True))
    stems.sort(key=lambda data: data != "sst")
    name = measured["model"]
    model = name if name == "stories42M.pt" else f"models/{name}"
    chosen = " --rows " + " ".join(f'"{row}"' for row in rows) if by_name else ""
    return (
        f"python -m bench.sentiment_table --data {' '.join(f'data/{stem}' for stem in stems)} --model {model} "
        f"--seeds {' '.join(sorted(seeds, key=int))} --epochs {measured['epochs']} --dtype {dtype}{chosen}"
    )


def confusion_figure(data: str, root: Path) -> Figure:
    """Confusion matrices on the dev set of `data`: of the shipped runs, else of the prediction files in `root`."""
    matrices, commands = _shipped_confusions(root, data)
    if not matrices:
        matrices, commands = _own_confusions(root, data)
    title, draw = f"Confusion matrices, {data} dev", partial(_draw_confusions, data, matrices)
    return Figure(title, f"confusion-{data}", draw, commands, len(matrices), 2.5)


def _shipped_confusions(root: Path, data: str) -> tuple[dict[str, dict], tuple[str, ...]]:
    """For each option the row with the best dev accuracy, first seed."""
    if not (root / SENTIMENT).is_file():
        return {}, ()
    measured, best = read_json_object(root / SENTIMENT), {}
    for (its_data, row), seeds in _by_row(measured).items():
        seed, run = next(iter(seeds.items()))
        if its_data == data and "dev_confusion" in run:
            accuracy, option = statistics.mean(each["dev_acc"] for each in seeds.values()), option_of(row)
            if option not in best or accuracy > best[option][0]:
                best[option] = accuracy, f"{row}, seed {seed}", run["dev_confusion"]
    return {title: counts for _, title, counts in best.values()}, _sentiment_commands(measured)


def _own_confusions(root: Path, data: str) -> tuple[dict[str, dict], tuple[str, ...]]:
    made = [option for option in ("prompt", "finetune", "lora") if (root / outputs(option, data)[0]).is_file()]
    if not made or not (root / "data" / f"{data}-dev.txt").is_file():
        raise FileNotFoundError(f"neither in {SENTIMENT} nor as {data}-dev-*-output.txt; make submission writes these")
    names = read_label_names(root / "data" / f"{data}-label-mapping.json")
    matrices = {
        option: {"names": names, "matrix": confusion(root, outputs(option, data)[0], data, names)} for option in made
    }
    return matrices, tuple(remedy(outputs(option, data)[0]) for option in made)


def _draw_confusions(data: str, matrices: dict[str, dict], axes: list) -> None:
    for axis, (title, counts) in zip(axes, matrices.items(), strict=True):
        matrix = counts["matrix"]
        accuracy = sum(row[label] for label, row in enumerate(matrix)) / sum(map(sum, matrix))
        plots.draw_confusion(axis, matrix, counts["names"], size=7)
        axis.set_title(textwrap.fill(f"{data} dev, {title}: accuracy {accuracy:.3f}", 32), fontsize=7)


def confusion(root: Path, name: str, data: str, names: Sequence[str]) -> list[list[int]]:
    """Counts [true][predicted] of a dev prediction file. Raises ValueError if it does not fit its data."""
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
    """The tested addition models with their summaries, smallest first, the best model last."""
    summaries = [(path.parent.name, _summary(path)) for path in (root / MODELS).glob("*/experiment_summary.json")]
    if not summaries:
        raise FileNotFoundError(f"no such file: {MODELS}/*/experiment_summary.json")
    return sorted(summaries, key=lambda item: (item[0] == "best_model", item[1]["num_params"], item[0]))


def _summary(path: Path) -> dict:
    summary = read_json_object(path)
    with as_written(path):
        return summary | {"num_params": int(summary["num_params"]), "accuracy": float(summary["accuracy"])}


def addition_table(root: Path) -> Table:
    """Each adder's shape, size, training examples and accuracy."""
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
    header = ("model", "dim/layers/heads/kv", "FFN", "theta", "parameters", "examples", "seeds", "test", "all problems")
    note = "Test: accuracy on 10,000 problems. All problems: correct of 81,000,000. FFN –: the course's width."
    return Table("Addition", header, rows, tuple(commands), note)


def addition_experiments(root: Path) -> Figure:
    """Dev accuracy of each adder during training, and its test accuracy against its parameters."""
    drawn = pictured(root / MODELS, read_models(root / MODELS)) if adders(root) else []
    if not drawn:
        raise FileNotFoundError(f"no such file: {MODELS}/*/log.jsonl")
    return Figure(
        "Addition: all experiments (names as in the table)", "addition-experiments",
        lambda axes: draw_experiments(axes, drawn, public_points()),
        (f"python -m tasks.addition.report --models {MODELS} --out runs/addition_experiments.png",), 2, 4.4,
    )  # fmt: skip


def story_table(root: Path) -> Table:
    """Shape and training result of the shipped model."""
    made = read_json_object(root / f"{STORY}.json")
    shown = {name: made["config"][name] for name in ("vocab_size", *MODEL_FLAGS)} | made["result"]
    cells = [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
             for name, value in shown.items()]  # fmt: skip
    half = -(-len(cells) // 2)
    rows = [(*one, *other) for one, other in zip(cells[:half], [*cells[half:], ("", "")], strict=False)]
    return Table("The shipped story model", ("setting", "value") * 2, rows, (story_command(made),))


def story_command(made: dict) -> str:
    """The command that trains the shipped model, with every setting."""
    settings = made["config"] | made["training"]
    words = ["python", "run_llama.py", "--option", "pretrain", "--corpus", "TEXT"]
    words += ["--tokenizer", f"{STORY}.model", "--save_dir", "runs/stories", "--export", f"{STORY}.pt"]
    for name in (*MODEL_FLAGS, *TRAINING_FLAGS):
        if settings.get(name) is not None:
            words += [f"--{name}", str(settings[name])]
    return shlex.join(words)


def story_curves(root: Path) -> Figure:
    """Training and held-out loss of the shipped model."""
    records = run_log.read(root / f"{STORY}.jsonl")
    command = story_command(read_json_object(root / f"{STORY}.json"))
    title = "Training of the shipped story model"
    return Figure(title, "stories", lambda axes: plots.draw_training_curves(axes[0], records), (command,))


def story_measured(root: Path) -> Table:
    """The measures that `--option evaluate` wrote into `models/evaluate.json`."""
    measured = read_json_object(root / "models" / "evaluate.json")
    numbers = {name: value for name, value in measured.items() if isinstance(value, int | float)}
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in numbers.items()]
    command = "python run_llama.py --option evaluate --corpus TEXT --save_dir models"
    return Table("The shipped story model on unseen stories", ("measure", "value"), rows, (command,))


def samples(root: Path) -> Text:
    """The continuations of the course's sentence: those in `docs`, else those in `root`."""
    folder = root / "docs" if (root / "docs" / GENERATED[0]).is_file() else root
    texts = [f"({name})\n{read_text(folder / name).strip()}" for name in _existing(folder, GENERATED)]
    return Text("The course's sentence, continued", "\n\n".join(texts), (remedy(GENERATED[0]),))


def _existing(folder: Path, names: Iterable[str]) -> list[str]:
    existing = [name for name in names if (folder / name).is_file()]
    if not existing:
        raise FileNotFoundError(f"no such file: docs/{GENERATED[0]}")
    return existing
