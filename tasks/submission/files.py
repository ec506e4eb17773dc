"""What each edition of the course wants handed in, and the command that makes each file. Imports no torch.

    python -c "from tasks.submission.files import *; print(steps(COURSES['fall2025']))"
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tasks.sentiment.flags import COURSE_BATCH_SIZES

MB = 1_000_000
METHODS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}  # option: its name in file names
DATA_SETS = {"sst": 5, "cfimdb": 2}  # number of labels
LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}  # of the course's data files
ZERO_SHOT_REFERENCES = {  # zero-shot with stories42M at batch 10, last column; CFIMDB's test labels are placeholders
    "spring2026": {"sst-dev": 0.197, "sst-test": 0.176, "cfimdb-dev": 0.514},
    "fall2025": {"sst-dev": 0.237, "sst-test": 0.250, "cfimdb-dev": 0.490},  # without the causal mask
}
GENERATED = ("generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt")
CODE = ("run_llama", "base_llama", "llama", "rope", "config", "optimizer", "classifier", "tokenizer", "utils")
CHECKS = {  # script: what it prints when all is well
    "sanity_check.py": "Your Llama implementation is correct!",
    "rope_test.py": "Rotary embedding test passed!",
    "optimizer_test.py": "Optimizer test passed!",
}
DOCUMENTS = ("README.md", "structure.md", "checklist.md", "setup.sh", "sanity_check.data")
SUPPORT = ("requirements.txt", *(f"tests/golden/{name}.npz" for name in ("sanity", "rope", "optimizer")))
MODELS, BEST = "addition_models", "best_model"
ABLATION = re.compile(r"ablation_[0-9]+")
ABLATIONS = 5  # at least; two of them below 100 %
TRAINED = ("best_model.pth", "model_config.json", "training_config.json", "log.jsonl", "loss_curve.png")
TESTED = ("experiment_summary.json", "predictions.json")
ANDREW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
CAPACITY = 5_808_844_800_000
QUICK = (  # base flags of the quick ablations; each entry of CHANGES is appended and overrides them
    "--dim 8 --n_layers 2 --n_heads 2 --n_kv_heads 2 --hidden_dim 16 --rope_theta 100 --lr 1e-2 --schedule cosine "
    "--warmup_steps 200 --max_grad_norm 1 --batch_size 256 --epochs 1 --examples 2000000 --no_data_files"
)
CHANGES = ("", "--n_layers 1", "--n_kv_heads 1", "--rope_theta 10000", "--hidden_dim 4")


@dataclass(frozen=True)
class Course:
    """An edition of the assignment: the files that its zip must and may hold, and its size limit."""

    name: str
    limit_mb: int
    options: tuple[str, ...]  # options of run_llama.py whose predictions are handed in
    modules: tuple[str, ...]
    addition: bool
    documents: tuple[str, ...] = ()  # instead of the Canvas assignment's own
    scripts: tuple[str, ...] = ()  # commands to pack besides the course's, as modules
    made: str = ""  # folder of files to pack under their own names, instead of the project's

    @property
    def predictions(self) -> tuple[str, ...]:
        """The required prediction files."""
        return tuple(name for option in self.options for data in DATA_SETS for name in outputs(option, data))

    @property
    def required(self) -> tuple[str, ...]:
        """All required files, except those of the addition models and the modules that the code imports."""
        code = tuple(f"{module}.py" for module in CODE + self.modules)
        if self.documents:
            return (*code, *CHECKS, *self.documents, *SUPPORT)
        return (*code, *CHECKS, *DOCUMENTS, *SUPPORT, *GENERATED, *self.predictions)

    def optional(self, andrew_id: str) -> tuple[str, ...]:
        """Files that are packed if they exist."""
        advanced = tuple(f"{data}-{split}-advanced-output.txt" for data in DATA_SETS for split in ("dev", "test"))
        return ("feedback.txt", f"{andrew_id}-report.pdf", "LICENSE", *advanced)


COURSES = {
    "spring2026": Course(
        "spring2026", 15, ("prompt",), ("addition_data_generation", "addition_lib", "addition_run"), addition=True
    ),
    "fall2025": Course("fall2025", 10, ("prompt", "finetune", "lora"), ("lora",), addition=False),
}
AIL861 = Course(
    "ail861", 15, (), (), addition=False,
    documents=("README.md", "report.pdf", "setup.sh", "Makefile", "requirements-ail861.txt", "results/results.json",
               "results/tables.md", "results/continuations.json", "tasks/ail861/run.py", "bench/checkpointing.py"),
    scripts=("tasks.ail861.run", "bench.checkpointing"), made="runs/ail861/hand_in",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One of the course's commands: its words after `python`, the files it reads and the files it writes."""

    name: str
    words: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    task: str  # the module that does the work
    resumable: bool = False
    reads_model: bool = False  # reads the pretrained model

    @property
    def command(self) -> str:
        """The command line."""
        return "python " + shlex.join(self.words)

    @property
    def option(self) -> str | None:
        """The option of run_llama.py; None for addition_run.py."""
        return self.words[2] if self.words[1] == "--option" else None

    def with_flags(self, *words: str) -> Step:
        """The same command with more flags."""
        return replace(self, words=self.words + words)


def outputs(option: str, data: str) -> tuple[str, str]:
    """The two prediction files of an option on a data set."""
    return f"{data}-dev-{METHODS[option]}-output.txt", f"{data}-test-{METHODS[option]}-output.txt"


def sentiment_step(option: str, data: str) -> Step:
    """The course's command that classifies a data set, "sst" or "cfimdb"."""
    inputs = (*(f"data/{data}-{split}.txt" for split in ("train", "dev", "test")), f"data/{data}-label-mapping.json")
    dev, test = outputs(option, data)
    words = ["run_llama.py", "--option", option]
    words += [] if option == "prompt" else ["--epochs", "5", "--lr", "2e-5"]
    words += ["--batch_size", str(COURSE_BATCH_SIZES[data][option])]
    flags = ("--train", "--dev", "--test", "--label-names", "--dev_out", "--test_out")
    words += [word for pair in zip(flags, (*inputs, dev, test), strict=True) for word in pair]
    words += ["--lora_rank", "4", "--lora_alpha", "1.0"] if option == "lora" else []
    task = f"tasks.sentiment.{'prompt' if option == 'prompt' else 'training'}"
    return Step(f"{option} {data}", tuple(words), inputs, (dev, test), task, option != "prompt", True)


def addition_steps(folder: str) -> tuple[Step, Step]:
    """Trains and tests the model in `addition_models/FOLDER`: with the course's command, or as a quick ablation."""
    path = f"{MODELS}/{folder}"
    if folder == BEST:
        shape = f"--capacity {CAPACITY} --dim 16 --n_layers 6 --n_heads 4 --n_kv_heads 4 --epochs 10"
    else:
        number = int(folder.rpartition("_")[2])
        shape = f"{QUICK} {CHANGES[(number - 1) % len(CHANGES)]}"
    train = ("addition_run.py", "train", *shape.split(), "--save_dir", path)
    test = ("addition_run.py", "test", "--checkpoint", f"{path}/best_model.pth")
    trained, tested = (tuple(f"{path}/{name}" for name in names) for names in (TRAINED, TESTED))
    return (
        Step(f"addition {folder} train", train, (), trained, "addition_run", resumable=True),
        Step(f"addition {folder} test", test, (f"{path}/best_model.pth",), tested, "addition_run"),
    )


def addition_folders(existing: Iterable[str]) -> list[str]:
    """The folders of `addition_models` to hand in: existing ablations, new ones up to five, and the best model."""
    numbers = {int(name.rpartition("_")[2]) for name in existing if ABLATION.fullmatch(name)}
    new = (number for number in range(1, ABLATIONS + 1) if number not in numbers)
    while len(numbers) < ABLATIONS:
        numbers.add(next(new))
    return [f"ablation_{number}" for number in sorted(numbers)] + [BEST]


def steps(course: Course, models: Iterable[str] = ()) -> list[Step]:
    """The course's commands in order; `models` are the existing folders in `addition_models`."""
    words = ("run_llama.py", "--option", "generate")
    result = [Step("generate", words, (), GENERATED, "tasks.generate.task", reads_model=True)]
    result += [sentiment_step(option, data) for option in course.options for data in DATA_SETS]
    if course.addition:
        result += [step for folder in addition_folders(models) for step in addition_steps(folder)]
    return result


def remedy(name: str) -> str:
    """The command that makes a missing or wrong file, or its other source."""
    for step in (*steps(COURSES["fall2025"]), *_addition_of(name)):
        if name in step.outputs:
            return step.command
    if name == "sanity_check.data":
        return "bash setup.sh (or bash setup.sh --from DIR, DIR a copy of the course's repository)"
    if name == "report.pdf" or name.startswith("results/"):
        return "make submission COURSE=ail861 ENTRY=ID"
    if name == "feedback.txt" or name.endswith(("-report.pdf", "-advanced-output.txt")):
        return "optional; you write it"
    return f"git restore {name}"


def _addition_of(name: str) -> tuple[Step, ...]:
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == MODELS and (parts[1] == BEST or ABLATION.fullmatch(parts[1])):
        return addition_steps(parts[1])
    return ()


def check_andrew_id(andrew_id: str) -> str:
    """Strips blanks around the id. Raises ValueError for an id that cannot be the name of a folder."""
    andrew_id = andrew_id.strip()
    if not ANDREW_ID.fullmatch(andrew_id):
        raise ValueError(
            f"ANDREWID {andrew_id!r} must consist of letters, digits, - and _, and start with a letter or a digit; "
            "no blanks, no path"
        )
    return andrew_id
