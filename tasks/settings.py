r"""Settings and flags declared once: a task's settings are one dataclass, whose fields are its flags. No torch.

    @dataclass(frozen=True, kw_only=True)
    class PromptSettings(ModelSettings, MachineSettings):
        \"\"\"zero-shot classification\"\"\"            (the title of the group in --help)
        batch_size: int = flag(8, "examples per batch", type=positive, metavar="N")

The groups that several tasks share stand here: the machine, the model, the training. Try them:

    python run_llama.py --option finetune --help
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = "stories42M.pt"
LONGEST_NUMBER = 100  # characters of a number on the command line
MANY_THREADS = 64  # more than this, and than four for each processor, are refused: OpenMP would crash


@dataclass(frozen=True, kw_only=True)
class Settings:
    """what every task's settings have: the names of the flags that were given"""

    given: frozenset[str] = field(default=frozenset(), repr=False)  # names of the flags on the command line


def flag(
    default: Any,
    help: str,
    type: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    nargs: str | None = None,
    const: Any = None,
    names: Sequence[str] = (),
    required: bool = False,
) -> Any:
    """A field of a settings class and its flag: `--NAME`, or `names` where the flag is spelled otherwise.

    A default of False makes a switch. `required`: the flag must be given, and the default is never used.
    """
    given = {"type": type, "choices": choices, "metavar": metavar, "nargs": nargs, "const": const}
    keywords = {name: value for name, value in given.items() if value is not None}
    if default is False:
        keywords = {"action": "store_true"}
    metadata = {"help": help, "names": tuple(names), "required": required, "keywords": keywords}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def input_flag(default: Any, help: str, **more: Any) -> Any:
    """A field whose flag names a file to read; see `input_file` for where it is found, and `flag` for `more`."""
    return flag(default, help, type=input_file, metavar="FILE", **more)


def number(kind: type, low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a number of at least `low` (more than it, if `above`) and at most `high`."""

    def parse(text: str) -> float:
        if len(text) > LONGEST_NUMBER:
            raise argparse.ArgumentTypeError(f"must be a number, not {text[:20]}… ({len(text):,} characters)")
        value = kind(text)
        if math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be finite, not {text}")
        fits = value > low if above else value >= low
        if not fits or (high is not None and value > high):
            bounds = f"{'more than' if above else 'at least'} {low}" + (f" and at most {high}" if high else "")
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # argparse names it where `kind` refuses the text
    return parse


positive = number(int, 1)
count = number(int, 0)
seed_number = number(int, 0, 2**63 - 1)
epoch_count = number(int, 1, 1_000_000)
rate = number(float, 0.0)
share = number(float, 0.0, 1.0)


def thread_count(text: str) -> int:
    """An argparse type: a number of threads that this machine can start."""
    processors = os.cpu_count() or 1
    value, most = int(positive(text)), max(MANY_THREADS, 4 * processors)
    if value > most:
        raise argparse.ArgumentTypeError(
            f"must be at most {most} on this machine, which has {processors} processors, not {text}"
        )
    return value


thread_count.__name__ = "whole number"


def input_file(path: str) -> str:
    """An argparse type: a file to read. What ships is found beside the code, wherever the user stands."""
    beside = ROOT / path
    return str(beside) if path and not os.path.exists(path) and beside.exists() else path


def default_of(entry: dataclasses.Field) -> Any:
    """The default of a field."""
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()


def shared_fields(settings: Settings, target: type) -> dict[str, Any]:
    """The values of those settings that are also fields of the dataclass `target`, by name."""
    names = {entry.name for entry in dataclasses.fields(target)}
    return {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings) if entry.name in names}


@dataclass(frozen=True, kw_only=True)
class CpuSettings(Settings):
    """seed and machine"""

    seed: int = flag(1337, "seed of every random draw", type=seed_number, metavar="N")
    threads: int | None = flag(None, "CPU threads; chosen by torch if not given", type=thread_count, metavar="N")


@dataclass(frozen=True, kw_only=True)
class MachineSettings(CpuSettings):
    """device"""

    use_gpu: bool = flag(False, "run on the first CUDA device")


@dataclass(frozen=True, kw_only=True)
class LengthSettings(Settings):
    """length of texts"""

    max_sentence_len: int | None = flag(None, "cut texts after N tokens", type=positive, metavar="N")


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Settings):
    """what a checkpoint does not say itself"""

    norm: str | None = flag(
        None, "norm of a checkpoint that does not name its own", choices=("layernorm", "rmsnorm")
    )
    n_heads: int | None = flag(None, "query heads of bare weights, which do not say them", type=positive, metavar="N")
    rope_theta: float | None = flag(
        None, "base of the rotary frequencies, if the checkpoint does not say it and it is not 10000",
        type=number(float, 0.0, above=True), metavar="THETA",
    )  # fmt: skip

    def unsaid(self) -> dict[str, Any]:
        """The flags that were given, as arguments of `read_checkpoint`."""
        given = {name: getattr(self, name) for name in ("n_heads", "rope_theta") if name in self.given}
        return {"norm": self.norm} | given


@dataclass(frozen=True, kw_only=True)
class ModelSettings(WeightSettings):
    """the model to start from"""

    pretrained_model_path: str = input_flag(
        DEFAULT_MODEL, "the course's .pt, llama2.c's .pt or .bin, this project's, a GGUF file or a Hugging Face folder",
        names=("--pretrained-model-path",),
    )  # fmt: skip
    tokenizer: str | None = input_flag(
        None, "SentencePiece .model, llama2.c's .bin, tokenizer.json or words .json, instead of the model's own",
    )  # fmt: skip


def board_folder(text: str) -> str:
    """An argparse type: a folder for TensorBoard's files. Refused where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise argparse.ArgumentTypeError("needs a package: pip install -r requirements-tensorboard.txt")
    if os.path.exists(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return text


@dataclass(frozen=True, kw_only=True)
class LogSettings(Settings):
    """logging"""

    tensorboard: str | None = flag(
        None, "also log for TensorBoard, to a folder in DIR named like the run's", type=board_folder, metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(LogSettings):
    """training"""

    epochs: int = flag(5, "passes over the data", type=epoch_count, metavar="N")
    lr: float = flag(2e-5, "peak learning rate", type=rate, metavar="RATE")
    schedule: str = flag("constant", "learning rate after the warm-up", choices=("constant", "cosine", "linear"))
    warmup_steps: int = flag(0, "steps over which the learning rate rises", type=count, metavar="N")
    rate_floor: float = flag(0.0, "the schedule decays to this share of the peak", type=share, metavar="SHARE")
    weight_decay: float = flag(0.0, "decoupled weight decay, applied to matrices only", type=rate, metavar="W")
    max_grad_norm: float | None = flag(
        None, "clip each group's gradient to this global norm", type=number(float, 0.0, above=True), metavar="G"
    )
    accumulation: int = flag(1, "batches per optimizer step", type=positive, metavar="N")
    dtype: str = flag(
        "float32", "compute precision; float16 scales the loss and is slow on a CPU",
        choices=("float32", "bfloat16", "float16"),
    )  # fmt: skip
    compile: bool = flag(False, "torch.compile the layers: takes a minute and a C++ compiler")
    evaluate_every: int = flag(0, "steps between evaluations; 0: once per epoch", type=count, metavar="N")
    save_every: int = flag(0, "steps between saved training states; 0: once per epoch", type=count, metavar="N")
    patience: int = flag(0, "stop after N evaluations without improvement; 0: never", type=count, metavar="N")
    resume: bool = flag(False, "continue the run from its last saved state")
