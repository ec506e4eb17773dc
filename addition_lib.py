"""The course's character-level data set: `0` starts, ends and pads, `+0123456789=` are the tokens 1 to 12.

    python -c "import addition_lib; print(addition_lib.create_datasets('data/addition_test.txt')[0])"
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.addition.problems import CHARS, IGNORED, problem_text, read_problems


class CharDataset(Dataset):
    """Words as rows of character ids, with the course's interface.

    Item i is (x, y), each (max_word_length + 1,): x is 0 and then the word; y is the word, one 0, and then −1.
    """

    def __init__(self, words: list[str], chars: list[str], max_word_length: int):
        self.words, self.chars, self.max_word_length = words, chars, max_word_length
        self.stoi = {char: index + 1 for index, char in enumerate(chars)}
        self.itos = {index: char for char, index in self.stoi.items()}

    def __len__(self) -> int:
        return len(self.words)

    def contains(self, word: str) -> bool:
        """Whether the word is in the data set."""
        return word in self.words

    def get_vocab_size(self) -> int:
        """Number of token ids, including 0."""
        return len(self.chars) + 1

    def get_output_length(self) -> int:
        """Length of a row."""
        return self.max_word_length + 1

    def encode(self, word: str) -> Tensor:
        """The ids of a word, (len(word),)."""
        return torch.tensor([self.stoi[char] for char in word], dtype=torch.long)

    def decode(self, ix) -> str:
        """The word of some ids, without 0."""
        return "".join(self.itos[int(index)] for index in ix)

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        ids = self.encode(self.words[idx])
        x = torch.zeros(self.max_word_length + 1, dtype=torch.long)
        y = torch.zeros(self.max_word_length + 1, dtype=torch.long)
        x[1 : 1 + len(ids)] = ids
        y[: len(ids)] = ids
        y[len(ids) + 1 :] = IGNORED
        return x, y


def create_datasets(input_file: str | Path) -> CharDataset:
    """The problems of a file. Raises OSError, or ValueError that names a malformed line."""
    words = problem_text(*read_problems(input_file)).decode("ascii").split("\n")
    return CharDataset(words, CHARS, max(len(word) for word in words))
