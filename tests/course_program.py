"""A stand-in for the course's own `run_llama.py`: calls the flat modules by the names that a student's file uses.

Written for the tests. It reads `tokenizer.model` and `data/` in the working folder, as the course's program does.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier import LlamaEmbeddingClassifier, LlamaZeroShotClassifier
from llama import Llama, load_pretrained
from optimizer import AdamW
from run_llama import seed_everything
from tokenizer import Tokenizer


class LastColumnClassifier(nn.Module):
    """A student's zero-shot classifier: the logits of the batch's last column, whatever stands there."""

    def __init__(self, llama: Llama, tokenizer: Tokenizer, label_names: list[str]):
        super().__init__()
        self.llama, self.labels = llama, [tokenizer.encode(name, bos=False, eos=False) for name in label_names]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, seqlen) -> (batch, labels)."""
        logits, _ = self.llama(input_ids)
        log_probabilities = F.log_softmax(logits, dim=-1)[:, -1]
        return torch.stack([log_probabilities[:, ids].sum(dim=-1) for ids in self.labels], dim=-1)


def generate_sentence(path: str, prefix: str, new_tokens: int, temperature: float) -> str:
    """The prefix with its continuation."""
    with torch.inference_mode():
        llama, tokenizer = load_pretrained(path), Tokenizer(max_len=None)
        x = torch.tensor(tokenizer.encode(prefix, bos=True, eos=False), dtype=torch.long)[None]
        return tokenizer.decode(llama.generate(x, new_tokens, temperature=temperature)[0].tolist())


def read_data(name: str, tokenizer: Tokenizer, suffix: str = "") -> list[tuple[str, int, list[int]]]:
    """(sentence, label, ids) of every line."""
    rows = []
    with open(f"data/{name}.txt", encoding="utf-8") as file:
        for line in file:
            label, sentence = line.split(" ||| ")
            sentence = sentence.strip() + suffix
            rows.append((sentence, int(label), tokenizer.encode(sentence, bos=True, eos=False)))
    return rows


def batches(rows: list, size: int, pad_id: int) -> list[tuple[Tensor, Tensor]]:
    """Token ids padded on the right, and labels, in the order of the file."""
    made = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        longest = max(len(ids) for _, _, ids in group)
        tokens = torch.tensor([ids + [pad_id] * (longest - len(ids)) for _, _, ids in group])
        made.append((tokens, torch.tensor([label for _, label, _ in group])))
    return made


@torch.no_grad()
def predict(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[int]:
    """The most likely labels."""
    model.eval()
    return [int(label) for tokens, _ in data for label in model(tokens).argmax(dim=-1)]


def write_predictions(path: str, rows: list, predictions: list[int]) -> None:
    """The file to hand in."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{label} ||| {row[0]}\n" for label, row in zip(predictions, rows, strict=True))


def label_names(name: str) -> list[str]:
    """The names in the label mapping."""
    with open(f"data/{name}-label-mapping.json", encoding="utf-8") as file:
        return json.load(file)


def prompt(path: str, name: str, out: str, students: bool, batch_size: int = 10) -> None:
    """Zero-shot predictions on dev, by our classifier or a student's."""
    names, tokenizer = label_names(name), Tokenizer(max_len=None)
    listed = " or ".join(names) if len(names) == 2 else ", ".join(names[:-1]) + f", or {names[-1]}"
    rows = read_data(f"{name}-dev", tokenizer, f" Is this movie {listed}? This movie is ")
    config = SimpleNamespace(pretrained_model_path=path, label_names=names, num_labels=len(names), data_dir=".")
    model = LlamaZeroShotClassifier(config, tokenizer, names)
    if students:
        model = LastColumnClassifier(load_pretrained(path), tokenizer, names)
    write_predictions(out, rows, predict(model, batches(rows, batch_size, tokenizer.pad_id)))


def finetune(path: str, name: str, saved: str, epochs: int, lr: float) -> tuple[list[float], list[int], list[int]]:
    """Trains, saves and loads again: the loss of every epoch, and the predictions before and after the file."""
    seed_everything(1337)
    tokenizer = Tokenizer(max_len=None)
    rows = read_data(f"{name}-train", tokenizer)
    data = batches(rows, 10, tokenizer.pad_id)
    fields = {"pretrained_model_path": path, "num_labels": 2, "hidden_dropout_prob": 0.1, "option": "finetune"}
    model = LlamaEmbeddingClassifier(SimpleNamespace(**fields))
    optimizer, losses = AdamW(model.parameters(), lr=lr), []
    for _ in range(epochs):
        model.train()
        total = 0.0
        for tokens, labels in data:
            optimizer.zero_grad()
            loss = F.nll_loss(model(tokens), labels.view(-1), reduction="sum") / len(labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(data))
    before = predict(model, data)
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict(), "model_config": fields}, saved)
    content = torch.load(saved, weights_only=True)
    again = LlamaEmbeddingClassifier(SimpleNamespace(**content["model_config"]))
    again.load_state_dict(content["model"])
    return losses, before, predict(again, data)
