"""Speed of fine-tuning: this project's loop, the course's plain loop, and a transformers loop with dynamic padding.

All loops train the same random 42-million-parameter model on the same sentences. Their steps alternate, so that other
load on the machine affects all of them. The course's loop: random batches, tokenised again at each step and padded to
the longest, logits over the vocabulary, explicit attention and norms, AdamW one tensor at a time. The transformers
loop: sentences tokenised once, random batches, padded to the longest with an attention mask, torch.optim.AdamW. Ours:
the project's trainer.

    python -m bench.finetune --train data/sst-train.txt --label-names data/sst-label-mapping.json
    python -m bench.finetune --train … --label-names … --dev data/sst-dev.txt --model models/stories.pt --lr 3e-4 \\
        --reach 0.33 0.35
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from classifier import LlamaEmbeddingClassifier
from config import LlamaConfig
from engine.train.run_log import RunLog
from engine.train.trainer import Trainer, TrainSettings
from llama import Attention, LayerNorm, Llama, load_pretrained
from optimizer import AdamW
from tasks.sentiment.data import Examples, SentenceBatches, read_examples, read_label_names, tokenise
from tasks.sentiment.report import predict_labels
from tests.oracles import transformers_model
from tokenizer import AnyTokenizer, load_tokenizer
from utils import pad

CPU = torch.device("cpu")


@dataclass
class Loop:
    """A training loop: a model and a function that trains on one batch and returns the number of ids computed."""

    name: str
    model: nn.Module
    step: Callable[[np.ndarray], int]
    batches: Callable[[int], list[np.ndarray]]  # of an epoch
    in_file_order: bool = False  # evaluate in file order, for a model that reads padding
    seconds: float = 0.0
    examples: int = 0
    computed: int = 0

    def train_on(self, batch: np.ndarray) -> None:
        """Does one timed step."""
        self.model.train()
        started = time.perf_counter()
        computed = self.step(batch)
        self.seconds += time.perf_counter() - started
        self.examples, self.computed = self.examples + len(batch), self.computed + computed


class _Workload:
    """The trainer's workload for a classifier."""

    def __init__(self, batches: SentenceBatches):
        self.batches = batches

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return self.batches.epoch(epoch)

    def count(self, batch: np.ndarray) -> int:
        return len(batch)

    def loss(self, model: nn.Module, batch: np.ndarray) -> Tensor:
        ids, labels = self.batches.tensors(batch)
        return F.nll_loss(model(ids), labels, reduction="sum")


def our_loop(model: LlamaEmbeddingClassifier, examples: Examples, args: argparse.Namespace, dtype: str) -> Loop:
    """The project's own trainer."""
    batches = SentenceBatches(examples, args.batch_size, model.pad_id, seed=0)
    settings, folder = TrainSettings(epochs=1, dtype=dtype), Path(tempfile.gettempdir())
    optimizer = AdamW(model.parameters(), lr=args.lr)
    trainer = Trainer(model, optimizer, _Workload(batches), settings, folder, CPU, RunLog(None), {})

    def step(batch: np.ndarray) -> int:
        trainer._step([batch])  # as `fit` does with every batch
        return len(batch) * int(batches.lengths[batch].max())

    return Loop(f"this project, {dtype}", model, step, batches.epoch)


def course_loop(
    model: LlamaEmbeddingClassifier, examples: Examples, args: argparse.Namespace, tokenizer: AnyTokenizer
) -> Loop:
    """The course's loop, on this project's model with explicit attention and norms as in the course's code."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.compute_query_key_value_scores = _explicit_attention
        elif isinstance(module, LayerNorm):
            module.forward = functools.partial(_explicit_norm, module)
    model.pooling = "last_column"  # evaluated as it is trained
    optimizer = AdamW(model.parameters(), lr=args.lr, foreach=False)

    def step(batch: np.ndarray) -> int:
        rows = [tokenizer.encode(examples.sentences[number], bos=True, eos=False) for number in batch]
        ids, labels = pad(rows, model.pad_id), torch.tensor([examples.labels[number] for number in batch])
        optimizer.zero_grad()
        _, hidden = model.llama(ids)  # logits of the last position and all hidden states
        log_probs = F.log_softmax(model.classifier_head(model.dropout(hidden[:, -1])), dim=-1)
        loss = F.nll_loss(log_probs, labels, reduction="sum") / args.batch_size
        loss.backward()
        optimizer.step()
        loss.item()
        return ids.numel()

    return Loop("the course's loop", model, step, lambda epoch: _random(len(examples), args.batch_size, epoch), True)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Like `Attention.compute_query_key_value_scores`; causal if there is no (boolean) mask."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))  # as the course does, even if shared = 1
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (batch, heads, seqlen, keys)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value


def _explicit_norm(norm: LayerNorm, x: Tensor) -> Tensor:
    return norm._norm(x.float()).type_as(x) * norm.weight + norm.bias


class _StableLmClassifier(nn.Module):
    """The transformers backbone with the same head."""

    def __init__(self, ours: LlamaEmbeddingClassifier):
        super().__init__()
        self.backbone, self.dropout = transformers_model(ours.llama).model, copy.deepcopy(ours.dropout)
        self.head, self.pad_id = copy.deepcopy(ours.classifier_head), ours.pad_id

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.pad_id
        hidden = self.backbone(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids)), mask.sum(dim=1) - 1]
        return F.log_softmax(self.head(self.dropout(last)), dim=-1)


def transformers_loop(ours: LlamaEmbeddingClassifier, examples: Examples, args: argparse.Namespace) -> Loop:
    """A plain loop around transformers' StableLM, which has this model's architecture and weights."""
    model = _StableLmClassifier(ours)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)

    def step(batch: np.ndarray) -> int:
        ids = pad([examples.ids[number] for number in batch], model.pad_id)
        loss = F.nll_loss(model(ids), torch.tensor([examples.labels[number] for number in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        return ids.numel()

    return Loop("transformers", model, step, lambda epoch: _random(len(examples), args.batch_size, epoch))


def _random(count: int, batch_size: int, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng(epoch).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def compare_speed(loops: list[Loop], lengths: np.ndarray, rounds: int, batch_size: int) -> None:
    """Times `rounds` steps of each loop, on batches evenly spaced in length."""
    chosen = []
    for loop in loops:
        full = [batch for batch in loop.batches(0) if len(batch) == batch_size]
        full.sort(key=lambda batch: lengths[batch].max())
        chosen.append([full[int((index + 0.5) * len(full) / rounds)] for index in range(rounds)])
        loop.train_on(chosen[-1][0])  # warm-up
        loop.seconds, loop.examples, loop.computed = 0.0, 0, 0
    for index in tqdm(range(rounds), desc="rounds"):
        for loop, batches in zip(loops, chosen, strict=True):
            loop.train_on(batches[index])


def print_speed(loops: list[Loop]) -> None:
    """Prints a Markdown table; the last column is the first loop's speed divided by each loop's."""
    own = loops[0].examples / loops[0].seconds
    print(f"| loop | examples/s | ids computed an example | {loops[0].name} is faster by |\n|---|---|---|---|")
    for loop in loops:
        speed = loop.examples / loop.seconds
        print(f"| {loop.name} | {speed:.1f} | {loop.computed / loop.examples:.1f} | {own / speed:.2f} |")


def time_to_accuracy(loop: Loop, dev: SentenceBatches, target: float, epochs: int) -> Iterator[tuple[float, float]]:
    """(training seconds, dev accuracy) four times an epoch, until the target is reached. Evaluation is not timed."""
    torch.manual_seed(0)  # for dropout
    for epoch in range(epochs):
        batches = loop.batches(epoch)
        due = {round(len(batches) * quarter / 4) for quarter in (1, 2, 3, 4)}
        for step, batch in enumerate(tqdm(batches, desc=loop.name, leave=False), start=1):
            loop.train_on(batch)
            if step in due:
                predicted = predict_labels(loop.model, dev, CPU, loop.in_file_order)
                accuracy = float((predicted == np.asarray(dev.examples.labels)).mean())
                yield loop.seconds, accuracy
                if accuracy >= target:
                    return


def print_time_to_accuracy(loops: list[Loop], dev: SentenceBatches, args: argparse.Namespace) -> None:
    """Prints for each loop when it first reached each accuracy (a dash if never), its best accuracy and its speed."""
    columns = " | ".join(f"seconds to {target}" for target in args.reach)
    print(f"| loop | {columns} | best | examples/s |\n|---|{'---|' * len(args.reach)}---|---|")
    for loop in loops:
        measured = list(time_to_accuracy(loop, dev, max(args.reach), args.epochs))
        times = [next((f"{time:.0f}" for time, accuracy in measured if accuracy >= goal), "–") for goal in args.reach]
        best, speed = max(accuracy for _, accuracy in measured), loop.examples / loop.seconds
        print(f"| {loop.name} | {' | '.join(times)} | {best:.3f} | {speed:.1f} |", flush=True)


def parse_args() -> argparse.Namespace:
    """Reads the flags; the module docstring explains them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", help="with --reach")
    parser.add_argument("--label-names", required=True)
    parser.add_argument("--tokenizer", default="models/stories.model")
    parser.add_argument("--model", help="start from this checkpoint instead of random weights")
    parser.add_argument("--reach", type=float, nargs="+", metavar="ACCURACY", help="time to these dev accuracies")
    parser.add_argument("--loops", nargs="+", default=[""], metavar="TEXT", help="only loops whose name contains TEXT")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.reach and not args.dev:
        parser.error("--reach needs --dev")
    return args


def chosen_loops(
    first: LlamaEmbeddingClassifier, examples: Examples, args: argparse.Namespace, tokenizer: AnyTokenizer
) -> list[Loop]:
    """The loops that `--loops` names, each on a copy of `first`."""
    makers = {
        "this project, float32": lambda model: our_loop(model, examples, args, "float32"),
        "the course's loop": lambda model: course_loop(model, examples, args, tokenizer),
        "transformers": lambda model: transformers_loop(model, examples, args),
        "this project, bfloat16": lambda model: our_loop(model, examples, args, "bfloat16"),
    }
    chosen = [make for name, make in makers.items() if any(text in name for text in args.loops)]
    return [make(copy.deepcopy(first)) for make in chosen]


def main() -> None:
    """Builds the loops with equal weights and prints their table."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names, tokenizer = read_label_names(args.label_names), load_tokenizer(args.tokenizer)
    torch.manual_seed(0)
    llama = load_pretrained(args.model) if args.model else Llama(LlamaConfig())
    limit = llama.config.max_seq_len
    examples = tokenise(read_examples(args.train, len(names)), tokenizer, limit)
    fresh = SimpleNamespace(num_labels=len(names), hidden_dropout_prob=0.3)
    first = LlamaEmbeddingClassifier(fresh, llama)
    loops = chosen_loops(first, examples, args, tokenizer)
    print(f"{llama.parameter_count():,} parameters, batches of {args.batch_size}, {torch.get_num_threads()} thread(s)")
    if not args.reach:
        lengths = np.asarray([len(ids) for ids in examples.ids])
        compare_speed(loops, lengths, args.rounds, args.batch_size)
        print_speed(loops)
    else:
        dev = tokenise(read_examples(args.dev, len(names)), tokenizer, limit)
        print_time_to_accuracy(loops, SentenceBatches(dev, args.batch_size, tokenizer.pad_id), args)


if __name__ == "__main__":
    main()
