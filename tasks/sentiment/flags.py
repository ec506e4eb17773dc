"""The settings of `--option prompt`, `finetune`, `lora` and `predict`.

    python run_llama.py --option finetune --help
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.settings import (
    LengthSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    flag,
    input_flag,
    number,
    positive,
    rate,
    seed_number,
)

TASKS = ("reviews", "sst2", "agnews", "agnews_titles")  # the keys of data_sets.DATA_SETS, which imports torch

COURSE_BATCH_SIZES = {  # data set: option: --batch_size in the course's commands
    "sst": {"prompt": 10, "finetune": 80, "lora": 80},
    "cfimdb": {"prompt": 10, "finetune": 10, "lora": 10},
}


def _split_flag(name: str) -> str:
    return input_flag(f"data/cfimdb-{name}.txt", f"{name} set: lines `label ||| sentence`")


def _output_flag(name: str) -> str:
    default = f"cfimdb-{name}-prompting-output.txt"
    endings = f"{name}-prompting-output.txt, {name}-finetuning-output.txt or {name}-lora-output.txt"
    return flag(default, f"file for the {name} predictions; must end in {endings}", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class SentimentSettings(ModelSettings, LengthSettings, MachineSettings):
    """sentences and labels"""

    methods: ClassVar[tuple[str, ...]] = ("finetuning", "lora")  # allowed in the names of the output files

    task: str = flag(
        "reviews", "labels, question and columns of the files: reviews are lines `label ||| sentence`, sst2 and agnews "
        "are tables (.tsv, .csv)", choices=TASKS,
    )  # fmt: skip
    train: str = _split_flag("train")
    dev: str = _split_flag("dev")
    test: str = _split_flag("test")
    label_names: str = input_flag(
        "data/cfimdb-label-mapping.json", "JSON list of the label names, label 0 first",
        names=("--label-names",),
    )  # fmt: skip
    dev_out: str = _output_flag("dev")
    test_out: str = _output_flag("test")
    batch_size: int = flag(8, "sentences per batch", type=positive, metavar="N")
    pooling: str = flag(
        "last_token", "hidden state to classify: the last real token's, or the batch's last column (as the course)",
        choices=("last_token", "last_column"),
    )  # fmt: skip
    no_causal_mask: bool = flag(False, "let every token attend to all others, as in Fall 2025")
    save_dir: str = flag("runs", "folder for the folders of runs", metavar="DIR")

    def __post_init__(self) -> None:
        """Raises ValueError for output names that the course's graders would not recognise."""
        for split in ("dev", "test"):
            endings = [f"{split}-{method}-output.txt" for method in self.methods]
            name = getattr(self, f"{split}_out")
            if not name.endswith(tuple(endings)):
                raise ValueError(f"--{split}_out must end in {' or '.join(endings)}, not {name}")


@dataclass(frozen=True, kw_only=True)
class PromptSettings(SentimentSettings):
    """zero-shot classification"""

    option: ClassVar[str] = "prompt"
    methods: ClassVar[tuple[str, ...]] = ("prompting",)

    label_scoring: str = flag(
        "course", "sum a label's tokens at one position, or score them as a sequence", choices=("course", "sequence")
    )
    calibrate: bool = flag(False, "contextual calibration with content-free inputs (Zhao et al. 2021)")
    pmi: bool = flag(
        False, "divide by the labels' probabilities after the question alone: domain-conditional PMI (Holtzman et al. "
        "2021)",
    )  # fmt: skip
    prompts: str | None = input_flag(
        None, "questions instead of the task's, one per line, `question ||| word, word` for other words than the label "
        "names; several are averaged",
    )  # fmt: skip
    dtype: str = flag("float32", "compute precision", choices=("float32", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        """Raises ValueError for output names that graders would not recognise, and for two calibrations."""
        super().__post_init__()
        if self.calibrate and self.pmi:
            raise ValueError("--calibrate and --pmi exclude each other: name one of them")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainingSettings, SentimentSettings):
    """fine-tuning"""

    option: ClassVar[str] = "finetune"

    dev_share: float = flag(
        0.0, "take this share of --train as the dev set, and read no --dev", type=number(float, 0.0, 0.9), metavar="S"
    )
    train_examples: int | None = flag(
        None, "train on N sentences of --train, with equal counts of all labels, drawn by the seed", type=positive,
        metavar="N",
    )  # fmt: skip
    extra: str | None = flag(
        None, "further training lines; sentences of the dev and test sets are left out", metavar="FILE"
    )
    extra_weight: float = flag(
        1.0, "weight of a further line in the loss; a line of --train has 1", type=number(float, 0.0, above=True),
        metavar="W",
    )  # fmt: skip
    pooling: str = flag(
        "last_token", "hidden state to classify: the last real token's, the batch's last column (as the course), "
        "the mean over tokens, or a learned weighting of them",
        choices=("last_token", "last_column", "mean", "attention"),
    )  # fmt: skip
    head: str = flag(
        "linear", "a new head on the sentence, or one that starts from the label words after the zero-shot question "
        "(prompt-based fine-tuning)", choices=("linear", "label_words"),
    )  # fmt: skip
    hidden_dropout_prob: float = flag(
        0.3, "dropout before the classification head", type=number(float, 0.0, 0.99), metavar="P"
    )
    mixout: float = flag(
        0.0, "share of each matrix that is pretrained weight in a step (Lee et al. 2020)",
        type=number(float, 0.0, 0.99), metavar="P",
    )  # fmt: skip
    r_drop: float = flag(
        0.0, "weight of the divergence between two passes with dropout (Liang et al. 2021)", type=rate, metavar="W"
    )
    smart: float = flag(
        0.0, "weight of the smoothness penalty on shifted embeddings (Jiang et al. 2020)", type=rate, metavar="W"
    )
    proximal: float | None = flag(
        None, "weight of the divergence from an average of earlier weights, SMART's proximal point (Jiang et al. 2020)",
        type=number(float, 0.0, above=True), metavar="W",
    )  # fmt: skip
    proximal_momentum: float | None = flag(
        None, "decay per step of the average of --proximal, default: 0.99", type=number(float, 0.0, 0.9999, above=True),
        metavar="BETA",
    )  # fmt: skip
    ema: float | None = flag(
        None, "measure and keep an exponential moving average of the weights, with this decay per step",
        type=number(float, 0.0, 0.9999), metavar="BETA",
    )  # fmt: skip
    average: float | None = flag(
        None, "measure and keep the mean of the weights over this last share of the steps",
        type=number(float, 0.0, 1.0, above=True), metavar="SHARE",
    )  # fmt: skip
    layer_decay: float = flag(
        1.0, "each layer's learning rate is this share of the next one's", type=number(float, 0.0, 1.0, above=True),
        metavar="SHARE",
    )  # fmt: skip
    seeds: list[int] | None = flag(
        None, "one run for each seed; prints mean and standard deviation", type=seed_number, nargs="+", metavar="SEED"
    )


    def __post_init__(self) -> None:
        """Raises ValueError for output names that graders would not recognise, or flags that do not go together."""
        super().__post_init__()
        exclusive = (("train_examples", "extra"), ("ema", "average"))
        for first, second in exclusive:
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"--{first} and --{second} exclude each other: name one of them")
        if self.proximal_momentum is not None and self.proximal is None:
            raise ValueError("--proximal_momentum belongs to --proximal: name that too")
        if self.layer_decay < 1.0 and self.weight_decay:
            raise ValueError("--layer_decay and --weight_decay exclude each other: name one of them")


@dataclass(frozen=True, kw_only=True)
class LoraSettings(FinetuneSettings):
    """low-rank adaptation (LoRA)"""

    option: ClassVar[str] = "lora"

    adapter: str = flag(
        "lora", "LoRA; rsLoRA (scale A / √R); DoRA (a magnitude per row, Liu et al. 2024); or IA³ (vectors on keys, "
        "values and the feed-forward, Liu et al. 2022)", choices=("lora", "rslora", "dora", "ia3"),
    )  # fmt: skip
    lora_plus_ratio: float = flag(
        1.0, "the factors B learn at this multiple of --lr: LoRA+ (Hayou et al. 2024)",
        type=number(float, 0.0, above=True), metavar="RATIO",
    )  # fmt: skip
    lora_rank: int = flag(4, "rank R of the factors", type=positive, metavar="R")
    lora_alpha: float = flag(
        1.0, "the product of the factors is scaled by A / R", type=number(float, 0.0, above=True), metavar="A"
    )
    lora_targets: str = flag(
        "attention", "matrices with low-rank factors: attention only, or the feed-forward too",
        choices=("attention", "all"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raises ValueError as fine-tuning does, for flags that IA³ has no use for, and for two rules of rates."""
        super().__post_init__()
        unused = sorted({"lora_rank", "lora_alpha", "lora_targets", "lora_plus_ratio"} & self.given)
        if self.adapter == "ia3" and unused:
            raise ValueError(f"--{unused[0]} is not for --adapter ia3, which has no factors: leave it out")
        for name, usual in (("layer_decay", 1.0), ("weight_decay", 0.0)):
            if self.lora_plus_ratio != 1.0 and getattr(self, name) != usual:
                raise ValueError(f"--lora_plus_ratio and --{name} exclude each other: name one of them")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(MachineSettings):
    """a trained classifier and its input; without --input and --text, standard input is read"""

    option: ClassVar[str] = "predict"

    checkpoint: str = input_flag(
        "", "best.pt or merged.pt of a finetune or lora run, or a Hugging Face folder", required=True
    )
    input: list[str] | None = input_flag(
        None, "files with one sentence per line, or `label ||| sentence` per line", nargs="+"
    )
    text: list[str] | None = flag(None, "sentences to classify", metavar="TEXT", nargs="+")
    json: bool = flag(False, "print one JSON object per sentence")
    batch_size: int | None = flag(None, "sentences per batch, default: the training's", type=positive, metavar="N")
    dtype: str | None = flag(
        None, "compute precision, default: the training's", choices=("float32", "bfloat16", "float16")
    )
    pretrained_model_path: str | None = input_flag(
        None, "base model of a LoRA adapter, default: the one it was trained on",
        names=("--pretrained-model-path",),
    )  # fmt: skip
    tokenizer: str | None = input_flag(None, "tokenizer, default: the training's")

    def __post_init__(self) -> None:
        """Raises ValueError if there are two inputs."""
        if self.input is not None and self.text is not None:
            raise ValueError("--input and --text exclude each other: name one of them")
