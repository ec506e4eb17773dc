"""The loss in quality of int8 and bfloat16 weights: bits per byte of a model on a text, scored step by step.

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

from engine.decode.cpu_step import PRECISIONS, CpuStep
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
    measured = {}
    for dtype in PRECISIONS:
        model = load_pretrained(args.checkpoint)
        step = CpuStep(model, dtype)
        batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        nats = sum(batch_loss(step, model.new_cache(len(batch)), batch) for batch in tqdm(batches, desc=dtype))
        measured[dtype] = round(nats / math.log(2) / size, 4)
        print(f"{dtype}: {measured[dtype]} bits per byte")
    print(json.dumps(measured | {"worse_by_percent": round(100 * (measured["int8"] / measured["float32"] - 1), 2)}))


@torch.inference_mode()
def batch_loss(step: CpuStep, cache, rows: list[list[int]]) -> float:
    """Summed negative log-likelihood in nats of the rows' tokens after the first; rows may differ in length."""
    width, total = max(map(len, rows)), 0.0
    tokens = torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows])
    for column in range(width - 1):
        logits: Tensor = step(tokens[:, column : column + 1].clamp(min=0), cache)[:, 0]
        total += F.cross_entropy(logits, tokens[:, column + 1], ignore_index=IGNORED, reduction="sum").item()
    return total


if __name__ == "__main__":
    main()
