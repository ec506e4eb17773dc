"""Memory and time of gradient checkpointing: bytes stored for the backward pass, and seconds per step.

    python -m bench.checkpointing
    python -m bench.checkpointing --layers 12 --dim 256 --out checkpointing.json

Memory is the peak of saved tensors' bytes (each storage once, without parameters), and on a GPU also
`torch.cuda.max_memory_allocated`. Settings alternate in one run and medians count. On a CPU, processor
time is measured. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from config import LlamaConfig
from engine.train.losses import cross_entropy
from llama import Llama


class _Saved:
    """A saved tensor, counted while the graph holds it."""

    def __init__(self, owner: SavedBytes, tensor: Tensor):
        self.owner, self.tensor = owner, tensor

    def __del__(self) -> None:
        self.owner.release(self.tensor)


class SavedBytes:
    """Context manager that counts the bytes saved for backward passes: `live` now, `peak` at most."""

    def __init__(self, model: nn.Module):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.holders: Counter[int] = Counter()
        self.live = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> SavedBytes:
        self.hooks.__enter__()
        return self

    def __exit__(self, *reason) -> None:
        self.hooks.__exit__(*reason)

    def _pack(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            if not self.holders[storage.data_ptr()]:
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
            self.holders[storage.data_ptr()] += 1
        return _Saved(self, tensor)

    def release(self, tensor: Tensor) -> None:
        """Decrements the holders, and the bytes with the last one."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.holders[storage.data_ptr()] -= 1
            if not self.holders[storage.data_ptr()]:
                self.live -= storage.nbytes()


def backward(model: Llama, tokens: Tensor) -> None:
    """Adds the gradients of one batch's loss to the model's."""
    hidden = model.hidden_states(tokens[:, :-1]).flatten(0, 1)
    cross_entropy(hidden, model.output.weight, tokens[:, 1:].flatten()).backward()


def step(model: Llama, tokens: Tensor) -> None:
    """Loss and gradients of one batch; the gradients are thrown away."""
    backward(model, tokens)
    model.zero_grad(set_to_none=True)


def measure(model: Llama, tokens: Tensor, segments: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """For each segment size in layers (0: off), the peak bytes saved and the median seconds."""
    found = {}
    for segment in segments:
        model.recompute = segment
        with SavedBytes(model) as saved:
            step(model, tokens)
        found[segment] = {"saved_bytes": saved.peak}
        if tokens.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            step(model, tokens)
            found[segment]["cuda_bytes"] = torch.cuda.max_memory_allocated()
    seconds = {segment: [] for segment in segments}
    clock = time.perf_counter if tokens.is_cuda else time.process_time
    for _ in range(rounds):
        for segment in segments:
            model.recompute = segment
            started = clock()
            step(model, tokens)
            if tokens.is_cuda:
                torch.cuda.synchronize()
            seconds[segment].append(clock() - started)
    return {segment: found[segment] | {"seconds": statistics.median(seconds[segment])} for segment in segments}


def main() -> None:
    """Measures every setting and prints ratios to the plain one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in {"layers": 12, "dim": 256, "heads": 8, "vocab": 6000, "rows": 16, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--segments", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="layers at a time; 0: none")
    parser.add_argument("--rounds", type=int, default=7, help="times each way is run")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab, dim=args.dim, n_layers=args.layers, n_heads=args.heads, n_kv_heads=args.heads,
        max_seq_len=args.tokens, dropout=0.1, position_embedding_type="sinusoidal", ffn_type="gelu",
        tie_embeddings=False,
    )  # fmt: skip
    device = torch.device("cuda" if args.use_gpu else "cpu")
    model = Llama(config).to(device).train()
    tokens = torch.randint(0, args.vocab, (args.rows, args.tokens + 1), device=device)
    found = measure(model, tokens, args.segments, args.rounds)
    plain = found.get(0)
    for segment, row in found.items():
        ratio = f" ({plain['saved_bytes'] / row['saved_bytes']:.2f} x less)" if plain else ""
        slower = f" ({row['seconds'] / plain['seconds']:.2f} x)" if plain else ""
        print(f"{segment} at a time: {row['saved_bytes'] / 1e6:.1f} MB{ratio}, {row['seconds']:.3f} s{slower}")
    content = json.dumps({"layers": args.layers, "dim": args.dim, "rows": args.rows, "ways": found})
    print(content)
    if args.out:
        args.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
