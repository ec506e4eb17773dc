"""Tokens a second of greedy generation: this project, transformers, CTranslate2 and llama2.c, on the same weights.

    python -m bench.generate
    python -m bench.generate --checkpoint models/stories.pt --tokens 256
    python -m bench.generate --llama2c DIR    # DIR holds `run` and `runq`, built from llama2.c's own repository

The default is 42 million random weights. Every engine runs with each number of threads, in turn, round after round,
in a process of its own; its fastest number counts, and ratios are medians over the rounds. CTranslate2 is measured
where it is installed (`pip install ctranslate2`). The floor is the weights read once a token at the bandwidth measured
here. The last line is JSON.
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

from bench import engines
from bench.engines import Engine, Rows, Sample
from config import LlamaConfig
from engine.decode.cpu_step import KINDS
from engine.io.checkpoint import save_checkpoint
from llama import Llama, load_pretrained

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
HOPELESS = 2.5  # a number of threads this many times slower than another is not measured further


@dataclass
class Contender:
    """An engine with what it is measured on: its samples by number of threads, in the order of the rounds."""

    name: str
    engine: Engine
    prompts: Rows
    kind: str
    samples: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """The fastest number of threads."""
        return max(self.samples, key=lambda threads: statistics.median(s.rate for s in self.samples[threads]))

    def rates(self) -> list[float]:
        """Tokens a second in every round, with the fastest number of threads."""
        return [sample.rate for sample in self.samples[self.threads]]

    def rate(self) -> float:
        """Their median."""
        return statistics.median(self.rates())

    def prefill(self) -> float:
        """Seconds for the prompts and the first token, the median."""
        return statistics.median(sample.prefill for sample in self.samples[self.threads])


def main() -> None:
    """Measures every engine and prints the table, the ratios, what text they agree on, and all as JSON."""
    args = build_parser().parse_args()
    model = random_model() if args.checkpoint == "random" else load_pretrained(args.checkpoint, args.norm)
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(line_up(model, args, Path(folder)))
        measure(contenders, args)
    speeds = {threads: bandwidth(threads) for threads in args.threads}
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not model.config.tie_embeddings:
        weights -= model.tok_embeddings.weight.numel()  # looked up, never read as a whole
    found = table(contenders, weights, max(speeds.values()))
    compared = ratios(contenders)
    texts = agreement(contenders)
    about = {"torch": torch.__version__, "cpu": platform.machine(), "bandwidth_gb_s": speeds, "weights": weights}
    print(json.dumps(vars(args) | about | {"engines": found, "ratios": compared, "same_text": texts}))


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", default="random", help="model, or random: 42 M random weights")
    add("--norm", choices=("layernorm", "rmsnorm"), help="norm of a checkpoint that does not say which it has")
    add("--tokens", type=int, default=128, help="new tokens")
    add("--prompt_tokens", type=int, default=16, help="tokens of the prompt")
    add("--batch", type=int, nargs="+", default=[1, 20], help="rows generated at once")
    add("--rounds", type=int, default=5, help="times each engine is run")
    add("--threads", type=int, nargs="+", default=[1, 2], help="numbers of CPU threads to try")
    add("--llama2c", metavar="DIR", help="folder of llama2.c's run and runq")
    return parser


def random_model() -> Llama:
    """The 42-million configuration with RMSNorm, which every engine knows, and weights of some contrast."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(norm_type="rmsnorm")).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(3.0)  # as freshly drawn, the likeliest token is hardly likelier than the next
    return model


def prompts_of(model: Llama, count: int, length: int) -> Rows:
    """Prompts of BOS and drawn tokens, no token twice in one."""
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randperm(model.config.vocab_size - 3, generator=generator)[: length - 1] for _ in range(count)]
    return [[1, *(tokens + 3).tolist()] for tokens in drawn]


def line_up(model: Llama, args: argparse.Namespace, folder: Path) -> Iterable[Contender]:
    """Every engine that is here, at every batch size; says which is left out and why."""
    weights = folder / "model.pt"
    save_checkpoint(weights, model.config, model.state_dict())
    made = {f"lean {kind}": (kind, partial(engines.ours, weights, kind)) for kind in KINDS}
    made["plain float32"] = "float32", partial(engines.ours, weights, None)
    made["transformers float32"] = "float32", partial(engines.transformers, weights)
    if importlib.util.find_spec("ctranslate2") is not None:
        engines.export_ctranslate2(model, folder)
        for kind in ("float32", "int8"):
            made[f"CTranslate2 {kind}"] = kind, partial(engines.ctranslate2, folder, kind)
    else:
        print("CTranslate2 is not measured: it is not installed (pip install ctranslate2)")
    running = {name: engines.Isolated(make) for name, (_, make) in made.items()}
    for batch in args.batch:
        prompts = prompts_of(model, batch, args.prompt_tokens)
        for name, (kind, _) in made.items():
            if batch == 1 or name != "plain float32":
                yield Contender(name, running[name], prompts, kind)
    if args.llama2c is None:
        return
    config = model.config
    if config.norm_type != "rmsnorm" or config.rope_theta != 10000.0 or config.layer_norm_eps != 1e-5:
        print("llama2.c is not measured: it has RMSNorm alone, and base and eps of its own")
        return
    yield from llama2c(model, prompts_of(model, 1, args.prompt_tokens), Path(args.llama2c), folder)


def llama2c(model: Llama, prompts: Rows, programs: Path, folder: Path) -> Iterable[Contender]:
    """llama2.c's two programs, over weights written here."""
    engines.write_llama2c_vocabulary(folder / "tokenizer.bin", model.config.vocab_size, prompts[0])
    exports = (("run", "float32", engines.export_run), ("runq", "int8", engines.export_runq))
    for program, kind, export in exports:
        export(model, folder / f"{program}.bin")
        made = engines.llama2c(programs / program, folder / f"{program}.bin", folder, prompts[0])
        yield Contender(f"llama2.c {program}", made, prompts, kind)


def measure(contenders: list[Contender], args: argparse.Namespace) -> None:
    """A warm-up, which drops hopeless numbers of threads, then the rounds, all engines alternating."""
    for contender in contenders:
        warm = {threads: contender.engine(threads, contender.prompts, args.tokens) for threads in args.threads}
        best = max(sample.rate for sample in warm.values())
        contender.samples = {threads: [] for threads in warm if warm[threads].rate * HOPELESS > best}
    for _ in range(args.rounds):
        for contender in contenders:
            for threads, samples in contender.samples.items():
                time.sleep(0.3)  # until the threads of the engine before have stopped spinning
                samples.append(contender.engine(threads, contender.prompts, args.tokens))


def bandwidth(threads: int) -> float:
    """Gigabytes a second that can be read from memory: the fastest of several sums over far more than the caches."""
    torch.set_num_threads(threads)
    values = torch.ones(2**27)  # 512 MB
    times = []
    for _ in range(8):
        started = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - started)
    return round(values.numel() * 4 / min(times) / 1e9, 1)


def table(contenders: list[Contender], weights: int, speed: float) -> dict[str, dict]:
    """Prints a line for each engine; returns the figures."""
    print(f"bandwidth {speed:.1f} GB/s; {weights / 1e6:.1f} M weights")
    print(f"{'engine':<22}{'batch':>6}{'threads':>8}{'prefill':>10}{'tokens/s':>10}{'of the floor':>14}")
    found = {}
    for contender in contenders:
        batch = len(contender.prompts)
        floor = speed * 1e9 / (weights * BYTES[contender.kind]) * batch
        share = contender.rate() / floor
        print(f"{contender.name:<22}{batch:>6}{contender.threads:>8}{1e3 * contender.prefill():>7.1f} ms", end="")
        print(f"{contender.rate():>10,.0f}{share:>13.0%}")
        medians = {str(t): round(statistics.median(s.rate for s in c), 1) for t, c in contender.samples.items()}
        found[f"{contender.name}, batch {batch}"] = {
            "threads": contender.threads, "prefill_ms": round(1e3 * contender.prefill(), 2),
            "tokens_per_second": round(contender.rate(), 1), "by_threads": medians, "of_floor": round(share, 3),
        }  # fmt: skip
    return found


def ratios(contenders: list[Contender]) -> dict[str, float]:
    """Prints and returns how many times as fast ours are as every other engine, round by round, the median."""
    found = {}
    for our in (contender for contender in contenders if contender.name.startswith("lean")):
        batch, parts = len(our.prompts), []
        for peer in contenders:
            if peer is not our and len(peer.prompts) == batch:
                times = statistics.median(a / b for a, b in zip(our.rates(), peer.rates(), strict=True))
                found[f"{our.name} / {peer.name}, batch {batch}"] = round(times, 2)
                parts.append(f"{times:.2f} x {peer.name}")
        print(f"batch {batch}, {our.name}: {', '.join(parts)}")
    return found


def agreement(contenders: list[Contender]) -> dict[str, bool]:
    """Prints and returns whether each float32 engine's tokens are those of our plain path, or of the lean step."""
    found = {}
    for contender in contenders:
        peers = [c for c in contenders if len(c.prompts) == len(contender.prompts) and c.name.startswith("plain")]
        peers += [c for c in contenders if len(c.prompts) == len(contender.prompts) and c.name == "lean float32"]
        if contender.kind == "float32" and contender is not peers[0]:
            rows, expected = (c.samples[c.threads][0].rows for c in (contender, peers[0]))
            same = rows == expected
            found[f"{contender.name}, batch {len(contender.prompts)}"] = same
            print(f"batch {len(contender.prompts)}: the text of {contender.name} is that of {peers[0].name}: {same}")
    return found


if __name__ == "__main__":
    main()
