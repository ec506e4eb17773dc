"""What int8 costs: bits per byte of a model on a text, every document scored from BOS step by step, in both kinds.

    python -m bench.int8_loss --corpus valid.txt
"""

from __future__ import annotations

import argparse
import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from engine.decode.cpu_step import KINDS, LeanStep
from engine.train.losses import IGNORED
from llama import load_pretrained
from tasks.stories.data import read_documents
from tokenizer import load_tokenizer

ROWS = 64


def main() -> None:
    """Prints bits per byte with float32 and int8 weights; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="text with lines <|endoftext|> between documents")
    parser.add_argument("--checkpoint", default="models/stories.pt", help="model to measure")
    parser.add_argument("--tokenizer", default="models/stories.model", help="its tokenizer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, documents = load_tokenizer(args.tokenizer), read_documents(args.corpus)
    rows = sorted((tokenizer.encode(document, bos=True, eos=False) for document in documents), key=len)
    size = sum(len(document.encode("utf-8")) for document in documents)
    found = {}
    for kind in KINDS:
        model = load_pretrained(args.checkpoint)
        step = LeanStep(model, kind)
        batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        nats = sum(batch_loss(step, model.new_cache(len(batch)), batch) for batch in tqdm(batches, desc=kind))
        found[kind] = round(nats / math.log(2) / size, 4)
        print(f"{kind}: {found[kind]} bits per byte")
    print(json.dumps(found | {"worse_by_percent": round(100 * (found["int8"] / found["float32"] - 1), 2)}))


@torch.inference_mode()
def batch_loss(step: LeanStep, cache, rows: list[list[int]]) -> float:
    """Summed negative log-likelihood in nats of the rows' tokens after the first; rows may differ in length."""
    width, total = max(map(len, rows)), 0.0
    tokens = torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows])
    for place in range(width - 1):
        logits: Tensor = step(tokens[:, place : place + 1].clamp(min=0), cache)[:, 0]
        total += F.cross_entropy(logits, tokens[:, place + 1], ignore_index=IGNORED, reduction="sum").item()
    return total


if __name__ == "__main__":
    main()
