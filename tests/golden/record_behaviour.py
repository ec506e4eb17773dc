"""Records what some forty short seeded commands print and write, to show that a refactoring changes no behaviour.

    python -m tests.golden.record_behaviour --out before.json          (about three minutes on one core)
    python -m tests.golden.record_behaviour --out after.json --against before.json

The arithmetic depends on the processor and on torch's version: compare only records that one machine has made. A
record holds, for each command, its exit code, its printed lines without times and speeds, and a digest of every file
that it wrote: of a checkpoint the digests of its tensors, of a log its losses.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PIXELS = (".png", ".pdf")  # drawn files: only that they are there is recorded
VOLATILE = re.compile(r"tokens/s|tokens_per_second|seconds|minutes|CPU threads|examples/s|\bhours\b|problems/s")
VOLATILE_KEYS = {"seconds", "processor_seconds", "minutes", "hours", "tokens_per_second", "command", "torch", "made"}
VOLATILE_KEYS |= {"peak_memory_mb"}
LLAMA2C = {"compute_query": "wq", "compute_key": "wk", "compute_value": "wv", "compute_output": "wo"}
WORDS = "the cat sat on a mat and saw one small bird in an old tree while Tom ran home with Ann to eat".split()


def make_inputs(folder: Path) -> None:
    """Writes a corpus, review files and one shipped-model copy in every checkpoint format into `folder`."""
    draw = iter(int(hashlib.sha256(str(i).encode()).hexdigest(), 16) for i in range(10**6))
    stories = [" ".join(WORDS[next(draw) % len(WORDS)] for _ in range(20 + next(draw) % 40)) for _ in range(60)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories) + "\n", "utf-8")
    for split, count in (("train", 40), ("dev", 12), ("test", 12)):
        lines = [f"{i % 2} ||| {stories[i]} {'good' if i % 2 else 'bad'} ." for i in range(count)]
        (folder / f"tiny-{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "tiny-label-mapping.json").write_text('["bad", "good"]\n', "utf-8")
    (folder / "prompts.txt").write_text("Once upon a time\nThe dog\nLily and Ben went to the park.\n", "utf-8")
    shutil.copytree(ROOT / "addition_models" / "best_model", folder / "adder")
    write_formats(folder)


def write_formats(folder: Path) -> None:
    """A small model with random weights as the course's .pt, llama2.c's .pt and llama2.c's legacy .bin."""
    common = {"multiple_of": 32, "norm_eps": 1e-5}
    args = common | {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 4096, "max_seq_len": 64}
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / 8

    state = {"tok_embeddings.weight": draw(4096, 32)}
    for layer in ("layers.0.", "layers.1."):
        for name, rows in (("query", 32), ("key", 16), ("value", 16), ("output", 32)):
            state[f"{layer}attention.compute_{name}.weight"] = draw(rows, 32)
        state |= {f"{layer}feed_forward.{name}.weight": draw(96, 32) for name in ("w1", "w3")}
        state[f"{layer}feed_forward.w2.weight"] = draw(32, 96)
        state |= {f"{layer}{norm}.weight": 1 + draw(32) for norm in ("attention_norm", "ffn_norm")}
    state["norm.weight"] = 1 + draw(32)
    tied = {"output.weight": state["tok_embeddings.weight"]}
    torch.save({"model": state | tied, "model_args": args}, folder / "course.pt")
    renamed = {f"_orig_mod.{_llama2c_name(name)}": tensor for name, tensor in (state | tied).items()}
    torch.save({"model": renamed, "model_args": args}, folder / "llama2c.pt")
    with open(folder / "legacy.bin", "wb") as file:
        file.write(struct.pack("<7i", 32, 96, 2, 4, 2, 4096, 64))
        for name in _bin_names():
            file.write(state[name].numpy().tobytes())
        file.write(bytes(2 * 4 * 64 * 4))  # the two rotation tables, which a reader computes itself
    shutil.copy(ROOT / "models" / "stories.model", folder / "tokenizer.model")


def _llama2c_name(name: str) -> str:
    for ours, theirs in LLAMA2C.items():
        name = name.replace(ours, theirs)
    return name


def _bin_names() -> list[str]:
    kinds = ["attention_norm", *(f"attention.{name}" for name in LLAMA2C), "ffn_norm"]
    kinds += [f"feed_forward.{name}" for name in ("w1", "w2", "w3")]
    layers = [f"layers.{layer}.{kind}.weight" for kind in kinds for layer in (0, 1)]
    return ["tok_embeddings.weight", *layers, "norm.weight"]


LLAMA = ["run_llama.py", "--threads", "1", "--option"]
CORPUS = ["--corpus", "{}/stories.txt"]
SHAPE = "--dim 32 --n_layers 2 --n_heads 4 --n_kv_heads 2 --max_seq_len 64 --batch_tokens 1024".split()
FRESH = [*CORPUS, "--tokenizer", "{}/mine.model", *SHAPE, "--epochs", "2"]


def commands() -> dict[str, list[str]]:
    """Name and words of every command, in order; `{}` in a word stands for the temporary folder."""
    checks = {"sanity check": ["sanity_check.py"], "rope test": ["rope_test.py"]}
    checks["optimizer test"] = ["optimizer_test.py"]
    refused = {
        "missing model": [*LLAMA, "generate", "--pretrained-model-path", "{}/none.pt"],
        "wrong output name": [*LLAMA, "finetune", "--dev_out", "{}/dev.txt"],
        "too many heads": [*LLAMA, "pretrain", *FRESH, "--n_heads", "5", "--save_dir", "{}/bad"],
    }
    return generate_commands() | sentiment_commands() | story_commands() | addition_commands() | checks | refused


def generate_commands() -> dict[str, list[str]]:
    """Text generation at both temperatures, in batches, with narrower weights and past the model's positions."""
    texts = "--generated_sentence_low_temp_out {}/low.txt --generated_sentence_high_temp_out {}/high.txt".split()
    generate, prompts = [*LLAMA, "generate"], ["--prompt_file", "{}/prompts.txt"]
    return {
        "generate": [*generate, *texts],
        "generate sampled": [*generate, "--prompt", "Once upon", "--temperature", "0.8", "--top_k", "40",
                             "--min_p", "0.02", "--seed", "7"],
        "generate epsilon": [*generate, "--prompt", "", "--temperature", "1", "--epsilon", "0.01"],
        "generate batch": [*generate, *prompts, "--batch_size", "2"],
        "generate samples": [*generate, *prompts, "--batch_size", "4", "--num_samples", "2", "--temperature", "0.9",
                             "--max_new_tokens", "40"],
        "generate int8": [*generate, "--quantize", "int8"],
        "generate bfloat16": [*generate, "--dtype", "bfloat16"],
        "generate past the positions": [*generate, "--prompt", "A", "--temperature", "1", "--max_new_tokens", "1200"],
    }  # fmt: skip


def sentiment_commands() -> dict[str, list[str]]:
    """Zero-shot, fine-tuning and LoRA on forty short sentences."""
    data = [word for split in ("train", "dev", "test") for word in (f"--{split}", f"{{}}/tiny-{split}.txt")]
    data += ["--label-names", "{}/tiny-label-mapping.json", "--save_dir", "{}/runs"]

    def command(option: str, method: str, flags: str) -> list[str]:
        files = [word for s in ("dev", "test") for word in (f"--{s}_out", f"{{}}/tiny-{s}-{method}-output.txt")]
        return [*LLAMA, option, *data, *files, *flags.split()]

    long = "--epochs 1 --lr 1e-3 --lora_targets all --weight_decay 0.1 --dtype bfloat16 --seeds 1 2"
    return {
        "prompt": command("prompt", "prompting", ""),
        "prompt, last column": command("prompt", "prompting", "--pooling last_column --batch_size 10 --no_causal_mask"),
        "prompt in sequence": command("prompt", "prompting", "--label_scoring sequence --calibrate"),
        "finetune": command("finetune", "finetuning", "--epochs 1 --lr 3e-4"),
        "lora": command("lora", "lora", "--epochs 1 --lr 2e-3"),
        "lora on all": command("lora", "lora", f"{long} --max_grad_norm 1 --schedule cosine --warmup_steps 2"),
    }


def story_commands() -> dict[str, list[str]]:
    """Tokenizers, pretraining and evaluation, in every checkpoint format."""
    pretrain, evaluate = [*LLAMA, "pretrain"], [*LLAMA, "evaluate", *CORPUS]
    packed = "--packing separate --gradient_checkpointing --optimizer adamw --accumulation 2".split()
    learn = ["run_llama.py", "--option", "tokenizer", *CORPUS, "--vocab_size", "300"]
    words = "--position_embedding_type sinusoidal --ffn_type relu --norm_position post --dtype bfloat16".split()
    return {
        "tokenizer": [*learn, "--tokenizer", "{}/mine.model"],
        "words": [*learn, "--tokenizer", "{}/words.json"],
        "pretrain": [*pretrain, *FRESH, "--save_dir", "{}/fresh", "--export", "{}/mine.pt"],
        "pretrain packed": [*pretrain, *FRESH, "--save_dir", "{}/packed", *packed],
        "pretrain words": [*pretrain, *CORPUS, "--tokenizer", "{}/words.json", *SHAPE, *words, "--epochs", "1",
                           "--save_dir", "{}/words"],
        "pretrain on": [*pretrain, *CORPUS, "--pretrained-model-path", "models/stories.pt", "--epochs", "1",
                        "--optimizer", "adamw", "--lr", "1e-4", "--save_dir", "{}/on"],
        "evaluate": [*evaluate, "--save_dir", "{}/on"],
        "evaluate stories": [*evaluate, "--stories", "3", "--pretrained-model-path", "{}/words/best.pt",
                             "--save_dir", "{}/words"],
    } | {
        f"evaluate {name}": [*evaluate, "--pretrained-model-path", f"{{}}/{file}", *more]
        for name, file, more in (
            ("the export", "mine.pt", []),
            ("the course's .pt", "course.pt", []),
            ("the course's .pt with RMSNorm", "course.pt", ["--norm", "rmsnorm"]),
            ("llama2.c's .pt", "llama2c.pt", ["--norm", "rmsnorm"]),
            ("llama2.c's .bin", "legacy.bin", ["--norm", "rmsnorm", "--tokenizer", "{}/tokenizer.model"]),
        )
    }  # fmt: skip


def addition_commands() -> dict[str, list[str]]:
    """Adders trained for five steps, and the shipped one tested."""
    small = "--dim 8 --n_layers 2 --n_heads 2 --n_kv_heads 1 --hidden_dim 8 --batch_size 64 --threads 1 --epochs 1"
    flags = f"{small} --dev_examples 50 --no_compile --log_every 1 --no_data_files --examples 320".split()
    train, search = ["addition_run.py", "train", *flags], "--trial_seeds 3 --trial_examples 640 --seeds 2 --nines 0.3"
    return {
        "addition train": [*train, "--save_dir", "{}/adders"],
        "addition train plain": [*train, "--plain", "--save_dir", "{}/plain"],
        "addition trial": [*train, *search.split(), "--save_dir", "{}/trial"],
        "addition test": ["addition_run.py", "test", "--threads", "1", "--checkpoint", "{}/adder/best_model.pth"],
        "addition prompt": [*LLAMA, "addition", "--prompt", "1234+5678="],
    }


def run(words: list[str], tmp: Path) -> dict[str, Any]:
    """Runs one command from the repository's root; returns its exit code and its lines."""
    filled = [word.replace("{}", str(tmp)) for word in words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, *filled], cwd=ROOT, env=environment, capture_output=True, text=True,
                          encoding="utf-8", check=False)  # fmt: skip
    lines = done.stdout.splitlines() if done.returncode == 0 else [*done.stdout.splitlines(), *done.stderr.splitlines()]
    kept = [_plain(line, tmp) for line in lines if not VOLATILE.search(line)]
    return {"code": done.returncode, "lines": kept}


def _plain(line: str, tmp: Path) -> str:
    return line.replace(str(tmp), "TMP").replace(str(ROOT), "ROOT").rstrip()


def digest(path: Path, tmp: Path) -> Any:
    """What is recorded of a file: tensors and logs by their contents, drawn files by their presence."""
    if path.suffix in PIXELS:
        return "drawn"
    if path.suffix in (".pt", ".pth"):
        return _digest_of(_plain(repr(_stable(torch.load(path, weights_only=True))), tmp))
    if path.suffix == ".jsonl":
        return [_stable(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".json":
        return _digest_of(_plain(json.dumps(_stable(json.loads(path.read_text("utf-8")))), tmp))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _digest_of(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _stable(value: Any) -> Any:
    """The value with tensors as digests, and without times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.float().numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, dict):
        return {str(key): _stable(item) for key, item in sorted(value.items(), key=str) if not _volatile(key)}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value


def _volatile(key: Any) -> bool:
    return key in VOLATILE_KEYS or str(key).endswith(("tokens_per_second", "times_faster"))


def record() -> dict[str, Any]:
    """Every command's exit code, lines and files written."""
    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        make_inputs(tmp)
        known = _files(tmp)
        for title, words in commands().items():
            recorded[title] = run(words, tmp)
            now = _files(tmp)
            changed = sorted(path for path in now if now[path] != known.get(path))
            recorded[title]["files"] = {str(path.relative_to(tmp)): digest(path, tmp) for path in changed}
            known = now
            print(f"{title}: code {recorded[title]['code']}, {len(changed)} files", flush=True)
    return recorded


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each thing that is not the same in both records."""
    found = []
    for title in sorted(set(before) | set(after)):
        old, new = before.get(title), after.get(title)
        if old is None or new is None:
            found.append(f"{title}: only {'after' if old is None else 'before'}")
            continue
        found += [f"{title}: {key} was {old[key]}, is {new[key]}" for key in ("code", "lines") if old[key] != new[key]]
        for file in sorted(set(old["files"]) | set(new["files"])):
            if old["files"].get(file) != new["files"].get(file):
                found.append(f"{title}: {file} differs")
    return found


def main() -> int:
    """Writes the record; with `--against` compares it and returns 1 where anything differs."""
    parser = argparse.ArgumentParser(description="Record the behaviour of the project's commands.")
    parser.add_argument("--out", required=True, help="the record, as JSON")
    parser.add_argument("--against", help="an earlier record to compare with")
    args = parser.parse_args()
    after = json.loads(json.dumps(record()))
    Path(args.out).write_text(json.dumps(after, indent=1) + "\n", "utf-8")
    if args.against is None:
        return 0
    found = differences(json.loads(Path(args.against).read_text("utf-8")), after)
    print("\n".join(found) or "the same behaviour")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
