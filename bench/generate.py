"""Tokens per second of greedy generation: this project, transformers, CTranslate2 and llama2.c, on the same weights.

    python -m bench.generate
    python -m bench.generate --checkpoint models/stories.pt --tokens 256
    python -m bench.generate --llama2c DIR    # DIR holds `run` and `runq`, built from llama2.c's own repository

The default model has 42 million random weights. Every engine runs in its own process with each number of threads, and
engines alternate within every round. An engine's fastest number of threads counts, and ratios are medians over the
rounds. CTranslate2 is measured where it is installed (`pip install ctranslate2`). The last line is JSON; `--out FILE`
also writes it to a file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from bench import engines
from bench.engines import Engine, Rows, Sample
from config import LlamaConfig
from engine.decode.cpu_step import PRECISIONS
from engine.io.checkpoint import save_checkpoint
from engine.io.files import write_text
from engine.io.llama2c_export import write_bin, write_quantized_bin
from llama import Llama, load_pretrained

OURS = "this project,"
HOPELESS = 2.5  # a number of threads this many times slower than another is dropped


@dataclass
class Contender:
    """An engine, its prompts, and its samples by number of threads, in the order of the rounds."""

    name: str
    engine: Engine
    prompts: Rows
    dtype: str
    samples: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """The number of threads with the highest median speed."""
        return max(self.samples, key=lambda threads: statistics.median(s.rate for s in self.samples[threads]))

    def rates(self) -> list[float]:
        """Tokens per second in every round, with the fastest number of threads."""
        return [sample.rate for sample in self.samples[self.threads]]

    def rate(self) -> float:
        """The median of `rates`."""
        return statistics.median(self.rates())

    def prefill(self) -> float:
        """Median seconds for the prompts and the first token."""
        return statistics.median(sample.prefill for sample in self.samples[self.threads])


def main() -> None:
    """Measures every engine; prints the table, the ratios, whether the texts agree, and everything as JSON."""
    args = build_parser().parse_args()
    model = random_model() if args.checkpoint == "random" else load_pretrained(args.checkpoint, args.norm)
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(line_up(model, args, Path(folder)))
        measure(contenders, args)
    weights = sum(parameter.numel() for parameter in model.parameters())
    about = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "weights": weights}
    measured = {"engines": table(contenders), "ratios": ratios(contenders), "same_text": agreement(contenders)}
    text = json.dumps(vars(args) | about | measured)
    print(text)
    if args.out is not None:
        write_text(args.out, json.dumps(json.loads(text), indent=1) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", default="random", help="model, or random: 42 M random weights")
    add("--norm", choices=("layernorm", "rmsnorm"), help="norm of a checkpoint that does not name its own")
    add("--tokens", type=int, default=128, help="new tokens")
    add("--prompt_tokens", type=int, default=16, help="tokens of the prompt")
    add("--batch", type=int, nargs="+", default=[1, 20], help="rows decoded in parallel")
    add("--rounds", type=int, default=5, help="runs of each engine")
    add("--threads", type=int, nargs="+", default=[1, 2], help="numbers of CPU threads to try")
    add("--llama2c", metavar="DIR", help="folder of llama2.c's run and runq")
    add("--out", metavar="FILE", help="also write the results here")
    return parser


def random_model() -> Llama:
    """The 42-million configuration with RMSNorm, which every engine knows, and weights of some contrast."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(norm_type="rmsnorm")).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(3.0)  # fresh weights give almost equal logits
    return model


def prompts_of(model: Llama, count: int, length: int) -> Rows:
    """Prompts of BOS and random tokens, without repetition within a prompt."""
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randperm(model.config.vocab_size - 3, generator=generator)[: length - 1] for _ in range(count)]
    return [[1, *(tokens + 3).tolist()] for tokens in drawn]


def line_up(model: Llama, args: argparse.Namespace, folder: Path) -> Iterable[Contender]:
    """Every available engine at every batch size; prints which is left out and why."""
    weights = folder / "model.pt"
    save_checkpoint(weights, model.config, model.state_dict())
    made = {f"{OURS} {dtype}": (dtype, partial(engines.ours, weights, dtype)) for dtype in PRECISIONS}
    made["plain float32"] = "float32", partial(engines.ours, weights, None)
    made["transformers float32"] = "float32", partial(engines.transformers, weights)
    if importlib.util.find_spec("ctranslate2") is not None:
        engines.export_ctranslate2(model, folder)
        for dtype in ("float32", "int8"):
            made[f"CTranslate2 {dtype}"] = dtype, partial(engines.ctranslate2, folder, dtype)
    else:
        print("CTranslate2 is not measured: it is not installed (pip install ctranslate2)")
    running = {name: engines.Isolated(make) for name, (_, make) in made.items()}
    for batch in args.batch:
        prompts = prompts_of(model, batch, args.prompt_tokens)
        for name, (dtype, _) in made.items():
            if batch == 1 or name != "plain float32":
                yield Contender(name, running[name], prompts, dtype)
    if args.llama2c is None:
        return
    config = model.config
    if config.norm_type != "rmsnorm" or config.rope_theta != 10000.0 or config.layer_norm_eps != 1e-5:
        print("llama2.c is not measured: it supports only RMSNorm with its own base and eps")
        return
    yield from llama2c(model, prompts_of(model, 1, args.prompt_tokens), Path(args.llama2c), folder)


def llama2c(model: Llama, prompts: Rows, programs: Path, folder: Path) -> Iterable[Contender]:
    """llama2.c's two programs, with weights exported for them."""
    engines.write_llama2c_vocabulary(folder / "tokenizer.bin", model.config.vocab_size, prompts[0])
    exports = (("run", "float32", write_bin), ("runq", "int8", write_quantized_bin))
    for program, dtype, export in exports:
        export(folder / f"{program}.bin", model.config, model.state_dict())
        made = engines.llama2c(programs / program, folder / f"{program}.bin", folder, prompts[0])
        yield Contender(f"llama2.c {program}", made, prompts, dtype)


def measure(contenders: list[Contender], args: argparse.Namespace) -> None:
    """A warm-up, which drops hopeless numbers of threads, then the rounds with all engines alternating."""
    for contender in tqdm(contenders, desc="warming up"):
        warm = {threads: contender.engine(threads, contender.prompts, args.tokens) for threads in args.threads}
        best = max(sample.rate for sample in warm.values())
        contender.samples = {threads: [] for threads in warm if warm[threads].rate * HOPELESS > best}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        for contender in contenders:
            for threads, samples in contender.samples.items():
                time.sleep(0.3)  # until the previous engine's threads have stopped spinning
                samples.append(contender.engine(threads, contender.prompts, args.tokens))


def table(contenders: list[Contender]) -> dict[str, dict]:
    """Prints a line for each engine; returns the figures."""
    print(f"{'engine':<24}{'batch':>6}{'threads':>8}{'prefill':>10}{'tokens/s':>10}")
    rows = {}
    for contender in contenders:
        batch, prefill = len(contender.prompts), 1e3 * contender.prefill()
        print(f"{contender.name:<24}{batch:>6}{contender.threads:>8}{prefill:>7.1f} ms{contender.rate():>10,.0f}")
        medians = {str(t): round(statistics.median(s.rate for s in c), 1) for t, c in contender.samples.items()}
        rows[f"{contender.name}, batch {batch}"] = {
            "threads": contender.threads, "prefill_ms": round(prefill, 2),
            "tokens_per_second": round(contender.rate(), 1), "by_threads": medians,
        }  # fmt: skip
    return rows


def ratios(contenders: list[Contender]) -> dict[str, float]:
    """Prints and returns our speed relative to every other engine: the median of the ratios over the rounds."""
    relative = {}
    for our in (contender for contender in contenders if contender.name.startswith(OURS)):
        batch, parts = len(our.prompts), []
        for peer in contenders:
            if peer is not our and len(peer.prompts) == batch:
                times = statistics.median(a / b for a, b in zip(our.rates(), peer.rates(), strict=True))
                relative[f"{our.name} / {peer.name}, batch {batch}"] = round(times, 2)
                parts.append(f"{times:.2f} x {peer.name}")
        print(f"batch {batch}, {our.name}: {', '.join(parts)}")
    return relative


def agreement(contenders: list[Contender]) -> dict[str, bool]:
    """Prints and returns whether each float32 engine's tokens equal those of our plain path, or of the fused step."""
    agreed = {}
    for contender in contenders:
        peers = [c for c in contenders if len(c.prompts) == len(contender.prompts) and c.name.startswith("plain")]
        peers += [c for c in contenders if len(c.prompts) == len(contender.prompts) and c.name == f"{OURS} float32"]
        if contender.dtype == "float32" and contender is not peers[0]:
            rows, expected = (c.samples[c.threads][0].rows for c in (contender, peers[0]))
            same = rows == expected
            agreed[f"{contender.name}, batch {len(contender.prompts)}"] = same
            print(f"batch {len(contender.prompts)}: the text of {contender.name} is that of {peers[0].name}: {same}")
    return agreed


if __name__ == "__main__":
    main()
