"""The flags of `run_llama.py`. Imports no torch, so that `--help` and a refused flag answer at once.

    python run_llama.py --help
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

OPTIONS = {
    "generate": "continue a sentence, greedily and by sampling",
    "prompt": "classify sentences zero-shot, by asking the model",
    "finetune": "train the model and a head to classify sentences",
    "lora": "the same, training low-rank factors and the head alone",
    "tokenizer": "train a SentencePiece tokenizer on a corpus, or count its words",
    "pretrain": "train a model on a corpus: from scratch, or on from --pretrained-model-path",
    "vectors": "train FastText vectors of a vocabulary's words on a corpus",
    "evaluate": "bits per byte and perplexity of a model on a text",
    "addition": "answer --prompt 1234+5678= with the shipped adder, or test it",
    "submission": "run what is missing of the course's commands, then make and check the zip",
}
DEFAULT_MODEL = "stories42M.pt"
FINETUNING = {  # the course's recipe: AdamW and nothing else
    "save_dir": "runs", "optimizer": "adamw", "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0,
    "max_grad_norm": None,
}  # fmt: skip
OPTION_DEFAULTS = {  # where a task's default is not the one shown
    "pretrain": {"epochs": 7, "lr": 3e-3},
    "prompt": {"save_dir": "runs"},
    "finetune": FINETUNING,
    "lora": FINETUNING,
}
TRAINING_NOTE = "Defaults are pretrain's; finetune and lora take the course's recipe: AdamW at a constant rate."
OUTPUT_NAMES = {  # option: what may stand between "dev-" or "test-" and "-output.txt"
    "prompt": ("prompting",),
    "finetune": ("finetuning", "lora"),
    "lora": ("finetuning", "lora"),
}


def number(kind: type, low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a number of at least `low` (more than it, if `above`) and at most `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        fits = value > low if above else value >= low
        if not fits or (high is not None and value > high):
            bounds = f"{'more than' if above else 'at least'} {low}" + (f" and at most {high}" if high else "")
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # argparse names it where `kind` refuses the text
    return parse


positive = number(int, 1)
count = number(int, 0)
rate = number(float, 0.0)
share = number(float, 0.0, 1.0)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every option's flags, the course's names and defaults first."""
    tasks = "\n".join(f"  {name:<10} {text}" for name, text in OPTIONS.items())
    parser = new_parser("run_llama.py", f"A small Llama laboratory. What --option can do:\n{tasks}")
    parser.add_argument("--option", choices=OPTIONS, default="generate", help="what to do")
    _add_common(parser.add_argument_group("common"))
    _add_generate(parser.add_argument_group("generate"))
    _add_sentiment(parser.add_argument_group("prompt, finetune, lora"))
    _add_submission(parser.add_argument_group("submission"))
    _add_corpus(parser.add_argument_group("tokenizer, vectors, pretrain, evaluate"))
    _add_evaluate(parser.add_argument_group("evaluate"))
    _add_model(parser.add_argument_group("pretrain: the model"))
    _add_training(parser.add_argument_group("pretrain, finetune, lora: the training", TRAINING_NOTE))
    return parser


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """An empty parser that answers a refused flag in one line and shows the defaults in its help."""
    return _Parser(prog=prog, description=description, formatter_class=_HelpFormatter)


class _Parser(argparse.ArgumentParser):
    """Answers a refused flag in one line."""

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message}")
        self.exit(2)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and adds defaults, but not where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _add_common(group) -> None:
    add = group.add_argument
    add("--pretrained-model-path", default=DEFAULT_MODEL, metavar="FILE",
        help="checkpoint: the course's .pt, llama2.c's .pt or .bin, or this project's")  # fmt: skip
    add("--tokenizer", metavar="FILE",
        help="SentencePiece .model, llama2.c's tokenizer.bin or words .json, in place of the model's")  # fmt: skip
    add("--norm", choices=("layernorm", "rmsnorm"), help="norm of a checkpoint that does not say which it has")
    add("--max_sentence_len", type=positive, metavar="N", help="cut texts after N pieces")
    add("--seed", type=int, default=1337, help="seed of every random draw")
    add("--use_gpu", action="store_true", help="run on the first CUDA device")
    add("--threads", type=positive, metavar="N", help="CPU threads (generate: measured first; else torch chooses)")


def _add_generate(group) -> None:
    add = group.add_argument
    add("--generated_sentence_low_temp_out", default="generated-sentence-temp-0.txt", metavar="FILE",
        help="where the greedy continuation goes")  # fmt: skip
    add("--generated_sentence_high_temp_out", default="generated-sentence-temp-1.txt", metavar="FILE",
        help="where the sampled continuation goes")  # fmt: skip
    add("--prompt", metavar="TEXT",
        help="continue this in place of the course's sentence; empty: from BOS alone; addition: asks it")  # fmt: skip
    add("--prompt_file", metavar="FILE", help="continue each line of this file, --batch_size at once")
    add("--num_samples", type=positive, default=1, metavar="N", help="so many draws for each prompt, seeds following")
    add("--max_new_tokens", type=count, default=75, metavar="N", help="tokens to add")
    add("--temperature", type=rate, metavar="T", help="one continuation at this temperature, not one at 0 and one at 1")
    add("--top_p", type=number(float, 0.0, 1.0, above=True), default=0.95, metavar="P",
        help="sample from the smallest set of tokens whose probability reaches P")  # fmt: skip
    add("--top_k", type=positive, metavar="K", help="sample from the K likeliest tokens")
    add("--min_p", type=share, metavar="P", help="refuse tokens under P times the likeliest's probability")
    add("--epsilon", type=share, metavar="E", help="refuse tokens of probability under E, in place of top-p")
    add("--quantize", choices=("float32", "int8"), default="float32",
        help="weights that the tokens behind the prompt are computed with; int8 is faster, nearly as good")  # fmt: skip
    add("--slide", type=positive, default=64, metavar="N",
        help="past the model's positions, forget the oldest N tokens at a time; 1: as the course")  # fmt: skip


def _add_sentiment(group) -> None:
    add = group.add_argument
    for split in ("train", "dev", "test"):
        add(f"--{split}", default=f"data/cfimdb-{split}.txt", metavar="FILE", help="lines `label ||| sentence`")
    add("--label-names", default="data/cfimdb-label-mapping.json", metavar="FILE",
        help="JSON list of the labels' names, label 0 first")  # fmt: skip
    for split in ("dev", "test"):
        add(f"--{split}_out", default=f"cfimdb-{split}-prompting-output.txt", metavar="FILE",
            help=f"where the predictions go; must end in {split}-prompting-output.txt (finetuning, lora)")  # fmt: skip
    add("--batch_size", type=positive, default=8, metavar="N", help="sentences a batch; prompts continued at once")
    add("--pooling", choices=("last_token", "last_column"), default="last_token",
        help="read the last real token, or, as the course, the batch's last column, padding and all")  # fmt: skip
    add("--no_causal_mask", action="store_true", help="let every token see all others, as the course of Fall 2025")
    add("--label_scoring", choices=("course", "sequence"), default="course",
        help="prompt: sum a label's pieces at one position, or score them in turn")  # fmt: skip
    add("--calibrate", action="store_true", help="prompt: contextual calibration by content-free inputs")
    add("--hidden_dropout_prob", type=number(float, 0.0, 0.99), default=0.3, metavar="P",
        help="dropout before the head")  # fmt: skip
    add("--lora_rank", type=positive, default=4, metavar="R", help="lora: rank of the factors")
    add("--lora_alpha", type=number(float, 0.0, above=True), default=1.0, metavar="A",
        help="lora: the product of the factors is scaled by A / R")  # fmt: skip
    add("--lora_targets", choices=("attention", "all"), default="attention",
        help="lora: which matrices have factors beside them; all: the feed-forward's too")  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="SEED", help="finetune, lora: one run for each, and mean ± deviation")


def _add_submission(group) -> None:
    add = group.add_argument
    add("--andrewid", metavar="ID", help="names the zip and the one folder in it")
    add("--course", choices=("spring2026", "fall2025"), default="spring2026", help="whose list of files and size limit")


def _add_corpus(group) -> None:
    add = group.add_argument
    add("--corpus", nargs="+", metavar="FILE",
        help='text with lines <|endoftext|> between documents, .jsonl with a field "text", '
             "or lines `label ||| sentence`, whose labels are left out")  # fmt: skip
    add("--valid", metavar="FILE", help="pretrain: text measured as training goes on; it chooses nothing")
    add("--embeddings", metavar="FILE",
        help="FastText vectors, .vec or .bin: vectors writes them, pretrain starts from them")  # fmt: skip
    add("--vocab_size", type=number(int, 300), default=4096, metavar="N", help="pieces (or words) of a new tokenizer")
    add("--keep_case", action="store_true", help="tokenizer: do not lower the words of a .json")
    add("--save_dir", metavar="DIR",
        help="folder of a training run: checkpoints, log, curves (sentiment: in runs/)")  # fmt: skip


def _add_evaluate(group) -> None:
    add = group.add_argument
    add("--stories", type=count, default=0, metavar="N",
        help="also continue N documents from their first 5 tokens: BLEU, speed, attention maps")  # fmt: skip
    add("--stride", type=positive, metavar="N",
        help="of a document longer than the model's positions, score N new tokens a row")  # fmt: skip


def _add_model(group) -> None:
    add = group.add_argument
    add("--dim", type=positive, default=256, help="width of the residual stream")
    add("--n_layers", type=positive, default=8, help="layers")
    add("--n_heads", type=positive, default=4, help="query heads")
    add("--n_kv_heads", type=positive, default=2, help="key/value heads; must divide the query heads")
    add("--max_seq_len", type=positive, default=1024, help="positions")
    add("--dropout", type=number(float, 0.0, 0.99), default=0.1, help="dropout on embeddings and on every branch")
    add("--rope_theta", type=number(float, 0.0, above=True), default=10000.0, help="base of the rotation's angles")
    add("--position_embedding_type", choices=("rotary", "sinusoidal", "alibi", "none"), default="rotary",
        help="how a token knows its place")  # fmt: skip
    add("--ffn_type", choices=("swiglu", "relu", "gelu"), default="swiglu", help="feed-forward: gated, or plain")
    add("--hidden_dim", type=positive, metavar="N", help="width of the feed-forward; 4·dim, with a gate 2/3 of it")
    add("--norm_position", choices=("pre", "post"), default="pre", help="normalise before a block, or behind it")
    add("--untied_output", action="store_true", help="an output matrix of its own, not the embedding's")
    add("--freeze_embeddings", action="store_true", help="do not train the embeddings")


def _add_training(group) -> None:
    add = group.add_argument
    add("--epochs", type=positive, default=5, help="passes over the data (pretrain: 7)")
    add("--lr", type=rate, default=2e-5, help="peak learning rate (pretrain: 3e-3)")
    add("--optimizer", choices=("adamw", "muon"), default="muon", help="muon: AdamW but for the hidden matrices")
    add("--schedule", choices=("constant", "cosine", "linear"), default="linear", help="decay after the warm-up")
    add("--warmup_steps", type=count, default=100, metavar="N", help="steps in which the rate rises")
    add("--rate_floor", type=share, default=0.0, metavar="SHARE", help="decay to this share of the peak")
    add("--weight_decay", type=rate, default=0.1, metavar="W", help="decoupled decay, on matrices alone")
    add("--max_grad_norm", type=number(float, 0.0, above=True), default=1.0, metavar="G",
        help="clip the norm of each group's gradients, taken together, to G")  # fmt: skip
    add("--batch_tokens", type=positive, default=8192, metavar="N", help="tokens a batch, padding counted")
    add("--packing", choices=("off", "separate", "crossing"), default="off",
        help="several documents a row of --max_seq_len tokens: none sees another, or each those before it")  # fmt: skip
    add("--accumulation", type=positive, default=1, metavar="N", help="batches an optimizer step")
    add("--gradient_checkpointing", type=count, nargs="?", const=1, default=0, metavar="LAYERS",
        help="recompute layers in the backward pass, so many at a time (1 if no number is given)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="type of the matrix products (generate: of the weights behind the prompt, on a CPU); float16 scales the "
        "loss, and is slow on a CPU")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the layers; takes a minute, and a C++ compiler")
    add("--held_out", type=number(float, 0.0, 0.5, above=True), default=0.01, metavar="SHARE",
        help="share of the documents that chooses the best checkpoint")  # fmt: skip
    add("--evaluate_every", type=count, default=0, metavar="N", help="steps between measurements; 0: each epoch")
    add("--save_every", type=count, default=0, metavar="N", help="steps between saved states; 0: each epoch")
    add("--patience", type=count, default=0, metavar="N", help="stop after N measurements without a better one")
    add("--export", metavar="FILE",
        help="write the best model here in bfloat16, and its settings, log and curves beside it")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run in --save_dir")


REQUIRED = {
    "tokenizer": ("corpus", "tokenizer"),
    "pretrain": ("corpus", "tokenizer", "save_dir"),
    "vectors": ("corpus", "tokenizer", "embeddings"),
    "evaluate": ("corpus",),
    "submission": ("andrewid",),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed flags; `args.given` names those that stood on the command line. Exits with code 2 on a bad one."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.given = _given(argv)
    for name, value in OPTION_DEFAULTS.get(args.option, {}).items():
        if name not in args.given:
            setattr(args, name, value)
    needed = REQUIRED.get(args.option, ())
    if args.option == "pretrain" and "pretrained_model_path" in args.given:
        needed = [name for name in needed if name != "tokenizer"]  # the checkpoint brings its own
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"--option {args.option} needs {', '.join(missing)}")
    _check_output_names(parser, args)
    return args


def _check_output_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The names the course's graders look for; refused here, and not when the work is done."""
    for split in ("dev", "test") if args.option in OUTPUT_NAMES else ():
        endings = [f"{split}-{method}-output.txt" for method in OUTPUT_NAMES[args.option]]
        if not getattr(args, f"{split}_out").endswith(tuple(endings)):
            name = getattr(args, f"{split}_out")
            parser.error(f"--{split}_out must end in {' or '.join(endings)}, not {name}")


def process_count() -> int:
    """How many processes torchrun has started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(line: str) -> None:
    """One line on stderr. Of several processes the first alone speaks, and the others leave it the time to.

    torchrun ends all of them as soon as one has ended.
    """
    if process_count() == 1 or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
    else:
        time.sleep(2.0)


def carry_out(prog: str, prepare: Callable[[], Callable[[], None]]) -> int:
    """Prepares a task, which checks everything, and does its work; returns the exit code.

    Bad input ends in one line and code 2 before any work, a full disk in 1, Ctrl-C in 130.
    """
    try:
        work = prepare()
    except (ValueError, OSError) as error:
        say(f"{prog}: {error}")
        return 2
    try:
        work()
    except OSError as error:
        say(f"{prog}: {error}")
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted; a training run goes on from its last saved state by --resume")
        return 130
    return 0


def _given(argv: Iterable[str] | None) -> frozenset[str]:
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return frozenset(vars(parser.parse_args(argv)))
