"""Exact match and token F1 of answers, as SQuAD defines them (Rajpurkar et al. 2016, section 6.1).

    python -c "from tasks.qa.metrics import token_f1; print(token_f1('The red ball!', 'a red kite'))"
"""

from __future__ import annotations

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Text in lower case without punctuation and articles, its words separated by single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same text once normalised, else 0."""
    return float(normalised(prediction) == normalised(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the normalised words, each counted as often as it occurs in both.

    If one of the two has no words, 1 if the other has none either, else 0.
    """
    predicted, expected = normalised(prediction).split(), normalised(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))
