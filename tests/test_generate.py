"""`--option generate` end to end, on a small random model: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

import run_llama
import utils
from engine.decode.beam import beam
from engine.decode.contrastive import contrastive
from engine.decode.sampling import Sampler
from llama import load_pretrained
from tasks.generate import task as generate
from tests.tiny import CONFIG, ROOT, TOKENIZER, write_tiny_checkpoint
from tokenizer import load_tokenizer


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_both_continuations_are_printed_and_written(checkpoint, tmp_path, capsys):
    assert run_llama.main(["--pretrained-model-path", str(checkpoint), "--max_new_tokens", "20"]) == 0
    shown = capsys.readouterr().out
    for temperature, name in ((0.0, "generated-sentence-temp-0.txt"), (1.0, "generated-sentence-temp-1.txt")):
        written = (tmp_path / "runs" / name).read_bytes().decode("utf-8")
        assert written.startswith(generate.SENTENCE) and len(written) > len(generate.SENTENCE)
        assert f"Temperature is {temperature}\n{written}\n" in shown
    assert shown.count("load model from") == 1
    assert "tokens/s" in shown


def test_the_same_seed_gives_the_same_text_and_another_seed_another(checkpoint, tmp_path):
    texts = []
    for seed in ("1", "1", "2"):
        run_llama.main(["--pretrained-model-path", str(checkpoint), "--seed", seed, "--max_new_tokens", "30"])
        texts.append((tmp_path / "runs" / "generated-sentence-temp-1.txt").read_text("utf-8"))
    assert texts[0] == texts[1] != texts[2]


def test_experiments_leave_the_hand_in_alone(checkpoint, tmp_path):
    outs = [tmp_path / f"generated-sentence-temp-{temperature}.txt" for temperature in (0, 1)]
    assert run_llama.main(["--pretrained-model-path", str(checkpoint), "--norm", "layernorm"]) == 0
    made = [path.read_text("utf-8") for path in outs]
    for flags in (["--top_k", "5"], ["--quantize", "int8"], ["--max_new_tokens", "3"], ["--seed", "2"]):
        assert run_llama.main(["--pretrained-model-path", str(checkpoint), *flags]) == 0
    assert [path.read_text("utf-8") for path in outs] == made
    assert {path.name for path in (tmp_path / "runs").glob("*.txt")} == {path.name for path in outs}


def test_a_prompt_of_ones_own_leaves_the_courses_files_alone(checkpoint, tmp_path):
    for flags in (["--prompt", "Once"], ["--prompt", ""], ["--prompt", "Once", "--temperature", "0.5"]):
        assert run_llama.main(["--pretrained-model-path", str(checkpoint), "--max_new_tokens", "5", *flags]) == 0
    assert not list(tmp_path.glob("generated-*"))
    named = ["--prompt", "Once", "--temperature", "0", "--generated_sentence_low_temp_out", "mine.txt"]
    assert run_llama.main(["--pretrained-model-path", str(checkpoint), "--max_new_tokens", "5", *named]) == 0
    assert (tmp_path / "mine.txt").read_text("utf-8").startswith("Once")


def test_prompts_of_a_file_continue_as_they_do_alone(checkpoint, tmp_path, capsys):
    prompts = ["Once upon a time", "The dog", "A long way from here, over the hills, there was a house"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    base = ["--pretrained-model-path", str(checkpoint), "--temperature", "0", "--max_new_tokens", "15"]
    target = ["--generated_sentence_low_temp_out", "out.txt"]
    run_llama.main([*base, "--prompt_file", "prompts.txt", *target])
    together = (tmp_path / "out.txt").read_text("utf-8").split(f"\n{generate.RULE}\n")
    for prompt, text in zip(prompts, together, strict=True):
        run_llama.main([*base, "--prompt", prompt, *target])
        assert (tmp_path / "out.txt").read_text("utf-8") == text


def test_many_prompts_in_few_places_are_written_in_order(checkpoint, tmp_path, capsys):
    prompts = [f"Once there were {number} dogs" + " and a cat" * (number % 3) for number in range(7)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    base = ["--pretrained-model-path", str(checkpoint), "--temperature", "1", "--prompt_file", "prompts.txt"]
    base += ["--max_new_tokens", "12", "--num_samples", "2", "--generated_sentence_high_temp_out", "out.txt"]
    for flags in ([], ["--batch_size", "3"]):
        assert run_llama.main([*base, *flags]) == 0
        written = (tmp_path / "out.txt").read_text("utf-8")
        assert f"Temperature is 1.0\n{written}\n{generate.RULE}\n" in capsys.readouterr().out
        texts = written.split(generate.BETWEEN)
        assert [text.startswith(prompts[place // 2]) for place, text in enumerate(texts)] == [True] * 14
        assert texts[0] != texts[1]
    assert not list(tmp_path.glob("*.partial"))
    alone = ["--prompt", prompts[1], "--seed", "1340", *base[:4], "--max_new_tokens", "12"]  # place 3: three seeds on
    run_llama.main(alone)
    assert texts[3] in capsys.readouterr().out


def test_a_model_without_a_cache_gives_the_same_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Once\nThe dog ran", encoding="utf-8")
    found = []
    for use_cache in (True, False):
        write_tiny_checkpoint(tmp_path / "tiny.pt", dataclasses.replace(CONFIG, use_cache=use_cache))
        flags = ["--pretrained-model-path", "tiny.pt", "--prompt_file", "prompts.txt", "--max_new_tokens", "9"]
        target = ["--temperature", "0", "--generated_sentence_low_temp_out", "out.txt"]
        assert run_llama.main([*flags, *target]) == 0
        found.append((tmp_path / "out.txt").read_text("utf-8"))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--quantize", "int8", "--dtype", "bfloat16"], "exclude each other"),
        (["--num_samples", "3", "--temperature", "0"], "at temperature 0 there is one continuation"),
        (["--beams", "2", "--contrastive", "0.5"], "--contrastive and --beams exclude each other"),
        (["--length_penalty", "0"], "--length_penalty belongs to --beams"),
        (["--beams", "2", "--top_k", "3"], "--beams draws nothing and decodes one prompt at a time: leave out --top_k"),
        (["--contrastive", "0.6", "--temperature", "1"], "leave out --temperature"),
        (["--contrastive", "0.6", "--quantize", "int8"], "leave out --quantize"),
        (["--repetition_penalty", "0.5"], "must be at least 1.0"),
    ],
)
def test_contradictions_are_refused(checkpoint, capsys, flags, said):
    try:
        code = run_llama.main(["--pretrained-model-path", str(checkpoint), *flags])
    except SystemExit as ended:  # refused by the parser
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (["--contrastive", "0.6"], "Contrastive search: α = 0.6, 5 candidates"),
        (["--contrastive", "1", "--top_k", "3"], "Contrastive search: α = 1, 3 candidates"),
        (["--beams", "3", "--length_penalty", "0.5"], "Beam search: 3 beams, length penalty 0.5"),
    ],
)
def test_a_search_replaces_sampling_for_one_prompt_and_for_many(checkpoint, tmp_path, capsys, flags, title):
    prompts = ["Once upon a time", "The dog", "A long way from here, over the hills"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    base = ["--pretrained-model-path", str(checkpoint), "--max_new_tokens", "12", *flags]
    target = ["--generated_sentence_low_temp_out", "out.txt"]
    assert run_llama.main([*base, "--prompt_file", "prompts.txt", *target]) == 0
    together = (tmp_path / "out.txt").read_text("utf-8").split(generate.BETWEEN)
    assert f"{title}\n{together[0]}" in capsys.readouterr().out
    model, tokenizer = load_pretrained(str(checkpoint)), load_tokenizer(TOKENIZER)
    for prompt, text in zip(prompts, together, strict=True):
        assert run_llama.main([*base, "--prompt", prompt]) == 0
        assert f"{title}\n{text}\n" in capsys.readouterr().out
        ids = tokenizer.encode(prompt, bos=True, eos=False)
        if "--beams" in flags:
            new = beam(model, ids, 3, 12, tokenizer.eos_id, 0.5)[0].tokens
        else:
            new = map(int, contrastive(model, [ids], 12, float(flags[1]), int((flags[3:] or ["5"])[0])))
        assert text == tokenizer.decode([*ids, *new])
    assert not list(tmp_path.glob("generated-*"))


def test_the_repetition_penalty_reaches_the_loop(checkpoint, tmp_path):
    texts = []
    for penalty in ("1", "100"):
        flags = ["--temperature", "0", "--prompt", "Once", "--repetition_penalty", penalty]
        flags += ["--generated_sentence_low_temp_out", "out.txt"]
        assert run_llama.main(["--pretrained-model-path", str(checkpoint), "--max_new_tokens", "40", *flags]) == 0
        texts.append((tmp_path / "out.txt").read_text("utf-8"))
    ids = load_tokenizer(TOKENIZER).encode(texts[1], bos=True, eos=False)
    assert len(set(ids)) > 0.9 * len(ids) and texts[0] != texts[1]


def test_bfloat16_is_what_the_flag_says(checkpoint, monkeypatch):
    kinds, choose_step = [], generate.choose_step
    monkeypatch.setattr(generate, "choose_step", lambda model, dtype: kinds.append(dtype) or choose_step(model, dtype))
    base = ["--pretrained-model-path", str(checkpoint), "--prompt", "Once", "--max_new_tokens", "5"]
    assert run_llama.main([*base, "--dtype", "bfloat16"]) == 0
    assert run_llama.main([*base, "--quantize", "int8"]) == 0
    assert kinds == ["bfloat16", "int8"]


def test_the_fastest_number_of_threads_is_found_and_a_named_one_is_kept(checkpoint, monkeypatch, capsys):
    cost, asked, clock = {1: 1.0, 2: 0.5, 4: 0.48, 6: 9.0}, [], [0.0]
    monkeypatch.setattr(utils.torch, "set_num_threads", asked.append)

    def work() -> None:
        clock[0] += cost[asked[-1]]

    with monkeypatch.context() as patch:
        patch.setattr(utils.time, "perf_counter", lambda: clock[0])
        assert utils.fastest_threads(work, most=6) == 2 == asked[-1]  # 4 saves less than a tenth
        assert asked.count(6) == 1  # and 6 is tried once
        assert utils.fastest_threads(work, most=1) == 1 == asked[-1]
    monkeypatch.setattr(generate, "choose_threads", lambda *arguments: pytest.fail("threads were named"))
    base = ["--pretrained-model-path", str(checkpoint), "--prompt", "Once", "--max_new_tokens", "5"]
    assert run_llama.main([*base, "--threads", "1"]) == 0 and asked[-1] == 1


def test_generation_ends_at_eos_and_eos_is_not_shown(checkpoint, capsys, monkeypatch):
    tokenizer = load_tokenizer(TOKENIZER)
    monkeypatch.setattr(Sampler, "choose", lambda self, logits, generator: logits[:, 0].long() * 0 + tokenizer.eos_id)
    run_llama.main(["--pretrained-model-path", str(checkpoint), "--prompt", "Once", "--temperature", "0"])
    assert "Once\n---------------\n0 tokens" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_on_screen_and_writes_no_half_file(checkpoint, tmp_path, capsys, monkeypatch):
    choose, calls = Sampler.choose, []

    def interrupted(self, logits, generator):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return choose(self, logits, generator)

    monkeypatch.setattr(Sampler, "choose", interrupted)
    assert run_llama.main(["--pretrained-model-path", str(checkpoint)]) == 130
    shown = capsys.readouterr()
    assert generate.SENTENCE in shown.out and "interrupted" in shown.err
    assert not list(tmp_path.glob("generated-*")) and not list(tmp_path.glob(".gen*"))


def test_a_model_is_loaded_without_the_compiler(checkpoint):
    asked = "import sys, llama; llama.load_pretrained('tiny.pt'); print('torch._dynamo' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process there")
@pytest.mark.parametrize("many", [False, True])
def test_sigint_ends_a_running_process_with_what_there_is_on_screen(checkpoint, tmp_path, many):
    (tmp_path / "prompts.txt").write_text("Once upon\n" * 2000, encoding="utf-8")
    flags = ["--prompt_file", "prompts.txt", "--batch_size", "2"] if many else ["--prompt", "Once upon"]
    flags += ["--max_new_tokens", "20" if many else "1000000", "--pretrained-model-path", str(checkpoint)]
    flags += ["--temperature", "0", "--generated_sentence_low_temp_out", "out.txt"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_llama.py"), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    shown = b""
    while len(shown) < 1200:
        shown += process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=600)
    assert process.returncode == 130 and said.decode().strip().startswith("interrupted") and b"Traceback" not in said
    text = (shown + rest).decode("utf-8", "replace")
    assert text.count("Once upon") > (3 if many else 0) and text.endswith("\n")
    assert not (tmp_path / "out.txt").exists()
    if many:
        kept = (tmp_path / "out.txt.partial").read_text("utf-8")
        assert kept.count("Once upon") > 3 and kept in text
