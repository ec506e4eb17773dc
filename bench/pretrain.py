"""Pretraining throughput: this project's training step beside a plain loop around `transformers`' Llama.

    python -m bench.pretrain --threads 2 --dtype bfloat16
    python -m bench.pretrain --corpus train.txt --compile
    python -m bench.pretrain --use_gpu --dtype bfloat16 --size 42M --batch_tokens 65536

All train one model (the same weights at the start, RMSNorm, no dropout) in the same type, in alternating rounds of one
run, and must agree on the loss. The other loop is what one writes by hand: logits, F.cross_entropy over them,
clip_grad_norm_, torch.optim.AdamW; once on our batches ("transformers": the step alone is compared), and once on as
many documents drawn at random and padded to their longest, as a plain loop has them. Ours is `Trainer.step`, AdamW
too. Documents are random pieces, of lengths drawn as stories have them, or those of --corpus. Tokens are next-token
targets, padding not counted. The median of the rounds counts; on a CPU, where other processes disturb a clock, also
that of the processor's own time.

On a GPU model FLOP utilisation is printed: tokens/s · (6·N + 6·n_layers·n_heads·head_dim·T) / peak, where N counts all
weights that are multiplied (the tied embedding once, as output) and T is the mean length of the rows: the causal half
of Chowdhery et al. 2022, appendix B. Peaks are dense bfloat16 with float32 sums as the makers state them; another
device's is given by --peak_tflops. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import LlamaConfig
from engine.train.losses import IGNORED, cross_entropy
from engine.train.run_log import RunLog
from engine.train.trainer import Trainer, TrainSettings
from llama import Llama
from optimizer import AdamW, decay_groups
from tasks.stories.data import StoryBatches, TokenFile, encode_documents, read_documents
from tests.oracles import transformers_model
from tokenizer import load_tokenizer
from utils import DTYPES, autocast, check_compiler, compile_methods, set_up

SIZES = {  # the shipped story model's, and the course's
    "9M": {"vocab_size": 4096, "dim": 256, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2},
    "42M": {"vocab_size": 32000, "dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8},
}
RECIPE = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8}
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70}


class _Workload:
    """What the trainer needs: next-token prediction, as in `pretrain.StoryWorkload`."""

    def __init__(self, batches: StoryBatches):
        self.batches = batches

    def batches_per_epoch(self, epoch: int) -> int:
        return len(self.epoch(epoch))

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return self.batches.epoch(epoch)

    def count(self, batch: np.ndarray) -> int:
        return self.batches.count(batch)

    def loss(self, model: Llama, batch: np.ndarray) -> Tensor:
        tokens, targets = (tensor.to(model.device) for tensor in self.batches.tensors(batch))
        return cross_entropy(model.hidden_states(tokens).flatten(0, 1), model.output.weight, targets.flatten())


def our_step(model: Llama, batches: StoryBatches, args: argparse.Namespace) -> Callable[[np.ndarray], float]:
    """The project's own step, schedule and all."""
    settings, folder = TrainSettings(epochs=1, dtype=args.dtype), Path(tempfile.gettempdir())
    optimizer = AdamW(decay_groups(model, 0.1), max_grad_norm=1.0, **RECIPE)
    trainer = Trainer(model, optimizer, _Workload(batches), settings, folder, model.device, RunLog(None), {})
    return lambda batch: trainer.step([batch])[0]


def plain_step(ours: Llama, batches: StoryBatches, args: argparse.Namespace) -> Callable[[np.ndarray], float]:
    """A plain loop around transformers' Llama with the same weights."""
    model = transformers_model(ours).to(ours.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, **RECIPE)

    def step(batch: np.ndarray) -> float:
        tokens, targets = (tensor.to(ours.device) for tensor in batches.tensors(batch))
        with autocast(ours.device, DTYPES[args.dtype]):
            logits = model(input_ids=tokens, use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def token_data(args: argparse.Namespace, vocabulary: int) -> TokenFile:
    """The documents of --corpus, or random ones whose lengths are log-normal about 200, as stories' are."""
    if args.corpus is not None:
        return encode_documents(read_documents(args.corpus), load_tokenizer("models/stories.model"))
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(200), 0.4, 4000), 20, 1000).astype(np.int64)
    tokens = random.integers(4, vocabulary, lengths.sum(), dtype=np.uint16)
    return TokenFile(tokens, np.cumsum([0, *lengths], dtype=np.int64))


def measure(
    ways: dict[str, tuple[Callable, list[np.ndarray]]], batches: StoryBatches, args: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """For each way, a step and its batches, the median tokens per second, and per second of processor time."""
    found = {name: [] for name in ways}
    for begin in range(0, args.steps * args.rounds, args.steps):
        for name, (step, chosen) in ways.items():
            group = chosen[begin : begin + args.steps]
            began = time.perf_counter(), time.process_time()
            for batch in group:
                step(batch)  # ends with the loss as a number: a GPU has done its work
            ended, tokens = (time.perf_counter(), time.process_time()), sum(map(batches.count, group))
            found[name].append([tokens / (end - start) for start, end in zip(began, ended, strict=True)])
    return {name: tuple(map(statistics.median, zip(*rates, strict=True))) for name, rates in found.items()}


def flops_a_token(model: Llama, rows: float) -> float:
    """Of the forward and the backward pass; see the module's text."""
    config, weights = model.config, {id(p): p.numel() for p in model.parameters() if p.dim() >= 2}
    return 6 * sum(weights.values()) + 6 * config.n_layers * config.n_heads * config.head_dim * rows


def utilisation(model: Llama, tokens_per_second: float, rows: float, peak: float | None) -> float | None:
    """Share of the device's peak; None where it is not known."""
    name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else ""
    peak = peak or next((value for known, value in PEAK_TFLOPS.items() if known in name), None)
    return None if peak is None else round(tokens_per_second * flops_a_token(model, rows) / (peak * 1e12), 4)


def report(rates: dict[str, tuple[float, float]], model: Llama, rows: float, args: argparse.Namespace) -> None:
    """A table of tokens per second, and all figures as JSON."""
    for name, (wall, processor) in rates.items():
        print(f"{name:<24} {wall:10,.0f} tokens/s {processor:10,.0f} tokens/s of processor time")
    figures = {"parameters": model.parameter_count(), "threads": torch.get_num_threads(), "rounds": args.rounds}
    figures |= {"size": args.size, "batch_tokens": args.batch_tokens, "dtype": args.dtype, "compile": args.compile}
    for clock, suffix in enumerate(("", "_processor_time")):
        for name, rate in rates.items():
            figures[f"{name}{suffix}"] = round(rate[clock], 1)
            figures[f"ours / {name}{suffix}"] = round(rates["ours"][clock] / rate[clock], 3)
    figures["utilisation"] = {name: utilisation(model, rate[0], rows, args.peak_tflops) for name, rate in rates.items()}
    print(json.dumps(figures))


def parse_args() -> argparse.Namespace:
    """The flags; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="9M")
    parser.add_argument("--corpus", metavar="FILE", help="9M: text tokenised by the shipped tokenizer")
    parser.add_argument("--max_seq_len", type=int, default=1024)
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="our layers, as pretrain's flag does")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--peak_tflops", type=float, help="of the device in this type")
    args = parser.parse_args()
    if args.corpus is not None and args.size != "9M":
        parser.error("--corpus goes with --size 9M")
    return args


def main() -> None:
    """Builds both on equal weights, checks that they agree, times them and reports."""
    args = parse_args()
    device = set_up(0, args.use_gpu, args.threads)
    model = Llama(LlamaConfig(**SIZES[args.size], max_seq_len=args.max_seq_len, norm_type="rmsnorm")).to(device)
    data = token_data(args, model.config.vocab_size)
    batches = StoryBatches(data, np.arange(len(data)), args.max_seq_len, args.batch_tokens, seed=0)
    plain, ours = plain_step(model, batches, args), our_step(model, batches, args)
    if args.compile:
        check_compiler(device)
        compile_methods(model, "hidden_states")
    first, *chosen = batches.epoch(0)[: 1 + args.steps * args.rounds]
    losses = [step(first) for step in (plain, ours)]  # the warm-up
    if abs(losses[0] - losses[1]) > (1e-3 if args.dtype == "float32" else 5e-2):
        raise SystemExit(f"the two do not compute the same: losses {losses}")
    sizes = np.cumsum([len(batch) for batch in chosen])
    random = np.split(np.random.default_rng(0).permutation(len(batches.rows))[: sizes[-1]], sizes[:-1])
    rows = batches.count(np.concatenate(chosen)) / sizes[-1]
    print(f"{model.parameter_count():,} parameters, rows of {rows:.0f} tokens, {torch.get_num_threads()} thread(s)")
    ways = {"transformers": (plain, chosen), "transformers, random": (plain, random), "ours": (ours, chosen)}
    report(measure(ways, batches, args), model, rows, args)


if __name__ == "__main__":
    main()
