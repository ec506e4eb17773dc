"""Greedy answers to prompts, their scores, and the files that hold them.

    python run_llama.py --option prompt --task qa
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.decode.continuous_batching import refilled
from engine.decode.sampling import Sampler
from engine.io.files import write_json, write_text
from engine.train import distributed
from engine.train.losses import IGNORED, token_nll
from llama import Llama
from tasks import provenance
from tasks.qa.data import AnswerBatches, Questions
from tasks.qa.flags import AnswerSettings, TuneSettings
from tasks.qa.metrics import exact_match, token_f1
from tokenizer import AnyTokenizer

SAMPLES, TAIL = 3, 90  # answers that are shown, and characters of their prompts


@dataclass(frozen=True)
class Answers:
    """The answers of a model to all prompts of a file, in its order, and whether each ended by itself."""

    texts: list[str]
    ended: list[bool]


def answer(model: Llama, questions: Questions, tokenizer: AnyTokenizer, rows: int, max_new_tokens: int) -> Answers:
    """Greedy answers up to EOS or `max_new_tokens`, `rows` at a time. Several processes share the prompts."""
    own = distributed.share(range(len(questions)))
    prompts = [questions.prompt_ids[number] for number in own]
    finished = refilled(model, prompts, max_new_tokens, Sampler(0.0), 0, tokenizer.eos_id, rows=rows)
    bar = tqdm(finished, total=len(own), desc="answers", leave=False, disable=not distributed.is_first())
    new = {own[index]: ids for index, ids in bar}
    everyone = {number: ids for part in distributed.gather(new) for number, ids in part.items()}
    ids = [everyone[number] for number in range(len(questions))]
    return Answers([tokenizer.decode(row).strip() for row in ids], [len(row) < max_new_tokens for row in ids])


@torch.no_grad()
def answer_loss(model: Llama, batches: AnswerBatches) -> float:
    """Mean loss of the answers' tokens in nats. Several processes share the batches."""
    total = np.zeros(2)
    for batch in distributed.share(batches.longest_first()):
        hidden, targets = on_targets(model.hidden_states, batches, batch, model.device)
        total += token_nll(hidden, model.output.weight, targets).sum().item(), batches.count(batch)
    loss, count = distributed.sum_array(total)
    return float(loss / count)


def on_targets(
    hidden_states: Callable[[Tensor], Tensor], batches: AnswerBatches, batch: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Hidden states (targets, dim) where the answers are predicted, and their tokens (targets,)."""
    tokens, targets = (tensor.to(device) for tensor in batches.tensors(batch))
    counts = targets != IGNORED
    return hidden_states(tokens)[counts], targets[counts]


def scores(questions: Questions, answers: Answers) -> dict[str, float]:
    """Exact match, token F1 and the share of answers that ended by themselves, as means over all prompts."""
    pairs = list(zip(answers.texts, questions.answers, strict=True))
    figures = {"em": [exact_match(*pair) for pair in pairs], "f1": [token_f1(*pair) for pair in pairs]}
    figures |= {"ended": [float(ended) for ended in answers.ended]}
    return {name: statistics.fmean(values) for name, values in figures.items()}


def report(
    splits: dict[str, tuple[Questions, Answers]], losses: dict[str, float], folder: Path,
    settings: AnswerSettings | TuneSettings, model_path: Path,
) -> None:  # fmt: skip
    """Prints figures and a few answers of each split; writes its answers as JSON lines, and `result.json`."""
    figures: dict[str, float] = {}
    targets = [Path(getattr(settings, f"{split}_out") or folder / f"{split}-answers.jsonl") for split in splits]
    for target, (split, (questions, answers)) in zip(targets, splits.items(), strict=True):
        entries = zip(questions.prompts, questions.answers, answers.texts, strict=True)
        rows = [{"prompt": prompt, "answer": answer, "prediction": text} for prompt, answer, text in entries]
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for row in rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]:
            print(f"…{row['prompt'][-TAIL:]}\n    expected: {row['answer']}\n    answered: {row['prediction']}")
        measured = scores(questions, answers)
        print(f"{split} exact match :: {measured['em']:.3f}\n{split} F1 :: {measured['f1']:.3f}")
        print(f"{split} answers that ended :: {measured['ended']:.3f}")
        figures |= {f"{split}_{name}": value for name, value in measured.items()}
        figures[f"{split}_loss"] = losses[split]
    write_json(folder / "result.json", figures)
    data = [questions.path for questions, _ in splits.values()]
    provenance.record(targets, "run_llama.py", settings.option, settings, model_path, data)
    print(f"answers in {' and '.join(map(str, targets))}; figures in {folder}")
