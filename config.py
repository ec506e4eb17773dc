"""The configuration of a model: one dataclass, read from and written to JSON.

    python -c "from config import LlamaConfig; print(LlamaConfig(dim=256).to_json())"
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from dataclasses import dataclass
from typing import Any

NORM_TYPES = ("layernorm", "rmsnorm")
NORM_POSITIONS = ("pre", "post")
POSITION_EMBEDDING_TYPES = ("rotary", "sinusoidal", "alibi", "none")
FFN_TYPES = ("swiglu", "relu", "gelu")
ATTENTION_TYPES = ("softmax", "differential")
ATTENTION_VARIANTS = {"sliding_window": None, "attention_type": "softmax", "gated_heads": False}  # and their defaults
MOST = 2**31 - 1  # of any size: what llama2.c's header can hold


@dataclass
class LlamaConfig:
    """The shape and the arithmetic of a `Llama`.

    The defaults are the course's. `n_kv_heads=None` means one key/value head per query head;
    `hidden_dim=None` means 4·dim → int(2/3) → rounded up to a multiple of `multiple_of`, and 4·dim for a
    feed-forward without a gate; `head_size=None` means dim / n_heads features per head. `norm_position` is pre-norm
    (Llama) or post-norm (Vaswani et al. 2017, section 3.1). `sliding_window` W lets a position attend to itself and to
    the W − 1 before it (Beltagy et al. 2020; Mistral); None: to all. `attention_type` may be differential (Ye et al.
    2024), and `gated_heads` puts a sigmoid gate after every head (Qiu et al. 2025).

    Raises ValueError, naming the field, for an invalid value.
    """

    vocab_size: int = 32000
    dim: int = 512
    dropout: float = 0.0
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 8  # None: one per query head
    max_seq_len: int = 1024
    layer_norm_eps: float = 1e-5
    multiple_of: int = 32
    hidden_dim: int | None = None
    position_embedding_type: str = "rotary"
    use_cache: bool = True
    norm_type: str = "layernorm"
    rope_theta: float = 10000.0
    causal: bool = True
    tie_embeddings: bool = True
    head_size: int | None = None
    ffn_type: str = "swiglu"
    norm_position: str = "pre"
    sliding_window: int | None = None
    attention_type: str = "softmax"
    gated_heads: bool = False

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        self._check_types()
        self._check_sizes()
        self._check_heads()
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        for name in ("layer_norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        _check_choice("norm_type", self.norm_type, NORM_TYPES)
        _check_choice("norm_position", self.norm_position, NORM_POSITIONS)
        _check_choice("ffn_type", self.ffn_type, FFN_TYPES)
        _check_choice("attention_type", self.attention_type, ATTENTION_TYPES)
        _check_choice("position_embedding_type", self.position_embedding_type, POSITION_EMBEDDING_TYPES)

    def _check_types(self) -> None:
        for name in ("use_cache", "causal", "tie_embeddings", "gated_heads"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {_shown(getattr(self, name))}")
        for name in ("dropout", "layer_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > MOST:
                raise ValueError(f"{name} must be a number, not {_shown(value)}")

    def _check_sizes(self) -> None:
        names = ["vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "multiple_of"]
        names += [name for name in ("hidden_dim", "head_size", "sliding_window") if getattr(self, name) is not None]
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise ValueError(f"{name} must be a positive whole number, not {_shown(value)}")

    def _check_heads(self) -> None:
        if self.head_size is None and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} cannot be split into {self.n_heads} heads")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.attention_type == "differential" and (self.n_heads % 2 or self.n_kv_heads % 2):
            counts = f"n_heads {self.n_heads} and n_kv_heads {self.n_kv_heads}"
            raise ValueError(f"attention_type differential pairs heads: {counts} must be even")
        if self.head_dim % 2 and self.position_embedding_type == "rotary":
            origin = "dim / n_heads" if self.head_size is None else "head_size"
            raise ValueError(f"rotary positions need an even head size: {self.head_dim} ({origin}) is odd")

    @property
    def head_dim(self) -> int:
        """Features per head."""
        return self.dim // self.n_heads if self.head_size is None else self.head_size

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward's inner layer."""
        return ffn_width(self.dim, self.hidden_dim, self.multiple_of, self.ffn_type)

    @property
    def plain_attention(self) -> bool:
        """True if attention has none of `ATTENTION_VARIANTS`, as some fast paths require."""
        return all(getattr(self, name) == usual for name, usual in ATTENTION_VARIANTS.items())

    def to_dict(self) -> dict:
        """The fields as plain types; variants of attention only where they are used, as in older files."""
        usual = ATTENTION_VARIANTS.items()
        return dict(item for item in dataclasses.asdict(self).items() if item not in usual)

    @classmethod
    def from_dict(cls, fields: dict) -> LlamaConfig:
        """Builds a config; an unknown field is a ValueError that names it."""
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration field(s): {', '.join(unknown)}")
        return cls(**fields)

    def to_json(self) -> str:
        """The fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LlamaConfig:
        """Reads what `to_json` wrote."""
        return cls.from_dict(json.loads(text))


def ffn_width(dim: int, hidden_dim: int | None, multiple_of: int, ffn_type: str = "swiglu") -> int:
    """Width of a feed-forward's inner layer (Shazeer 2020: 2/3 of 4·dim keeps the parameters equal)."""
    if hidden_dim is not None:
        return hidden_dim
    if ffn_type != "swiglu":
        return 4 * dim
    two_thirds = int(2 * (4 * dim) / 3)
    return multiple_of * ((two_thirds + multiple_of - 1) // multiple_of)


def _keep_extra_fields(init: Any) -> Any:
    """The constructor that also takes fields which decide nothing here, and keeps them as attributes.

    The course's config does so with everything that a classifier wants to remember. A name that is nearly a field's
    is a mistake: ValueError.
    """

    @functools.wraps(init)
    def keep(self: LlamaConfig, *args: Any, **fields: Any) -> None:
        known = [field.name for field in dataclasses.fields(self)]
        extra = {name: fields.pop(name) for name in [*fields] if name not in known}
        for name in extra:
            if near := difflib.get_close_matches(name, known, n=1, cutoff=0.9):
                raise ValueError(f"unknown configuration field {name}: did you mean {near[0]}?")
        init(self, *args, **fields)
        self.__dict__.update(extra)

    return keep


LlamaConfig.__init__ = _keep_extra_fields(LlamaConfig.__init__)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {_shown(value)}")


def _shown(value: object) -> str:
    """A value in an error message, in a short line whatever it is."""
    if isinstance(value, str):
        return ascii(value[:60])
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15):
        return repr(value)
    return "a huge number" if isinstance(value, int) else f"a {type(value).__name__}"
