"""The baseline for fine-tuned models: TF-IDF of unigrams and bigrams with logistic regression.

Term frequencies are sublinear; the regularisation strength is chosen on the dev set.

    python -m bench.tfidf data/sst data/cfimdb
    python -m bench.tfidf data/cfimdb --shifted reviews.txt --out results/methods/tfidf.json

`data/sst` stands for data/sst-train.txt, -dev.txt, -test.txt and -label-mapping.json. The shifted sets have the same
labels, and are only looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from engine.io.files import write_json
from tasks.sentiment.data import read_examples, read_label_names

INVERSE_STRENGTHS = (1.0, 3.0, 10.0, 30.0)  # scikit-learn's C


def tfidf_figures(stem: str, shifted: Sequence[str] = ()) -> dict[str, float | None]:
    """Accuracy and macro-F1 on dev, test and each shifted set, by its file's stem; None for placeholders."""
    num_labels = len(read_label_names(f"{stem}-label-mapping.json"))
    train, dev, test = (read_examples(f"{stem}-{split}.txt", num_labels) for split in ("train", "dev", "test"))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(train.sentences)
    models = [LogisticRegression(C=c, max_iter=2000).fit(features, train.labels) for c in INVERSE_STRENGTHS]
    dev_features = vectorizer.transform(dev.sentences)
    best = max(models, key=lambda model: model.score(dev_features, dev.labels))
    figures: dict[str, float | None] = {"C": best.C}
    others = {Path(path).stem: read_examples(path, num_labels) for path in shifted}
    for split, examples in {"dev": dev, "test": test, **others}.items():
        predicted = best.predict(vectorizer.transform(examples.sentences))
        labelled = not examples.placeholder
        figures[f"{split}_acc"] = float(accuracy_score(examples.labels, predicted)) if labelled else None
        f1 = f1_score(examples.labels, predicted, average="macro", zero_division=0.0)
        figures[f"{split}_macro_f1"] = float(f1) if labelled else None
    return figures


def main() -> None:
    """Prints a Markdown table for each stem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="+", metavar="STEM")
    parser.add_argument("--shifted", nargs="+", default=[], help="labelled files to look at", metavar="FILE")
    parser.add_argument("--out", type=Path, help="also write the figures here as JSON", metavar="FILE")
    args = parser.parse_args()
    results = {Path(stem).name: tfidf_figures(stem, args.shifted) for stem in args.stems}
    for data, figures in results.items():
        print(f"| {data} | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 1)}")
        print(f"| | {' | '.join('placeholder' if value is None else f'{value:.3f}' for value in figures.values())} |")
    if args.out is not None:
        write_json(args.out, results)


if __name__ == "__main__":
    main()
