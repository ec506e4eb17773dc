"""Reports on adders: a table of all tested models, all experiments in one picture, and the heads of one model.

    python -m tasks.addition.report --models addition_models --out docs/addition_experiments.png
    python -m tasks.addition.report --heads_of addition_models/best_model/best_model.pth --out docs/addition_heads.png
    python -m tasks.addition.report --parts_of addition_models/best_model/best_model.pth --out docs/addition_parts.png
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.io.files import check_writable, read_json_object
from engine.train import run_log
from engine.train.run_log import examples_before, examples_seen
from llama import Llama
from tasks import cli, plots
from tasks.addition.batched_model import answer_targets, counted, problem_tokens
from tasks.addition.picture import Adder, experiments
from tasks.addition.problems import sample_problems
from tasks.addition.testing import load_adder
from tasks.addition.workload import answer_logits
from tasks.attention_maps import attention_weights

PUBLIC = [  # parameters, dim/layers/heads/key-value heads and accuracy of public solutions
    (3_288, "8/3/2/2", 1.0), (16_880, "16/4/4/4", 1.0), (25_200, "16/6/4/4", 1.0), (25_312, "32/2/8/4", 1.0),
    (134_880, "32/10/8/8", 1.0), (28_560, "48/1/8/8", 0.70), (25_200, "16/6/4/4", 0.085), (1_176, "8/1/2/2", 0.022),
]  # fmt: skip
POSITION_NAMES = ("start", "a3", "a2", "a1", "a0", "+", "b3", "b2", "b1", "b0", "=", "c4", "c3", "c2", "c1", "c0")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LOOKED_AT = 200  # problems whose attention is averaged


def read_models(folder: Path) -> list[dict]:
    """The results of every tested model, smallest first. Raises ValueError if there is none, or one that is damaged."""
    paths = sorted(folder.glob("*/experiment_summary.json"))
    if not paths:
        raise ValueError(f"{folder} holds no tested model: run addition_run.py test first")
    return sorted(map(_tested_model, paths), key=lambda model: (model["parameters"], -model["accuracy"]))


def _tested_model(path: Path) -> dict:
    """One model's row of the table, from its summary."""
    summary = read_json_object(path)
    try:
        training, model = summary.get("train_config", {}), summary["model_config"]
        result = training.get("result", {})
        at_the_end = result.get("seed_accuracies_at_the_end", [])
        tried = training.get("trial_seeds") or len(at_the_end)
        return {
            "name": path.parent.name,
            "parameters": int(summary["num_params"]),
            "shape": f"{model['dim']}/{model['n_layers']}/{model['n_heads']}/{model['n_kv_heads']}",
            "examples": int(examples_seen(training)),
            "minutes": round(result.get("minutes", 0) + result.get("trial", {}).get("minutes", 0), 2),
            "seeds": f"{sum(accuracy == 1 for accuracy in at_the_end)} of {tried}",
            "accuracy": float(summary["accuracy"]),
            "wrong_of_81_million": summary.get("exhaustive", {}).get("wrong"),
        }
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not the summary of a test ({type(error).__name__}: {error})") from None


def table(models: list[dict]) -> str:
    """A Markdown table, one model per line."""
    names = list(models[0])
    rows = [[_cell(model[name]) for name in names] for model in models]
    heads = [name.replace("_", " ") for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(names), *rows])


def pictured(folder: Path, models: list[dict]) -> list[Adder]:
    """The models of `read_models` that have a recipe and a log, for the picture of all experiments."""
    adders = []
    for model in models:
        path, title = folder / model["name"], _title(model["name"])
        if title and (path / "log.jsonl").is_file() and (curve := _learning_curve(path)):
            name = model["name"].removeprefix("ablation_").removesuffix("_model").removesuffix("_best")
            adders.append(Adder(name, title, model["parameters"], model["accuracy"], curve))
    return sorted(adders, key=lambda adder: (not adder.name.isdigit(), adder.name.zfill(4)))


def _learning_curve(path: Path) -> list[tuple[float, float]]:
    """(examples per model, dev accuracy of the best seed), after those of the stages before its run."""
    training = read_json_object(path / "training_config.json")
    before = examples_before(training)
    records = [record for record in run_log.read(path / "log.jsonl") if "accuracy" in record]
    return [(before + record["step"] * training.get("batch_size", 1), record["accuracy"]) for record in records]


def _title(name: str) -> str:
    """What the recipe of a model says in its first line, without its name; empty if there is no recipe."""
    recipe = RECIPES / f"{'best_adder' if name == 'best_model' else name}.toml"
    return recipe.read_text("utf-8").split("\n")[0].partition(": ")[2] if recipe.is_file() else ""


def public_points() -> list[tuple[int, float]]:
    """Parameters and accuracy of the public solutions."""
    return [(parameters, accuracy) for parameters, _, accuracy in PUBLIC]


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_heads(model: Llama, out: Path) -> None:
    """Prints `digits_without` each head and draws its attention, averaged over `LOOKED_AT` five-digit sums.

    Positions are named after their digits: a3 is the thousands digit of a, c0 the last digit of the answer.
    """
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(20 * LOOKED_AT, 0))
    long = a + b >= 10000
    a, b = a[long], b[long]
    rows = problem_tokens(a[:LOOKED_AT], b[:LOOKED_AT]).T
    maps = torch.stack([attention_weights(model, row) for row in rows]).mean(dim=0)
    plots.attention_maps(maps.tolist(), POSITION_NAMES, out)
    for layer in range(model.config.n_layers):
        for head in range(model.config.n_heads):
            without, large, carried, small = digits_without(model, layer, head, a, b)
            print(
                f"layer {layer + 1}, head {head + 1} averaged: digits right where no carry comes in {without:.3f}, one "
                f"too large {large:.3f}; right where one does {carried:.3f}, one too small {small:.3f}"
            )


@torch.no_grad()
def digits_without(model: Llama, layer: int, head: int, a: Tensor, b: Tensor) -> tuple[float, ...]:
    """What goes wrong while one head is `averaged`.

    Shares of the digits c3, c2 and c1 of five-digit sums a + b, with a and b (batch,) int64: of those without an
    incoming carry the right ones and those that are one too large, of those with one the right ones and those that are
    one too small.
    """
    size = model.config.head_dim
    with averaged(model.layers[layer].attention.compute_output, slice(head * size, (head + 1) * size)):
        given = answer_logits(model, a, b)[0].argmax(dim=0)[1:4]  # (3, batch)
    short = (answer_targets(problem_tokens(a, b))[1:4] - given) % 10
    carried = torch.stack([(a % 10**place + b % 10**place) >= 10**place for place in (3, 2, 1)])
    right = short == 0
    shares = right[~carried], short[~carried] == 9, right[carried], short[carried] == 1
    return tuple(float(share.double().mean()) for share in shares)


@contextmanager
def averaged(matrix: nn.Module, columns: slice) -> Iterator[None]:
    """Within it the inputs (batch, positions, features) at `columns` are their means over the batch at each position.

    So the head or unit that writes them says the same whatever the problem (mean ablation; Wang et al. 2022). Zero
    instead would also take away what the rest relies on in every problem.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        changed = inputs[0].clone()
        changed[..., columns] = changed[..., columns].mean(dim=0)
        return (changed,)

    handle = matrix.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


OUTCOMES = ("all digits", "digit, no carry in", "digit, carry in", "leading 1", "end after 4", "end after 5")


def draw_parts(model: Llama, out: Path) -> None:
    """Draws, and prints, what stays right while each head and each unit of the feed-forwards is `averaged`."""
    a, b = (torch.from_numpy(numbers) for numbers in sample_problems(3000, 7))
    rows = {"all as trained": outcomes(model, a, b)}
    for name, matrix, columns in parts(model):
        with averaged(matrix, columns):
            rows[name] = outcomes(model, a, b)
    for name, shares in rows.items():
        print(f"{name}: " + ", ".join(f"{label} {share:.2f}" for label, share in zip(OUTCOMES, shares, strict=True)))
    plots.shares_table(list(rows.values()), list(rows), OUTCOMES, out)


def parts(model: Llama) -> list[tuple[str, nn.Module, slice]]:
    """Every head and unit: its name, the matrix that adds its output to the residual stream, and its columns there."""
    entries, size = [], model.config.head_dim
    for index, layer in enumerate(model.layers, 1):
        attention, feed_forward = layer.attention.compute_output, layer.feed_forward.w2
        for head in range(model.config.n_heads):
            entries.append((f"layer {index}, head {head + 1}", attention, slice(head * size, (head + 1) * size)))
        for unit in range(model.config.ffn_dim):
            entries.append((f"layer {index}, unit {unit + 1}", feed_forward, slice(unit, unit + 1)))
    return entries


@torch.no_grad()
def outcomes(model: Llama, a: Tensor, b: Tensor) -> list[float]:
    """Shares of right tokens, teacher-forced, in the order of `OUTCOMES`, over sums a + b, each (batch,) int64.

    Digits are the last four of the answer, with or without a carry from the column to the right. The leading 1 and the
    end after 5 digits are those of five-digit sums, the end after 4 of four-digit sums.
    """
    tokens = problem_tokens(a, b)
    right = answer_logits(model, a, b)[0].argmax(dim=0) == answer_targets(tokens)  # (6, batch)
    five = a + b >= 10000
    place = torch.stack([torch.where(five, 4 - index, 3 - index) for index in range(6)])  # of ten; −1: the end
    power = 10 ** place.clamp(min=0)
    carried = a % power + b % power >= power
    digit = (place >= 0) & (place < 4) & counted(tokens)
    chosen = (
        digit, digit & ~carried, digit & carried, place == 4, (place == -1) & ~five & counted(tokens),
        (place == -1) & five,
    )  # fmt: skip
    return [float(right[mask].double().mean()) for mask in chosen]


def main(argv: list[str] | None = None) -> int:
    """Prints the table or draws the heads; see `cli.carry_out` for the exit codes."""
    parser = cli.new_parser("addition report", (__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="addition_models", help="folder of the models' folders")
    parser.add_argument("--heads_of", metavar="CHECKPOINT", help="draw what the heads of this model attend to instead")
    parser.add_argument("--parts_of", metavar="CHECKPOINT", help="draw what stays right without each part instead")
    parser.add_argument("--out", help="figure to write (PNG)")
    args = parser.parse_args(argv)
    return cli.carry_out("addition report", lambda: prepare(args.models, args.heads_of, args.parts_of, args.out))


def prepare(models: str, heads_of: str | None, parts_of: str | None, target: str | None) -> cli.Work:
    """Checks and reads everything; returns the work. Raises ValueError or OSError."""
    out = check_writable(target) if target else None
    checkpoint = heads_of or parts_of
    if checkpoint is not None and (out is None or (heads_of and parts_of)):
        raise ValueError("--heads_of and --parts_of draw one figure each: give one of them, and its file with --out")
    summaries = read_models(Path(models)) if checkpoint is None else []
    adder = None if checkpoint is None else load_adder(checkpoint, torch.device("cpu"))

    def work() -> None:
        if adder is not None and out is not None:
            (draw_heads if heads_of else draw_parts)(adder, out)
        else:
            _report(Path(models), summaries, out)
        if out is not None:
            print(f"wrote {out}")

    return work


def _report(folder: Path, models: list[dict], out: Path | None) -> None:
    print(table(models))
    if out is not None:
        experiments(pictured(folder, models), public_points(), out)


if __name__ == "__main__":
    sys.exit(main())
