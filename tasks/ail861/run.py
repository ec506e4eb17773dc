"""The AIL861 assignment from end to end: a decoder from scratch on stories, and every measurement it asks for.

    make ail861 CORPUS=train.txt VALID=valid.txt
    python -m tasks.ail861.run --corpus train.txt --valid valid.txt --size small --save_dir results/ail861

Each step is a separate command (`--show` prints them all) with a log beside its results. Finished steps are skipped
and interrupted ones resume when the same command is started again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.io.files import check_readable, write_text
from tasks.ail861 import report as ail861_report
from tasks.cli import new_parser
from tasks.settings import positive
from tasks.stories.data import SEPARATOR, read_documents
from tasks.stories.fasttext import require_gensim

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


SIZES = {
    "tiny": Size(300, 16, 2, 4, 1e-3, 0.0, 5, 24, 24, 5, stories=4, vector_epochs=1, bench_layers=2, rounds=1),
    "small": Size(6000, 192, 1, 16, 1.5e-3, 0.0, 1000, 1200, 600, vector_epochs=2),
    "large": Size(10000, 512, 12, 64, 1e-3, 0.1, 500, 20000, 20000, dtype="bfloat16"),
}
LAYERS, HEADS, CONTEXT, MICRO_ROWS, RATE, WARMUP = 3, 8, 64, 16, 3e-4, 100
STARTS = ("fasttext", "random", "frozen")
ACCUMULATIONS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Step:
    """A command, and the file that shows that it is done."""

    name: str
    command: list[str]
    done: Path


def build_steps(args: argparse.Namespace, work: Path) -> list[Step]:
    """All commands in order; `work` is the folder they write to."""
    size, words, vectors = SIZES[args.size], work / "words.json", work / "words.vec"
    machine = (["--use_gpu"] if args.use_gpu else []) + (["--threads", str(args.threads)] if args.threads else [])
    text = ["--corpus", args.corpus, "--tokenizer", str(words), *machine]

    def run(option: str, *flags) -> list[str]:
        return [sys.executable, str(ROOT / "run_llama.py"), "--option", option, *map(str, flags)]

    def train(name: str, *flags) -> Step:
        folder = work / name
        model = _model(size, args.dtype or size.dtype)
        return Step(name, run("pretrain", *model, *flags, "--save_dir", folder), folder / "loss_curve.png")

    start, valid = ["--embeddings", vectors], ["--valid", args.valid]
    recipe = ["--lr", size.lr, "--schedule", "cosine", "--warmup_steps", WARMUP, "--dropout", size.dropout]
    often = ["--evaluate_every", size.evaluate_every, "--save_every", size.evaluate_every]
    whole = [*text, *valid, "--batch_tokens", size.rows * CONTEXT, *often, *recipe, "--epochs", size.epochs]
    micro = [*text[2:], "--batch_tokens", MICRO_ROWS * CONTEXT, "--epochs", 1]
    compared = ["--corpus", work / "starts.txt", *micro, *valid, "--evaluate_every", size.starts_evaluate_every]
    part = ["--corpus", work / "part.txt", *micro, *start]
    measured = work / "evaluate"
    evaluate = ["--corpus", args.valid, "--pretrained-model-path", work / "measured" / "best.pt", *machine]
    evaluate += ["--stories", size.stories, "--stride", CONTEXT // 2, "--save_dir", measured]
    bench = [sys.executable, "-m", "bench.checkpointing", "--layers", size.bench_layers, "--dim", size.dim]
    bench += ["--vocab", size.vocabulary, "--rounds", size.rounds, "--out", work / "checkpointing.json", *machine]
    flags_of = {"fasttext": start, "random": [], "frozen": [*start, "--freeze_embeddings"]}
    return [
        Step("words", run("tokenizer", *text, "--vocab_size", size.vocabulary), words),
        Step("vectors", run("vectors", *text, *start, "--dim", size.dim, "--epochs", size.vector_epochs), vectors),
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


def prepare(args: argparse.Namespace) -> list[Step]:
    """Checks the texts and the packages and makes the folders. Raises ValueError or OSError before any work."""
    require_gensim()
    documents = read_documents(args.corpus)
    check_readable(args.valid)
    work = Path(args.runs)
    steps = build_steps(args, work)
    if args.show:
        return steps
    for folder in (work, Path(args.save_dir)):
        folder.mkdir(parents=True, exist_ok=True)
    for name in [step.done.parent for step in steps]:
        name.mkdir(exist_ok=True)
    size = SIZES[args.size]
    for name, count in {"part.txt": size.part, "starts.txt": size.starts}.items():
        write_text(work / name, f"\n{SEPARATOR}\n".join(documents[:count]) + "\n")
    return steps


def perform(step: Step, work: Path) -> None:
    """Runs the step with its output in a log; raises RuntimeError with the log's last line if it fails."""
    log = work / f"{step.name}.log"
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run(step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        raise RuntimeError(f"{step.name} ended with code {code} ({log}): {lines[-1] if lines else ''}")


def main(argv: list[str] | None = None) -> int:
    """Runs the remaining steps, then writes the report. Exit code 2 for bad input, 1 for a failing step."""
    parser = new_parser("ail861.py", __doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, metavar="FILE", help="training stories, <|endoftext|> between them")
    parser.add_argument("--valid", required=True, metavar="FILE", help="validation stories: measured, never trained on")
    parser.add_argument("--size", choices=SIZES, default="small", help="small: two cores; large: a GPU")
    parser.add_argument("--save_dir", default="results/ail861", metavar="DIR", help="tables and figures")
    parser.add_argument("--runs", default="runs/ail861", metavar="DIR", help="checkpoints and logs")
    parser.add_argument("--use_gpu", action="store_true", help="run on the first CUDA device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="large: bfloat16; else float32")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads")
    parser.add_argument("--show", action="store_true", help="print the commands and do nothing")
    args = parser.parse_args(argv)
    try:
        args.corpus, args.valid = (str(Path(path).resolve()) for path in (args.corpus, args.valid))
        args.runs, args.save_dir = (str(Path(path).resolve()) for path in (args.runs, args.save_dir))
        steps = prepare(args)
    except (ValueError, OSError) as error:
        print(f"ail861.py: {error}", file=sys.stderr)
        return 2
    if args.show:
        print("\n".join(shlex.join(map(str, step.command)) for step in steps))
        return 0
    try:
        for number, step in enumerate(steps, start=1):
            done = step.done.exists()
            print(f"[{number}/{len(steps)}] {step.name}{': done before' if done else ''}", flush=True)
            if not done:
                perform(step, Path(args.runs))
    except (RuntimeError, OSError) as error:
        print(f"ail861.py: {error}", file=sys.stderr)
        return 1
    ail861_report.write_report(Path(args.runs), Path(args.save_dir), args.size, "cuda" if args.use_gpu else "cpu")
    print(f"wrote {args.save_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
