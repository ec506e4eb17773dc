"""`--option predict`: the labels that training wrote, the same alone as together, from files, texts and a pipe."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

import run_llama
from engine.io.checkpoint import load_plain, read_checkpoint, save_plain
from engine.train import run_log
from tasks.sentiment.checkpoint import load_classifier
from tests.tiny import ROOT, write_tiny_checkpoint
from tokenizer import load_tokenizer

DATA = ROOT / "data"
METHODS = {"finetune": "finetuning", "lora": "lora"}


def train(folder, option: str, *more: str):
    """Trains a tiny model on the shipped reviews; returns the run's folder."""
    write_tiny_checkpoint(folder / "tiny.pt")
    flags = [f"--{split}={DATA}/reviews-{split}.txt" for split in ("train", "dev", "test")]
    flags += [f"--{split}_out={folder}/reviews-{split}-{METHODS[option]}-output.txt" for split in ("dev", "test")]
    flags += [f"--label-names={DATA}/reviews-label-mapping.json", f"--save_dir={folder}/runs", "--threads=1"]
    flags += ["--pretrained-model-path", f"{folder}/tiny.pt", "--lr=5e-3", "--epochs=3", *more]
    assert run_llama.main(["--option", option, *flags]) == 0
    return next((folder / "runs").glob(f"{option}-*"))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    return train(tmp_path_factory.mktemp("finetuned"), "finetune")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("adapted"), "lora", "--max_sentence_len=20")


def predict(capsys, checkpoint, *flags: str) -> list[str]:
    """The lines printed."""
    capsys.readouterr()
    assert run_llama.main(["--option", "predict", "--checkpoint", str(checkpoint), "--threads", "1", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def refusal(capsys, *flags: object) -> str:
    """The one line of an error with exit code 2."""
    capsys.readouterr()
    assert run_llama.main(["--option", "predict", *map(str, flags)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(("run", "name"), [("finetuned", "best.pt"), ("adapted", "best.pt"), ("adapted", "merged.pt")])
def test_labels_and_figures_are_those_of_the_training(request, capsys, run, name):
    folder = request.getfixturevalue(run)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    for split in ("dev", "test"):
        lines = predict(capsys, folder / name, "--json", "--input", f"{DATA}/reviews-{split}.txt")
        *entries, summary = map(json.loads, lines)
        written = next(folder.parent.parent.glob(f"reviews-{split}-*-output.txt")).read_text("utf-8").splitlines()
        labels = [summary["label_names"].index(entry["label"]) for entry in entries]
        assert [f"{n} ||| {entry['sentence']}" for n, entry in zip(labels, entries, strict=True)] == written
        assert (summary["accuracy"], summary["macro_f1"]) == (result[f"{split}_acc"], result[f"{split}_macro_f1"])
        confusion = json.loads((folder / f"{split}-confusion.json").read_text("utf-8"))
        assert summary["confusion_matrix"] == confusion["matrix"] and summary["examples"] == 50


def test_several_files_are_read_in_turn(finetuned, capsys):
    files = [f"{DATA}/reviews-{split}.txt" for split in ("dev", "test")]
    alone = [predict(capsys, finetuned / "best.pt", "--json", "--input", file) for file in files]
    together = predict(capsys, finetuned / "best.pt", "--json", "--input", *files)
    for file, lines in zip(files, alone, strict=True):
        lines[-1] = json.dumps({"input": file} | json.loads(lines[-1]))
    assert together == alone[0] + alone[1]
    text = predict(capsys, finetuned / "best.pt", "--input", *files)
    assert [text[at + 1].split()[0] for at, line in enumerate(text) if line in files] == ["acc", "acc"]


def test_a_thousand_sentences_in_batches_give_the_same_as_each_alone(finetuned, tmp_path, capsys):
    reviews = [line.partition(" ||| ")[2] for line in (DATA / "reviews-train.txt").read_text("utf-8").splitlines()]
    sentences = [f"{reviews[n % 150]} {reviews[(7 * n) % 150] * (n % 3)}" for n in range(1000)]
    (tmp_path / "many.txt").write_text("\n".join(sentences), encoding="utf-8")
    entries = [json.loads(line) for line in predict(capsys, finetuned / "best.pt", "--json", "--input",
                                                    f"{tmp_path}/many.txt")]  # fmt: skip
    assert len(entries) == 1000 and not any("true_label" in entry for entry in entries)
    model, info = load_classifier(finetuned / "best.pt")
    tokenizer = load_tokenizer(info.tokenizer)
    for n in range(0, 1000, 13):
        ids = tokenizer.encode(sentences[n].strip(), bos=True, eos=False)[:128]
        with torch.inference_mode():
            alone = model(torch.tensor([ids])).exp()[0].tolist()
        assert list(entries[n]["probabilities"].values()) == pytest.approx(alone, abs=1e-5)


def test_chunks_keep_the_order(finetuned, capsys, monkeypatch):
    from tasks.sentiment import predict as task

    flags = ("--input", f"{DATA}/reviews-dev.txt")
    at_once = predict(capsys, finetuned / "best.pt", *flags)
    monkeypatch.setattr(task, "CHUNK", 7)
    assert predict(capsys, finetuned / "best.pt", *flags) == at_once
    assert at_once[50].startswith("acc :: ") and at_once[52].split() == ["true\\pred", "bad", "good"]


def test_texts_and_standard_input(finetuned, capsys, monkeypatch):
    texts = ["A warm and lovely film.", "Dull."]
    lines = predict(capsys, finetuned / "best.pt", "--text", *texts)
    assert [line.split("\t")[2] for line in lines] == texts
    label, listed, _ = lines[0].split("\t")
    shares = dict(zip(listed.split()[::2], map(float, listed.split()[1::2]), strict=True))
    assert label == max(shares, key=shares.get) and sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n\n".join(texts).encode())))
    assert predict(capsys, finetuned / "best.pt") == lines


def test_placeholder_labels_give_no_figures(finetuned, capsys, tmp_path):
    (tmp_path / "x.txt").write_text("0 ||| a film\n" * 25, encoding="utf-8")
    assert len(predict(capsys, finetuned / "best.pt", "--input", f"{tmp_path}/x.txt")) == 25


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n", "no example"),
        (b"caf\xe9", "not UTF-8"),
        (b"0 ||| fine\n7 ||| outside", "line 2: label 7"),
        (b"0 ||| fine\nno label", "line 2: no '|||'"),
    ],
)
def test_bad_input_is_refused(finetuned, capsys, monkeypatch, tmp_path, content, reason):
    (tmp_path / "bad.txt").write_bytes(content)
    assert reason in refusal(capsys, "--checkpoint", finetuned / "best.pt", "--input", tmp_path / "bad.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert reason in refusal(capsys, "--checkpoint", finetuned / "best.pt")


def test_unsuitable_checkpoints_are_refused(finetuned, adapted, capsys, tmp_path):
    text = ("--text", "x")
    tiny = adapted.parent.parent / "tiny.pt"
    assert "not a classifier or adapter" in refusal(capsys, "--checkpoint", tiny, *text)
    assert "no such file" in refusal(capsys, "--checkpoint", tmp_path / "none.pt", *text)
    base = ("--pretrained-model-path", tiny)
    assert "is a whole model" in refusal(capsys, "--checkpoint", finetuned / "best.pt", *base, *text)
    assert "the sentence is empty" in refusal(capsys, "--checkpoint", finetuned / "best.pt", "--text", " ")


@pytest.mark.parametrize("name", ["finetuned", "adapted"])
@pytest.mark.parametrize("value", [None, 3, -1, "x", [], {}, [1, 2], float("nan")])
def test_a_checkpoint_with_a_bad_field_is_refused_in_one_line(request, capsys, tmp_path, name, value):
    content = load_plain(request.getfixturevalue(name) / "best.pt")
    content["tokenizer"] = str(ROOT / "models" / "stories.model")
    if name == "adapted":
        content["base"] = str(request.getfixturevalue(name).parent.parent / "tiny.pt")
    acceptable = {("max_sentence_len", None), ("max_sentence_len", 3), ("batch_size", 3), ("pad_id", 3)}
    acceptable |= {("vocabulary", None), ("question", "x")}
    for field in content.keys() - {"alpha", "hidden_dropout_prob"}:
        if (field, str(value)) in {(name, str(fine)) for name, fine in acceptable}:
            continue
        save_plain(content | {field: value}, tmp_path / "bad.pt")
        refusal(capsys, "--checkpoint", tmp_path / "bad.pt", "--text", "x")


def test_an_adapter_whose_base_moved_takes_it_by_flag(adapted, capsys, tmp_path):
    moved = tmp_path / "adapter.pt"
    moved.write_bytes((adapted / "best.pt").read_bytes())
    tokenizer = ("--tokenizer", str(ROOT / "models" / "stories.model"))
    assert "needs its base model" in refusal(capsys, "--checkpoint", moved, "--text", "x", *tokenizer)
    base = ("--pretrained-model-path", str(adapted.parent.parent / "tiny.pt"))
    expected = predict(capsys, adapted / "best.pt", "--text", "x")
    assert predict(capsys, moved, "--text", "x", *base, *tokenizer) == expected


@pytest.mark.parametrize(("run", "name"), [("finetuned", "best.pt"), ("adapted", "merged.pt")])
def test_the_next_training_starts_from_a_classifiers_backbone(request, run, name, tmp_path):
    checkpoint = request.getfixturevalue(run) / name
    classifier, _ = load_classifier(checkpoint)
    state = read_checkpoint(checkpoint).state_dict
    backbone = classifier.llama.state_dict()
    assert state.keys() == backbone.keys() - {"output.weight"}
    assert all(torch.equal(tensor, backbone[key]) for key, tensor in state.items())
    folder = train(tmp_path, "lora", "--pretrained-model-path", str(checkpoint), "--epochs=1")
    assert folder.name.endswith(f"-model={checkpoint.stem}")
    assert [record for record in run_log.read(folder / "log.jsonl") if "dev_acc" in record]
