"""Questions and answers: targets, metrics, training that resumes and stops by itself, the shipped data, and errors."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import run_llama
from bench import make_questions
from engine.io.checkpoint import load_plain
from engine.train import run_log
from engine.train.losses import IGNORED
from engine.train.trainer import Trainer
from tasks import cli
from tasks.qa.data import AnswerBatches, Questions, read_questions, tokenise
from tasks.qa.flags import AnswerSettings, TuneSettings
from tasks.qa.metrics import exact_match, normalised, token_f1
from tasks.qa.task import QaWorkload
from tasks.sentiment.flags import FinetuneSettings
from tests.test_distributed import assert_same_run, finish, start
from tests.tiny import CLOCKS, ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer

PAIRS = {
    "Tom had a red kite. Question: What colour was the kite? Answer:": "red",
    "Lily saw a dog in the park. Question: Where was the dog? Answer:": "in the park",
    "Ben ate cake. Question: Who ate cake? Answer:": "Ben",
    "Mia was sad because it was raining. Question: Why was Mia sad? Answer:": "because it was raining",
}
TEXTS = st.text(string.ascii_letters[:4] + "the .,'!-é\n", max_size=30)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a tiny model and a file of four questions."""
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    lines = [json.dumps({"prompt": prompt, "answer": answer, "more": 1}) for prompt, answer in PAIRS.items()]
    (tmp_path / "few-train.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path


def flags(folder: Path, save_dir: str, *more: str, option: str = "finetune") -> list[str]:
    files = [f"--dev={folder}/few-train.jsonl", f"--save_dir={folder}/{save_dir}"]
    files += [f"--train={folder}/few-train.jsonl"] if option == "finetune" else []
    model = [f"--pretrained-model-path={folder}/tiny.pt", "--threads=1"]
    return ["--option", option, "--task", "qa", *files, *model, *more]


def test_targets_are_the_answers_tokens_only():
    questions = Questions(Path("x"), prompt_ids=[[1, 5, 6], [1, 8]], answer_ids=[[7, 9, 2], [4, 2]])
    batches = AnswerBatches(questions, 2, pad_id=3)
    tokens, targets = batches.tensors([0, 1])
    assert tokens.tolist() == [[1, 5, 6, 7, 9], [1, 8, 4, 3, 3]]
    out = IGNORED
    assert targets.tolist() == [[out, out, 7, 9, 2], [out, 4, 2, out, out]]
    assert [batches.count(torch.tensor(rows).numpy()) for rows in ([0, 1], [0], [1])] == [5, 3, 2]


def test_the_loss_is_that_of_the_answers_by_hand(folder):
    """Each answer token's negative log-likelihood, from one forward pass over its own prefix."""
    exercise = run_exercise(folder)
    workload, model = QaWorkload(exercise, exercise.model.hidden_states), exercise.model
    expected, count = 0.0, 0
    tokenizer = load_tokenizer(TOKENIZER)
    for prompt, answer in PAIRS.items():
        ids = tokenizer.encode(prompt, bos=True, eos=False)
        for token in [*tokenizer.encode(answer, bos=False, eos=False), tokenizer.eos_id]:
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0][0, -1].double()
            expected -= F.log_softmax(logits, dim=0)[token].item()
            ids, count = [*ids, token], count + 1
    batch = workload.epoch(0)[0]
    assert workload.count(batch) == count
    assert workload.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert workload.evaluate(model)["held_out_loss"] == pytest.approx(expected / count, rel=1e-5)


def run_exercise(folder: Path):
    from tasks.qa import task

    return task._load(cli.parse(run_llama.PROGRAM, flags(folder, "runs"))[1], ("train", "dev"))


def squad_tokens(text: str) -> list[str]:
    """SQuAD's normalisation, one character and one word at a time."""
    kept = ""
    for character in text:
        kept += "" if character in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" else character.lower()
    words, word = [], ""
    for character in kept + " ":
        if character.isspace():
            words += [word] if word not in ("", "a", "an", "the") else []
            word = ""
        else:
            word += character
    return words


@given(TEXTS, TEXTS)
def test_the_metrics_are_squads(prediction, answer):
    predicted, expected = squad_tokens(prediction), squad_tokens(answer)
    assert exact_match(prediction, answer) == (predicted == expected)
    left, common = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if not predicted or not expected:
        f1 = float(predicted == expected)
    elif not common:
        f1 = 0.0
    else:
        precision, recall = common / len(predicted), common / len(expected)
        f1 = 2 * precision * recall / (precision + recall)
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_metrics_of_known_answers():
    assert normalised("  The Red, red ball! ") == "red red ball"
    assert exact_match("The park.", "park") == 1.0 and exact_match("the parks", "park") == 0.0
    assert token_f1("a red ball", "the blue ball") == 0.5 and token_f1("", "the") == 1.0


@pytest.fixture
def trained(folder, capsys) -> Path:
    """The folder of a run that learned the four answers by heart."""
    more = ("--epochs", "60", "--lr", "5e-3", f"--test={folder}/few-train.jsonl")
    assert run_llama.main(flags(folder, "runs", *more)) == 0
    (run,) = (folder / "runs").glob("finetune-few-*")
    assert "dev exact match :: 1.000" in capsys.readouterr().out
    return run


def test_a_trained_model_answers_and_stops(folder, trained, capsys):
    figures = json.loads((trained / "result.json").read_text("utf-8"))
    names = {f"{split}_{name}" for split in ("dev", "test") for name in ("em", "f1", "ended", "loss")}
    assert set(figures) == names
    assert all(value == 1.0 for name, value in figures.items() if not name.endswith("loss"))
    rows = [json.loads(line) for line in (trained / "dev-answers.jsonl").read_text("utf-8").splitlines()]
    assert {row["prompt"]: row["prediction"] for row in rows} == PAIRS
    prompt, answer = next(iter(PAIRS.items()))
    generate = ["--option", "generate", "--pretrained-model-path", str(trained / "best.pt"), "--prompt", prompt]
    assert run_llama.main([*generate, "--temperature", "0", "--threads", "1"]) == 0
    assert f"\n{prompt} {answer}\n" in capsys.readouterr().out
    assert run_llama.main([*flags(folder, "as_it_is", option="prompt"), f"--dev_out={folder}/answers.jsonl"]) == 0
    untrained = json.loads((folder / "as_it_is" / "prompt-few-model=tiny" / "result.json").read_text("utf-8"))
    assert set(untrained) == {"dev_em", "dev_f1", "dev_ended", "dev_loss"} and untrained["dev_em"] == 0.0
    assert (folder / "answers.jsonl").read_text("utf-8").count("\n") == len(PAIRS)


def test_an_interrupted_run_resumes_to_the_same_bits(folder, monkeypatch):
    more = ("--epochs", "3", "--lr", "1e-3", "--batch_size", "2", "--dtype", "bfloat16", "--weight_decay", "0.1")
    assert run_llama.main(flags(folder, "complete", *more)) == 0
    save = Trainer.save

    def save_and_stop(trainer: Trainer) -> None:
        save(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", save_and_stop)
        assert run_llama.main(flags(folder, "stopped", *more)) == 130
    assert run_llama.main(flags(folder, "stopped", *more, "--resume")) == 0
    runs = [next((folder / name).glob("finetune-*")) for name in ("complete", "stopped")]
    for file in ("best.pt", "last.pt"):
        complete, stopped = (load_plain(run / file)["model"] for run in runs)
        assert all(torch.equal(tensor, stopped[name]) for name, tensor in complete.items())
    logs = [[record | CLOCKS for record in run_log.read(run / "log.jsonl")] for run in runs]
    assert logs[0] == logs[1] and len(logs[0]) == 9
    assert run_llama.main(flags(folder, "stopped", *more, "--resume", "--max_grad_norm", "1")) == 0  # another folder
    assert len(list((folder / "stopped").iterdir())) == 2


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_train_as_one(folder):
    more = ("--epochs", "4", "--lr", "1e-3", "--batch_size", "3", "--evaluate_every", "2")
    assert run_llama.main(flags(folder, "one", *more)) == 0
    first, second = finish(start(flags(folder, "two", *more)))
    assert (first[0], *second) == (0, 0, "", ""), first[2] + second[2]
    runs = [next((folder / name).glob("finetune-*")) for name in ("one", "two")]
    assert_same_run(*runs)
    assert "dev F1" in first[1]
    assert (runs[0] / "dev-answers.jsonl").read_text("utf-8") == (runs[1] / "dev-answers.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"prompt": "x", "answer": "y"}\n{"prompt": "x"', r"few-train.jsonl, line 2 is not JSON"),
        ('\n{"prompt": "x"}', 'line 2: the field "answer" is missing'),
        ('{"prompt": 3, "answer": "y"}', 'line 1: the field "prompt" must be a text that is not empty'),
        ('{"prompt": "x", "answer": " "}', 'line 1: the field "answer" must be a text that is not empty'),
        ('["x", "y"]', "line 1: not a JSON object"), ("\n \n", "holds no example"),
        (json.dumps({"prompt": "a", "answer": "b " * 200}), "line 1: prompt and answer have"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(folder, capsys, content, reason):
    (folder / "few-train.jsonl").write_text(content, encoding="utf-8")
    assert run_llama.main(flags(folder, "runs")) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not list(folder.glob("runs/*"))


def test_an_answer_may_fill_the_context_but_not_more(folder):
    questions, tokenizer = read_questions(folder / "few-train.jsonl"), load_tokenizer(TOKENIZER)
    tokenise(questions, tokenizer, 1000)
    longest = max(len(p) + len(a) for p, a in zip(questions.prompt_ids, questions.answer_ids, strict=True)) - 1
    assert len(tokenise(read_questions(folder / "few-train.jsonl"), tokenizer, longest)) == 4
    with pytest.raises(ValueError, match=f"line 4: prompt and answer have {longest + 1} tokens"):
        tokenise(read_questions(folder / "few-train.jsonl"), tokenizer, longest - 1)


class Spanning:
    """A tokenizer of characters in which a colon and a space after it are one piece."""

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        return [1] * bos + [ord(piece[0]) + len(piece) for piece in re.findall(": |.", s)] + [2] * eos


def test_a_piece_does_not_span_prompt_and_answer():
    questions = tokenise(Questions(Path("x"), ["a:"], ["b"], [1]), Spanning(), 10)
    assert questions.prompt_ids == [Spanning().encode("a:", True, False)]
    assert questions.answer_ids == [Spanning().encode("b", False, True)]


def test_the_task_chooses_settings_and_door(capsys):
    outputs = ["--dev_out", "x-dev-finetuning-output.txt", "--test_out", "x-test-finetuning-output.txt"]
    for words, settings in (
        (["finetune", "--task", "qa"], TuneSettings), (["finetune", "--task=qa"], TuneSettings),
        (["prompt", "--task", "qa"], AnswerSettings), (["finetune", "--task", "sst2", *outputs], FinetuneSettings),
    ):  # fmt: skip
        option, parsed = cli.parse(run_llama.PROGRAM, ["--option", *words])
        assert (option, type(parsed)) == (words[0], settings)
    for words, reason in (
        (["lora", "--task", "qa"], "invalid choice: 'qa'"),
        (["finetune", "--task", "qa", "--pooling", "mean"], "not a flag of --option finetune --task qa"),
        (["finetune", "--max_new_tokens", "3"], "finetune --task qa"),
        (["finetune", "--task"], "expected one argument"),
    ):
        with pytest.raises(SystemExit):
            cli.parse(run_llama.PROGRAM, ["--option", *words])
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1


def test_the_shipped_questions_are_the_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(make_questions, "DATA", tmp_path)
    make_questions.main()
    stories = {}
    for split, size in (("train", 300), ("dev", 60), ("test", 60)):
        text = (ROOT / "data" / f"qa-{split}.jsonl").read_text("utf-8")
        assert (tmp_path / f"qa-{split}.jsonl").read_text("utf-8") == text
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows) == size
        pairs = [(*re.fullmatch(r"(.*) Question: (.*) Answer:", row["prompt"]).groups(), row["answer"]) for row in rows]
        stories[split] = {story for story, _, _ in pairs}
        assert len({pair[:2] for pair in pairs}) == size
        for story, _, answer in pairs:  # but for its first word the answer stands in the story
            first, _, rest = answer.partition(" ")
            assert answer in story or (rest in story and first in ("the", "a", "an", "his", "her", "some", "because"))
    assert not stories["train"] & (stories["dev"] | stories["test"]) and not stories["dev"] & stories["test"]
    assert sum((ROOT / "data" / f"qa-{split}.jsonl").stat().st_size for split in stories) < 300_000
