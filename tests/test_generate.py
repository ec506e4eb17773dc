"""`--option generate` end to end, on a small random model: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import pytest

import generate
import run_llama
from sampling import Sampler
from tests.tiny import TOKENIZER, write_tiny_checkpoint
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
        written = (tmp_path / name).read_bytes().decode("utf-8")
        assert written.startswith(generate.SENTENCE) and len(written) > len(generate.SENTENCE)
        assert f"Temperature is {temperature}\n{written}\n" in shown
    assert shown.count("load model from") == 1
    assert "tokens/s" in shown


def test_the_same_seed_gives_the_same_text_and_another_seed_another(checkpoint, tmp_path):
    texts = []
    for seed in ("1", "1", "2"):
        run_llama.main(["--pretrained-model-path", str(checkpoint), "--seed", seed, "--max_new_tokens", "30"])
        texts.append((tmp_path / "generated-sentence-temp-1.txt").read_text("utf-8"))
    assert texts[0] == texts[1] != texts[2]


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


def test_text_stream_gives_the_decoded_text_piece_by_piece():
    tokenizer = load_tokenizer(TOKENIZER)
    text = "Zoë 🐉 ate   two  naïve cafés…\nand “more” 漢字."
    ids = tokenizer.encode(text, bos=True, eos=False)
    for split in range(1, len(ids)):
        stream = generate.TextStream(tokenizer, ids[:split])
        pieces = [stream.add(token) for token in ids[split:]]
        prompt = tokenizer.decode(ids[:split])
        if "\ufffd" not in prompt:  # a prompt that ends within a character cannot be shown whole
            assert prompt + "".join(pieces) == text


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
