"""The settings of `addition_run.py train` and `test` and of `run_llama.py --option addition`.

    python addition_run.py train --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import (
    LogSettings,
    MachineSettings,
    Settings,
    WeightSettings,
    count,
    epoch_count,
    flag,
    input_flag,
    number,
    positive,
    rate,
    share,
)

CAPACITY = 5_808_844_800_000
BEST = "addition_models/best_model/best_model.pth"
TEST_FILE = "data/addition_test.txt"
above_zero = number(float, 0.0, above=True)


@dataclass(frozen=True, kw_only=True)
class CourseTraining(MachineSettings):
    """the course's flags"""

    epochs: int = flag(10, "passes over the training problems", type=epoch_count, metavar="N")
    batch_size: int = flag(1024, "problems per step", type=positive, metavar="N")
    lr: float = flag(1e-3, "peak learning rate", type=rate, metavar="RATE")
    save_dir: str = flag("addition_models/best_model/", "folder for everything that the run writes", metavar="DIR")
    train_file: str = flag(
        "data/addition_train.txt", "training problems; read if the file is named and exists, else drawn and written",
        metavar="FILE",
    )  # fmt: skip
    val_file: str = flag("data/addition_dev.txt", "dev problems, in the same way", metavar="FILE")
    dim: int = flag(16, "width of the residual stream", type=positive, metavar="N")
    n_layers: int = flag(6, "layers", type=positive, metavar="N")
    n_heads: int = flag(4, "query heads", type=positive, metavar="N")
    n_kv_heads: int = flag(4, "key/value heads; must divide the query heads", type=positive, metavar="N")
    capacity: int = flag(
        CAPACITY, "limit of 6 · parameters · training examples", type=positive, metavar="N",
        names=("--capacity", "--capcaity"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelShape(Settings):
    """the model, beyond the course"""

    hidden_dim: int | None = flag(
        None, "width of the feed-forward; by default 2/3 of 4·dim, rounded up to 32", type=positive, metavar="N"
    )
    head_dim: int | None = flag(None, "features per head; by default dim / n_heads", type=positive, metavar="N")
    rope_theta: float = flag(10000.0, "base of the rotary frequencies", type=above_zero, metavar="THETA")
    init_std: float | None = flag(
        None, "standard deviation of the initial weights; by default 0.02, too little for a narrow model",
        type=above_zero, metavar="STD",
    )  # fmt: skip
    norm_type: str = flag("layernorm", "norm of every layer", choices=("layernorm", "rmsnorm"))


@dataclass(frozen=True, kw_only=True)
class Optimization(LogSettings):
    """the training, beyond the course"""

    optimizer: str = flag(
        "adamw", "muon: Muon for the matrices of the layers, AdamW for everything else", choices=("adamw", "muon")
    )
    schedule: str = flag("constant", "learning rate after the warm-up", choices=("constant", "cosine", "linear"))
    warmup_steps: int = flag(0, "steps over which the learning rate rises", type=count, metavar="N")
    rate_floor: float = flag(0.0, "the schedule decays to this share of the peak", type=share, metavar="SHARE")
    max_grad_norm: float | None = flag(None, "clip each seed's gradient to this norm", type=above_zero, metavar="G")
    beta2: float = flag(0.999, "AdamW's second beta", type=number(float, 0.0, 0.99999), metavar="B")
    weight_decay: float = flag(0.0, "decoupled weight decay, on all parameters", type=rate, metavar="W")
    seeds: int = flag(1, "models trained side by side, with seeds SEED, SEED+1, …", type=positive, metavar="N")
    evaluate_every: int = flag(0, "steps between evaluations; 0: once per epoch", type=count, metavar="N")
    save_every: int = flag(0, "steps between saved training states; 0: once per epoch", type=count, metavar="N")
    log_every: int = flag(50, "steps between lines of the log", type=positive, metavar="N")
    stop_when_perfect: bool = flag(False, "stop when a seed makes no mistake on dev")
    resume: bool = flag(False, "continue the run in --save_dir from its last saved state")
    plain: bool = flag(False, "train the shared model instead of the batched layout (one seed)")
    chunk: int | None = flag(None, "problems per forward pass; must divide the batch", type=positive, metavar="N")
    no_compile: bool = flag(False, "do not compile the training step")


@dataclass(frozen=True, kw_only=True)
class SeedSearch(Settings):
    """seed search: many seeds briefly, then the best"""

    trial_seeds: int = flag(
        0, "train N seeds on --trial_examples first, then continue the best --seeds of them", type=count, metavar="N"
    )
    trial_examples: int | None = flag(None, "examples per seed in the search", type=positive, metavar="N")
    trial_lr: float | None = flag(None, "peak learning rate of the search; by default --lr", type=rate, metavar="RATE")
    trial_batch_size: int | None = flag(
        None, "problems per step of the search; by default --batch_size", type=positive, metavar="N"
    )
    trial_rounds: list[str] = flag(
        [], "further rounds: the best SEEDS of the round before train on EXAMPLES more, at the search's peak learning "
        "rate or that after @", nargs="+", metavar="SEEDS:EXAMPLES[@RATE]",
    )  # fmt: skip
    choose_by: str = flag(
        "dev", "which models continue after a search or a step of --shrink: those of the lowest dev loss, or of the "
        "lowest loss on the worst group of problems: dev, and the groups of --nines_by",
        choices=("dev", "worst_group"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shrinking(Settings):
    """shrinking: a larger model, whose parts fade out one by one"""

    shrink: list[str] = flag(
        [], "shapes on the way, the largest first, --dim and --hidden_dim last; each trains on EXAMPLES, all choices "
        "of the part that goes side by side", nargs="+", metavar="WIDTH:FFN:EXAMPLES",
    )  # fmt: skip
    shrink_from: str | None = input_flag(None, "a trained adder to start from, before the shapes of --shrink")
    shrink_lr: float | None = flag(None, "peak learning rate on the way; by default --lr", type=rate, metavar="RATE")
    shrink_batch_size: int | None = flag(
        None, "problems per step on the way; by default --batch_size", type=positive, metavar="N"
    )
    shrink_choices: int | None = flag(
        None, "train only the N choices of each step that raise the dev loss least at once, those of a worse parent "
        "last; by default all", type=positive, metavar="N",
    )  # fmt: skip
    shrink_parents: int | None = flag(
        None, "best models that continue from each step, and from the search; the next step chooses among the parts of "
        "all of them; by default 1", type=positive, metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProblemSettings(Settings):
    """problems and files, beyond the course"""

    examples: int | None = flag(
        None, "training examples, instead of all that the capacity allows", type=positive, metavar="N"
    )
    dev_examples: int | None = flag(
        None, "dev problems; by default 20 %% of the training problems", type=positive, metavar="N"
    )
    exclude: list[str] = input_flag(
        [], "files of problems never to train on, in addition to the test files in data/", nargs="+"
    )
    nines: float = flag(
        0.0, "share of training examples with long carry chains (one to three columns that sum to 9)", type=share,
        metavar="SHARE",
    )  # fmt: skip
    nines_end: float | None = flag(
        None, "--nines changes linearly to this share by the end of the run; stages before it keep --nines", type=share,
        metavar="SHARE",
    )  # fmt: skip
    nines_by: str = flag(
        "count", "groups of --nines, equally likely: by the count of columns that sum to 9, or by the length of a "
        "chain of them and by whether a carry comes in", choices=("count", "carry"),
    )  # fmt: skip
    zeros: float = flag(
        0.0, "share of easy training examples at first (each lower column has a zero); in a seed search: of its first "
        "round", type=share, metavar="SHARE",
    )  # fmt: skip
    zeros_until: float = flag(
        0.5, "--zeros falls linearly to none over this share of the run", type=above_zero, metavar="SHARE"
    )
    hard: float = flag(
        0.0, "share of training examples that the model gets wrong or nearly wrong, looked for at every evaluation, "
        "half of the look among the long carries of --nines; the weights with the fewest mistakes there are kept, and "
        "come back when the model has lost far more; not in stages of several models", type=share, metavar="SHARE",
    )  # fmt: skip
    average_from: float | None = flag(
        None, "after this share of the run, at every evaluation, the weights become their mean since the one before; "
        "not in the stages before the run", type=share, metavar="SHARE",
    )  # fmt: skip
    no_data_files: bool = flag(False, "keep the problems in memory only")
    overwrite: bool = flag(False, "allow replacing a model that ships with the project")


@dataclass(frozen=True, kw_only=True)
class AdderTraining(ProblemSettings, Shrinking, SeedSearch, Optimization, ModelShape, CourseTraining):
    """addition_run.py train"""


@dataclass(frozen=True, kw_only=True)
class AdderTest(WeightSettings, MachineSettings):
    """the test"""

    checkpoint: str = input_flag("", "the trained model", required=True)
    test_file: str = input_flag(TEST_FILE, "test problems")
    max_gen_len: int = flag(10, "tokens per answer at most", type=positive, metavar="N")
    max_test_examples: int | None = flag(None, "test only the first N problems", type=positive, metavar="N")
    exhaustive: bool = flag(False, "also test all 81,000,000 problems")
    no_compile: bool = flag(False, "do not compile the exhaustive test")


@dataclass(frozen=True, kw_only=True)
class AdditionSettings(WeightSettings, MachineSettings):
    """addition"""

    prompt: str | None = flag(
        None, "a problem, 1234+5678=; without it the model is tested on --test", metavar="PROBLEM"
    )
    pretrained_model_path: str = input_flag(BEST, "the adder", names=("--pretrained-model-path",))
    test: str = input_flag(TEST_FILE, "test problems")

    def as_test(self) -> AdderTest:
        """The settings of `addition_run.py test` that this stands for."""
        return AdderTest(
            seed=self.seed, use_gpu=self.use_gpu, threads=self.threads, checkpoint=self.pretrained_model_path,
            test_file=self.test,
        )  # fmt: skip
