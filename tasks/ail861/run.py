"""The AIL861 assignment from end to end: a decoder from scratch on stories, and every measurement it asks for.

    make ail861 CORPUS=train.txt VALID=valid.txt
    python -m tasks.ail861.run --corpus train.txt --valid valid.txt --size small --save_dir results/ail861

Each step is a separate command (`--show` prints them all) with a log beside its results. Finished steps are skipped
and interrupted ones resume when the same command is started again.
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import dataclasses
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import check_readable, write_text
from engine.io.locks import hold_folder
from tasks import cli
from tasks.ail861 import report as ail861_report
from tasks.ail861.flags import Ail861Settings
from tasks.stories.data import SEPARATOR, read_documents
from tasks.stories.fasttext import require_gensim

SHOW_EVERY = 10.0  # seconds between lines about a running step
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Size:
    """The size of a run. Fixed by the assignment: 3 layers, 8 heads, context 64, mini-batches of 16 rows, Adam 3e-4."""

    vocabulary: int
    dim: int
    epochs: int  # of the measured model
    rows: int  # of 64 tokens per training step of that model
    lr: float  # its peak learning rate
    dropout: float  # its dropout; a short training needs none
    evaluate_every: int  # steps between evaluations of that model
    starts: int  # stories for comparing FastText, random and frozen embeddings
    part: int  # stories for the accumulation and recomputation runs
    starts_evaluate_every: int = 100
    stories: int = 50
    vector_epochs: int = 5
    bench_layers: int = 12
    rounds: int = 7
    dtype: str = "float32"


LAYERS, HEADS, CONTEXT, MICRO_ROWS, RATE, WARMUP = 3, 8, 64, 16, 3e-4, 100
STARTS = ("fasttext", "random", "frozen")
ACCUMULATIONS = (1, 2, 4, 8)


def size_of(name: str) -> Size:
    """The size in `recipes/ail861_NAME.toml`."""
    return Size(**tomllib.loads((ROOT / "recipes" / f"ail861_{name}.toml").read_text("utf-8"))["size"])


@dataclass(frozen=True)
class Step:
    """A command, and the file that shows that it is done."""

    name: str
    command: list[str]
    done: Path


def build_steps(settings: Ail861Settings, work: Path) -> list[Step]:
    """All commands in order; `work` is the folder they write to."""
    size, words, vectors = size_of(settings.size), work / "words.json", work / "words.vec"
    threads = ["--threads", str(settings.threads)] if settings.threads else []
    machine = ["--use_gpu", *threads] if settings.use_gpu else threads
    source = ["--corpus", settings.corpus, "--tokenizer", str(words)]
    text = [*source, *machine]
    board = ["--tensorboard", settings.tensorboard] if settings.tensorboard else []

    def run(option: str, *flags) -> list[str]:
        return [sys.executable, str(ROOT / "run_llama.py"), "--option", option, *map(str, flags)]

    def train(name: str, *flags) -> Step:
        folder = work / name
        model = _model(size, settings.dtype or size.dtype)
        return Step(name, run("pretrain", *model, *flags, *board, "--save_dir", folder), folder / "loss_curve.png")

    start, valid = ["--embeddings", vectors], ["--valid", settings.valid]
    recipe = ["--lr", size.lr, "--schedule", "cosine", "--warmup_steps", WARMUP, "--dropout", size.dropout]
    often = ["--evaluate_every", size.evaluate_every, "--save_every", size.evaluate_every]
    whole = [*text, *valid, "--batch_tokens", size.rows * CONTEXT, *often, *recipe, "--epochs", size.epochs]
    micro = [*text[2:], "--batch_tokens", MICRO_ROWS * CONTEXT, "--epochs", 1]
    compared = ["--corpus", work / "starts.txt", *micro, *valid, "--evaluate_every", size.starts_evaluate_every]
    part = ["--corpus", work / "part.txt", *micro, *start]
    measured = work / "evaluate"
    evaluate = ["--corpus", settings.valid, "--pretrained-model-path", work / "measured" / "best.pt", *machine]
    evaluate += ["--stories", size.stories, "--stride", CONTEXT // 2, "--save_dir", measured]
    bench = [sys.executable, "-m", "bench.checkpointing", "--layers", size.bench_layers, "--dim", size.dim]
    bench += ["--vocab", size.vocabulary, "--rounds", size.rounds, "--out", work / "checkpointing.json", *machine]
    embedding = [*source, *threads, *start, "--dim", size.dim, "--epochs", size.vector_epochs]
    flags_of = {"fasttext": start, "random": [], "frozen": [*start, "--freeze_embeddings"]}
    return [
        Step("words", run("tokenizer", *source, "--vocab_size", size.vocabulary), words),
        Step("vectors", run("vectors", *embedding), vectors),
        train("measured", *whole, *start),
        Step("evaluate", run("evaluate", *evaluate), measured / "evaluate.json"),
        *(train(name, *compared, *flags_of[name]) for name in STARTS),
        *(train(f"accumulation-{count}", *part, "--accumulation", count) for count in ACCUMULATIONS),
        train("recomputed", *part, "--gradient_checkpointing"),
        Step("checkpointing", list(map(str, bench)), work / "checkpointing.json"),
    ]


def _model(size: Size, dtype: str) -> list:
    """The assignment's model and optimizer: sinusoidal positions, GELU, pre-norm, untied output; Adam without decay."""
    shape = {"dim": size.dim, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": HEADS, "max_seq_len": CONTEXT}
    kind = {"position_embedding_type": "sinusoidal", "ffn_type": "gelu", "norm_position": "pre", "dropout": 0.1}
    training = {"optimizer": "adamw", "lr": RATE, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
    flags = [part for name, value in (shape | kind | training).items() for part in (f"--{name}", value)]
    return [*flags, "--untied_output", "--dtype", dtype, "--resume"]


def prepare(settings: Ail861Settings) -> list[Step]:
    """Checks the texts and the packages and makes the folders. Raises ValueError or OSError before any work."""
    require_gensim()
    documents = read_documents(settings.corpus)
    check_readable(settings.valid)
    work = Path(settings.runs)
    steps = build_steps(settings, work)
    if settings.show:
        return steps
    for folder in (work, Path(settings.save_dir)):
        folder.mkdir(parents=True, exist_ok=True)
    for name in [step.done.parent for step in steps]:
        name.mkdir(exist_ok=True)
    hold_folder(work)
    size = size_of(settings.size)
    for name, count in {"part.txt": size.part, "starts.txt": size.starts}.items():
        write_text(work / name, f"\n{SEPARATOR}\n".join(documents[:count]) + "\n")
    return steps


def perform(step: Step, work: Path) -> None:
    """Runs the step with its output in a log, whose last line is shown every few seconds.

    Raises ChildProcessError with that line if the step fails.
    """
    log = work / f"{step.name}.log"
    with open(log, "a", encoding="utf-8") as file:
        child = subprocess.Popen(step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while (code := _ended(child)) is None:
                print(f"  {_last_line(log)}", flush=True)
        except BaseException:  # Ctrl-C ends the step too
            child.kill()
            child.wait()
            raise
    if code:
        raise ChildProcessError(f"{step.name} ended with code {code} ({log}): {_last_line(log)}")


def _ended(child: subprocess.Popen) -> int | None:
    """The exit code, or None if the process still runs after `SHOW_EVERY` seconds."""
    try:
        return child.wait(SHOW_EVERY)
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    """The last line of a log, or the last state of its progress bar."""
    return log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().split("\n")[-1].strip()


def main(argv: list[str] | None = None) -> int:
    """Runs the remaining steps, then writes the report. Exit code 2 for bad input, 1 for a failing step."""
    settings = cli.parse_alone("ail861", Ail861Settings, __doc__.split("\n")[0], argv)
    given = {name: getattr(settings, name) for name in ("corpus", "valid", "runs", "save_dir", "tensorboard")}
    paths = {name: str(Path(path).resolve()) for name, path in given.items() if path is not None}
    settings = dataclasses.replace(settings, **paths)
    return cli.carry_out("ail861", lambda: prepare_all(settings))


def prepare_all(settings: Ail861Settings) -> cli.Work:
    """Checks everything and returns the work. Raises ValueError or OSError."""
    steps = prepare(settings)

    def work() -> None:
        if settings.show:
            print("\n".join(shlex.join(map(str, step.command)) for step in steps))
            return
        for number, step in enumerate(steps, start=1):
            done = step.done.exists()
            print(f"[{number}/{len(steps)}] {step.name}{': done before' if done else ''}", flush=True)
            if not done:
                perform(step, Path(settings.runs))
        clock = "cuda" if settings.use_gpu else "cpu"
        ail861_report.write_report(Path(settings.runs), Path(settings.save_dir), settings.size, clock)
        print((Path(settings.save_dir) / "tables.md").read_text("utf-8"))
        print(f"wrote {settings.save_dir}")

    return work


if __name__ == "__main__":
    sys.exit(main())
