"""Makes the golden values of `sanity_check.py`, `rope_test.py` and `optimizer_test.py` in float64 NumPy alone.

    python tests/golden/make_golden.py

Nothing of the project and no torch is imported: what is checked and what it is checked against share no code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy_llama import hidden_states, logits, turn

HERE = Path(__file__).resolve().parent
CONFIG = {
    "vocab_size": 256, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 16, "hidden_dim": 40,
    "layer_norm_eps": 1e-5, "norm_type": "layernorm", "rope_theta": 10000.0, "causal": True,
}  # fmt: skip


def random_weights(config: dict, random: np.random.Generator) -> dict[str, ndarray]:
    """Weights in float32 under the course's names, large enough that every part of the model matters."""
    dim, ffn = config["dim"], config["hidden_dim"]
    kv_dim = dim // config["n_heads"] * config["n_kv_heads"]
    shapes = {"tok_embeddings.weight": (config["vocab_size"], dim), "norm.weight": (dim,), "norm.bias": (dim,)}
    for index in range(config["n_layers"]):
        layer = f"layers.{index}."
        shapes |= {f"{layer}attention.compute_{part}.weight": (dim, dim) for part in ("query", "output")}
        shapes |= {f"{layer}attention.compute_{part}.weight": (kv_dim, dim) for part in ("key", "value")}
        shapes |= {f"{layer}feed_forward.{part}.weight": (ffn, dim) for part in ("w1", "w3")}
        shapes[f"{layer}feed_forward.w2.weight"] = (dim, ffn)
        for norm in ("attention_norm", "ffn_norm"):
            shapes |= {f"{layer}{norm}.weight": (dim,), f"{layer}{norm}.bias": (dim,)}
    drawn = {name: random.normal(0.0, 0.4, shape) for name, shape in shapes.items()}
    return {name: (1.0 + x if name.endswith("norm.weight") else x).astype(np.float32) for name, x in drawn.items()}


def sanity() -> dict[str, ndarray]:
    """A small model's weights, two rows of eight tokens, their hidden states and the logits of the last position."""
    random = np.random.default_rng(0)
    weights = random_weights(CONFIG, random)
    tokens = random.integers(0, CONFIG["vocab_size"], (2, 8))
    hidden = np.stack([hidden_states(row, weights, CONFIG) for row in tokens])
    golden = {f"weights/{name}": tensor for name, tensor in weights.items()}
    golden |= {"config": np.array(json.dumps(CONFIG)), "tokens": tokens, "hidden_states": hidden}
    return golden | {"logits": logits(hidden[:, -1:], weights)}


def rope() -> dict[str, ndarray]:
    """Random queries (2, 12, 4, 8) and keys (2, 12, 2, 8), theta 100, and both turned."""
    random, theta = np.random.default_rng(1), 100.0
    golden = {"theta": np.array(theta)}
    for name, heads in (("query", 4), ("key", 2)):
        x = random.normal(size=(2, 12, heads, 8)).astype(np.float32).astype(np.float64)
        golden[name] = x
        golden[f"turned_{name}"] = np.array(
            [[[turn(head, place, theta) for head in row] for place, row in enumerate(batch)] for batch in x]
        )
    return golden


def optimizer() -> dict[str, ndarray]:
    """AdamW with decay and clipping on the course's linear regression: start, inputs and the weights after 1,000 steps.

    The loss is |y − W·x|² for y = (x0 + x1, −x2), its gradient −2 · (y − W·x) · xᵀ.
    """
    lr, beta1, beta2, eps, decay, max_norm = 1e-3, 0.9, 0.999, 1e-6, 1e-4, 0.9
    random = np.random.default_rng(2)
    start, inputs = random.uniform(-0.5, 0.5, (2, 3)), random.uniform(size=(1000, 3))
    weight, mean, mean_square = start.copy(), np.zeros((2, 3)), np.zeros((2, 3))
    for step, x in enumerate(inputs, start=1):
        gradient = np.outer(-2.0 * (np.array([x[0] + x[1], -x[2]]) - weight @ x), x)
        gradient *= min(1.0, max_norm / (np.sqrt((gradient**2).sum()) + 1e-6))
        mean = beta1 * mean + (1 - beta1) * gradient
        mean_square = beta2 * mean_square + (1 - beta2) * gradient**2
        step_size = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        weight = weight - step_size * mean / (np.sqrt(mean_square) + eps)
        weight = weight - lr * decay * weight
    return {"start": start, "inputs": inputs, "weight": weight}


if __name__ == "__main__":
    for make in (sanity, rope, optimizer):
        np.savez_compressed(HERE / f"{make.__name__}.npz", **make())
        print(f"wrote {HERE / make.__name__}.npz")
