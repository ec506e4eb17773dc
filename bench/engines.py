"""The engines that `bench.generate` compares on the same weights: this project, transformers, CTranslate2, llama2.c.

Each engine continues prompts greedily and reports the time of the prompt and of the new tokens. The first three run in
a process of their own (`Isolated`): in one process their thread pools slow each other down to a third. llama2.c's `run`
and `runq` are programs that the user has built.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.decode.fast_step import choose_step
from engine.decode.loop import stream
from engine.decode.sampling import Sampler
from llama import Llama, load_pretrained
from tests.oracles import transformers_model, transformers_state

Rows = list[list[int]]
RATE = re.compile(r"achieved tok/s: ([\d.]+)")


class Sample(NamedTuple):
    """One run: seconds for the prompts and the first tokens, tokens per second after that, and the new tokens."""

    prefill: float
    rate: float
    rows: Rows


Engine = Callable[[int, Rows, int], Sample]  # threads, prompts, new tokens


class Isolated:
    """An engine in its own process, built there by `make`."""

    def __init__(self, make: Callable[[], Engine]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(make, theirs), daemon=True).start()

    def __call__(self, threads: int, prompts: Rows, new: int) -> Sample:
        """The engine's sample; raises its exceptions."""
        self.pipe.send((threads, prompts, new))
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(make: Callable[[], Engine], pipe) -> None:
    engine = None
    with contextlib.suppress(EOFError):  # the parent process has ended
        while True:
            request = pipe.recv()
            try:
                engine = engine or make()
                pipe.send(engine(*request))
            except Exception as error:
                pipe.send(error)


def timed(generate: Callable[[Rows, int], Rows]) -> Callable[[Rows, int], Sample]:
    """Prefill is the time of one token; decode is the time of the tokens after it."""

    def sample(prompts: Rows, new: int) -> Sample:
        started = time.perf_counter()
        generate(prompts, 1)
        prefill = time.perf_counter() - started
        started = time.perf_counter()
        rows = generate(prompts, new)
        decode = time.perf_counter() - started - prefill
        return Sample(prefill, len(prompts) * (new - 1) / decode, rows)

    return sample


def ours(checkpoint: Path, dtype: str | None) -> Engine:
    """The fused step with weights of this precision, or the plain model (None)."""
    model = load_pretrained(str(checkpoint))
    step = None if dtype is None else choose_step(model, dtype)

    def generate(prompts: Rows, new: int) -> Rows:
        return torch.stack(list(stream(model, prompts, new, Sampler(0.0), step=step)), dim=1).tolist()

    return _of_torch(timed(generate))


def transformers(checkpoint: Path) -> Engine:
    """`generate` of transformers, float32, cached."""
    other = transformers_model(load_pretrained(str(checkpoint)))
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate(prompts: Rows, new: int) -> Rows:
        rows = torch.tensor(prompts)
        found = other.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=new, **options)
        return found[:, rows.shape[1] :].tolist()

    return _of_torch(timed(generate))


def _of_torch(sample: Callable[[Rows, int], Sample]) -> Engine:
    def run(threads: int, prompts: Rows, new: int) -> Sample:
        torch.set_num_threads(threads)
        return sample(prompts, new)

    return run


def ctranslate2(folder: Path, kind: str) -> Engine:
    """CTranslate2 over a folder that `export_ctranslate2` wrote, its matrices as `kind` (float32 or int8)."""
    import ctranslate2

    loaded = {}

    def run(threads: int, prompts: Rows, new: int) -> Sample:
        if threads not in loaded:
            loaded[threads] = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=threads)

        def generate(prompts: Rows, new: int) -> Rows:
            options = {"beam_size": 1, "sampling_topk": 1, "include_prompt_in_result": False}
            texts = [[str(token) for token in prompt] for prompt in prompts]
            found = loaded[threads].generate_batch(texts, min_length=new, max_length=new, **options)
            return [result.sequences_ids[0] for result in found]

        return timed(generate)(prompts, new)

    return run


def export_ctranslate2(model: Llama, folder: Path) -> None:
    """Writes the weights in CTranslate2's format, through its converter specification."""
    from ctranslate2.specs import common_spec, transformer_spec

    config, state = model.config, transformers_state(model)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.n_layers, config.n_heads, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True,
        rms_norm=config.norm_type == "rmsnorm", rotary_dim=0, rotary_interleave=False, rotary_base=config.rope_theta,
        num_heads_kv=None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
    )  # fmt: skip

    def normalise(part, name: str) -> None:
        part.gamma = state[f"{name}.weight"].numpy()
        if config.norm_type == "layernorm":
            part.beta = state[f"{name}.bias"].numpy()

    spec.decoder.scale_embeddings = False
    spec.decoder.embeddings.weight = state["model.embed_tokens.weight"].numpy()
    spec.decoder.projection.weight = state["lm_head.weight"].numpy()
    normalise(spec.decoder.layer_norm, "model.norm")
    for index, layer in enumerate(spec.decoder.layer):
        name = f"model.layers.{index}"
        normalise(layer.self_attention.layer_norm, f"{name}.input_layernorm")
        normalise(layer.ffn.layer_norm, f"{name}.post_attention_layernorm")
        joined = [state[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv"]
        layer.self_attention.linear[0].weight = torch.cat(joined).numpy()
        layer.self_attention.linear[1].weight = state[f"{name}.self_attn.o_proj.weight"].numpy()
        layer.ffn.linear_0.weight = state[f"{name}.mlp.gate_proj.weight"].numpy()
        layer.ffn.linear_0_noact.weight = state[f"{name}.mlp.up_proj.weight"].numpy()
        layer.ffn.linear_1.weight = state[f"{name}.mlp.down_proj.weight"].numpy()
    spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "1", "2", "0"
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.save(str(folder))


def llama2c(program: Path, weights: Path, folder: Path, prompt: list[int]) -> Engine:
    """llama2.c's `run` or `runq` over exported weights; accepts only `prompt`, for which its tokenizer was made."""
    vocabulary = folder / "tokenizer.bin"

    def run(threads: int, prompts: Rows, new: int) -> Sample:
        assert prompts == [prompt]
        text = "".join(_sign(place) for place in range(2, len(prompt)))
        command = [program, weights, "-t", "0", "-n", str(len(prompt) + new), "-i", text, "-z", vocabulary]
        options = {"env": os.environ | {"OMP_NUM_THREADS": str(threads)}, "capture_output": True, "check": True}
        done = subprocess.run(list(map(str, command)), text=True, encoding="utf-8", **options)
        rate = float(RATE.search(done.stderr)[1])
        return Sample(len(prompt) / rate, rate, [_tokens(done.stdout, prompt)[:new]])

    return run


def _sign(place: int) -> str:
    """The letter that stands for the prompt's token at this index; llama2.c merges it with no other."""
    return chr(0x4E00 + place)


def _tokens(text: str, prompt: list[int]) -> list[int]:
    """The new tokens that llama2.c printed; see `write_llama2c_vocabulary`."""
    signs = {_sign(place): prompt[place] for place in range(2, len(prompt))} | {" ": prompt[1]}
    pieces = re.findall(r"(\d+) |([^\d\n])", text)
    return [int(number) if number else signs[sign] for number, sign in pieces][len(prompt) - 2 :]


def write_llama2c_vocabulary(path: Path, size: int, prompt: list[int]) -> None:
    """A `tokenizer.bin` in which a token's text is its number; the prompt's tokens have letters.

    llama2.c starts a text with BOS (1) and a space, so the prompt does too; it must not repeat a token.
    """
    assert prompt[0] == 1 and len(set(prompt)) == len(prompt)
    signs = {prompt[place]: _sign(place) for place in range(2, len(prompt))} | {prompt[1]: " "}
    pieces = [signs.get(token, f"{token} ").encode() for token in range(size)]
    with open(path, "wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for piece in pieces:
            file.write(struct.pack("<fi", 0.0, len(piece)) + piece)
