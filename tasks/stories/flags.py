"""The settings of `--option tokenizer`, `vectors`, `pretrain` and `evaluate`.

    python run_llama.py --option pretrain --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import (
    DEFAULT_MODEL,
    CpuSettings,
    MachineSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    count,
    epoch_count,
    flag,
    input_flag,
    number,
    positive,
    rate,
)


@dataclass(frozen=True, kw_only=True)
class CorpusSettings(Settings):
    """text"""

    corpus: list[str] = input_flag(
        [], 'text with lines <|endoftext|> between documents, .jsonl with a field "text", or lines '
        "`label ||| sentence`, whose labels are dropped", nargs="+", required=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings(CorpusSettings):
    """a new tokenizer"""

    tokenizer: str = flag(
        "", "file to write: SentencePiece .model, or .json for a vocabulary of words", metavar="FILE", required=True
    )
    vocab_size: int = flag(4096, "pieces (or words) in the vocabulary", type=number(int, 300), metavar="N")
    keep_case: bool = flag(False, "do not lower-case the words of a .json")
    overwrite: bool = flag(False, "allow replacing a file that ships with the project")


@dataclass(frozen=True, kw_only=True)
class VectorSettings(CorpusSettings, CpuSettings):
    """FastText vectors"""

    tokenizer: str = input_flag("", "vocabulary of words (.json)", required=True)
    embeddings: str = flag("", "file to write, .vec", metavar="FILE", required=True)
    dim: int = flag(256, "features per vector", type=positive, metavar="N")
    epochs: int = flag(5, "passes over the text", type=positive, metavar="N")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(CorpusSettings, ModelSettings, MachineSettings):
    """evaluation"""

    save_dir: str | None = flag(None, "folder for evaluate.json, figures and continuations", metavar="DIR")
    stories: int = flag(
        0, "also continue N documents from their first 5 tokens: BLEU, speed, attention maps", type=count,
        metavar="N",
    )  # fmt: skip
    prompt_file: str | None = input_flag(None, "--stories: draw attention maps of this file's lines")
    max_new_tokens: int = flag(75, "--stories: tokens per continuation", type=count, metavar="N")
    top_p: float = flag(
        0.95, "--stories: top-p of the sampled continuations", type=number(float, 0.0, 1.0, above=True), metavar="P"
    )
    stride: int | None = flag(
        None, "score documents longer than the context in windows that start N tokens apart", type=positive,
        metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NewModelSettings(Settings):
    """the new model"""

    dim: int = flag(256, "width of the residual stream", type=positive, metavar="N")
    n_layers: int = flag(8, "layers", type=positive, metavar="N")
    n_heads: int = flag(4, "query heads", type=positive, metavar="N")
    n_kv_heads: int = flag(2, "key/value heads; must divide the query heads", type=positive, metavar="N")
    max_seq_len: int = flag(1024, "context length", type=positive, metavar="N")
    dropout: float = flag(
        0.1, "dropout on embeddings and on every residual branch", type=number(float, 0.0, 0.99), metavar="P"
    )
    rope_theta: float = flag(
        10000.0, "base of the rotary frequencies", type=number(float, 0.0, above=True), metavar="THETA"
    )
    position_embedding_type: str = flag(
        "rotary", "position encoding", choices=("rotary", "sinusoidal", "alibi", "none")
    )
    ffn_type: str = flag("swiglu", "feed-forward network", choices=("swiglu", "relu", "gelu"))
    hidden_dim: int | None = flag(
        None, "width of the feed-forward; by default 4·dim, or 2/3 of it with SwiGLU", type=positive, metavar="N"
    )
    norm_type: str = flag("layernorm", "norm", choices=("layernorm", "rmsnorm"))
    norm_position: str = flag("pre", "pre-norm or post-norm", choices=("pre", "post"))
    sliding_window: int | None = flag(
        None, "attend to the last N positions only, itself included", type=positive, metavar="N"
    )
    attention_type: str = flag(
        "softmax", "differential: the difference of two softmax maps", choices=("softmax", "differential")
    )
    gated_heads: bool = flag(False, "a sigmoid gate after every attention head")
    untied_output: bool = flag(False, "an output matrix separate from the embedding")
    freeze_embeddings: bool = flag(False, "do not train the embeddings")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings, NewModelSettings, CorpusSettings, ModelSettings, MachineSettings):
    """pretraining"""

    epochs: int = flag(7, "passes over the data", type=epoch_count, metavar="N")
    lr: float = flag(3e-3, "peak learning rate", type=rate, metavar="RATE")
    schedule: str = flag("linear", "learning rate after the warm-up", choices=("constant", "cosine", "linear"))
    warmup_steps: int = flag(100, "steps over which the learning rate rises", type=count, metavar="N")
    weight_decay: float = flag(0.1, "decoupled weight decay, applied to matrices only", type=rate, metavar="W")
    max_grad_norm: float | None = flag(
        1.0, "clip each group's gradient to this global norm", type=number(float, 0.0, above=True), metavar="G"
    )
    pretrained_model_path: str = input_flag(
        DEFAULT_MODEL, "continue pretraining from this checkpoint, instead of a new model",
        names=("--pretrained-model-path",),
    )  # fmt: skip
    save_dir: str = flag(
        "", "folder of the run: checkpoints, log, loss curves", metavar="DIR", required=True
    )
    valid: str | None = input_flag(None, "text to measure during training; it chooses nothing")
    embeddings: str | None = input_flag(None, "FastText vectors to start from, .vec or .bin")
    optimizer: str = flag(
        "muon", "muon: Muon for hidden matrices, AdamW for everything else", choices=("adamw", "muon")
    )
    batch_tokens: int = flag(8192, "tokens per batch, padding included", type=positive, metavar="N")
    packing: str = flag(
        "off", "pack several documents into a row; attention stays within a document, or crosses into earlier ones",
        choices=("off", "separate", "crossing"),
    )  # fmt: skip
    gradient_checkpointing: int = flag(
        0, "layers per gradient-checkpointing segment (1 if no number is given; 0: off)", type=count, nargs="?",
        const=1, metavar="LAYERS",
    )  # fmt: skip
    held_out: float = flag(
        0.01, "share of the documents that selects the best checkpoint", type=number(float, 0.0, 0.5, above=True),
        metavar="SHARE",
    )  # fmt: skip
    export: str | None = flag(
        None, "also write the best model here in bfloat16, with its settings, log and curves beside it",
        metavar="FILE",
    )  # fmt: skip
    overwrite: bool = flag(False, "allow replacing a file that ships with the project")

    def __post_init__(self) -> None:
        """A new model needs a tokenizer, a checkpoint brings its own; raises ValueError."""
        if self.tokenizer is None and "pretrained_model_path" not in self.given:
            raise ValueError("pretrain needs --tokenizer, or --pretrained-model-path, which has its own")
