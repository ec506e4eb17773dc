"""Small random Hugging Face folders for tests, written by transformers and tokenizers themselves."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from tests.tiny import stories

SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(folder: Path, vocab_size: int = 320) -> int:
    """Trains a byte-level tokenizer as SmolLM's (single digits, no BOS) into `folder`; returns its size."""
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [*steps, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL), "initial_alphabet": alphabet}
    inner.train_from_iterator(stories(), tokenizers.trainers.BpeTrainer(**options, show_progress=False))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2], unk_token=SPECIAL[0]
    )
    fast.save_pretrained(folder)
    return inner.get_vocab_size()


def random_model(model_type: str = "llama", scale: float = 3.0, **fields):
    """A random model of transformers, with weights large enough that every part matters."""
    import transformers

    config = transformers.AutoConfig.for_model(
        model_type, **({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 320} | SIZES | fields)
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write_folder(folder: Path, model_type: str = "llama", **fields):
    """Writes a random model in bfloat16, as shards, with its tokenizer; returns transformers' own in float32."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(model_type, vocab_size=write_tokenizer(folder), **fields).bfloat16()
    model.save_pretrained(folder, max_shard_size="40KB")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of words, digits, marks, white space, accents, other scripts and emoji."""
    draw = random.Random(seed)
    words = " ".join(stories()).split()
    signs = [*"0123456789.,!?'\"-()\n\t  \u00a0éßñλжאあ漢한", "  ", "   ", "\r\n", "🙂", "👩\u200d🚀", "'s", "'ll"]
    signs += ["\u2581", "<0x41>", "\0"]
    texts = []
    for _ in range(count):
        parts = [draw.choice(words) if draw.random() < 0.5 else draw.choice(signs) for _ in range(draw.randint(0, 14))]
        texts.append(draw.choice(["", " "]).join(parts))
    return texts
