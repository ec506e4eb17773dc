"""Llama as a sentence classifier: zero-shot with a prompt, or with a trained head on the last hidden state.

    python run_llama.py --option finetune --train data/reviews-train.txt --dev data/reviews-dev.txt \\
        --test data/reviews-test.txt --label-names data/reviews-label-mapping.json \\
        --dev_out reviews-dev-finetuning-output.txt --test_out reviews-test-finetuning-output.txt
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import Llama, load_pretrained
from tokenizer import AnyTokenizer
from utils import pad

PAD_ID = 3  # the token of the zero byte, in the Llama 2 tokenizer and in the shipped one
POOLINGS = ("last_token", "last_column")
TRAINED_POOLINGS = (*POOLINGS, "mean", "attention")
LABEL_SCORINGS = ("course", "sequence")


def last_hidden_state(llama: Llama, input_ids: Tensor, pad_id: int, pooling: str = "last_token") -> Tensor:
    """The hidden state (batch, dim) that represents each row of input_ids (batch, seqlen), padded on the right.

    "last_token": the state of the last real token, so that a row does not depend on its batch. The causal mask hides
    the padding after it; a model without a causal mask gets a padding mask. "last_column": the state at the batch's
    last column, which reads padding as text, as the course's code does.
    """
    if pooling == "last_column":
        return llama.hidden_states_at(input_ids, torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1))
    lengths = real_lengths(input_ids, pad_id)
    mask = None
    if not llama.config.causal:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]  # (batch, seqlen)
    return llama.hidden_states_at(input_ids, lengths - 1, mask)


def real_lengths(input_ids: Tensor, pad_id: int) -> Tensor:
    """Length (batch,) of each row without its padding; at least 1."""
    lengths = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return torch.where(input_ids != pad_id, lengths, 1).amax(dim=1)


def weighted_hidden_state(llama: Llama, input_ids: Tensor, pad_id: int, query: Tensor | None = None) -> Tensor:
    """Weighted mean (batch, dim) of the hidden states of a row's real tokens.

    All weigh the same or, with a `query` (dim,), softmax(hᵀ·query / √dim): attention with one learned query.
    """
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    real = columns < real_lengths(input_ids, pad_id)[:, None]  # (batch, seqlen)
    hidden = llama.hidden_states(input_ids, padding_mask=None if llama.config.causal else real)
    scores = hidden.new_zeros(real.shape) if query is None else hidden @ query / math.sqrt(query.numel())
    weights = scores.masked_fill(~real, float("-inf")).softmax(dim=1)
    return torch.einsum("bs,bsd->bd", weights, hidden)


class LlamaZeroShotClassifier(nn.Module):
    """Scores each label name by its log-probability after the prompt; nothing is trained.

    `config` has `num_labels` and `pretrained_model_path`, as in the course, and may have `norm` and `pooling`; a given
    `llama` is used instead of the path. Label scoring "course" sums the log-probabilities of all tokens of a label at
    the position after the prompt; "sequence" conditions each token on the ones before it.
    Raises ValueError for a wrong number of names, and for sequence scoring with pooling "last_column".
    """

    content_free: Tensor  # (num_labels,): log-probabilities after content-free prompts

    def __init__(
        self,
        config: SimpleNamespace,
        tokenizer: AnyTokenizer,
        label_names: Sequence[str],
        llama: Llama | None = None,
        label_scoring: str = "course",
    ):
        super().__init__()
        if len(label_names) != config.num_labels:
            raise ValueError(f"{len(label_names)} label names for {config.num_labels} labels")
        if label_scoring not in LABEL_SCORINGS:
            raise ValueError(f"label_scoring must be one of {', '.join(LABEL_SCORINGS)}, not {label_scoring!r}")
        self.num_labels, self.tokenizer, self.label_scoring = config.num_labels, tokenizer, label_scoring
        self.pooling, self.pad_id = _pooling(config), tokenizer.pad_id
        if label_scoring == "sequence" and self.pooling == "last_column":
            raise ValueError("`--pooling last_column` cannot be combined with `--label_scoring sequence`")
        self.llama = (_load(config) if llama is None else llama).requires_grad_(False)
        self.label_name_ids = [tokenizer.encode(label, bos=False, eos=False) for label in label_names]
        self.register_buffer("content_free", torch.zeros(self.num_labels, device=self.llama.device), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Log-probabilities (batch, num_labels) of prompts input_ids (batch, seqlen), padded on the right.

        After `calibrate`, the log-probabilities after content-free prompts are subtracted.
        """
        after_prompt = self._log_probs(last_hidden_state(self.llama, input_ids, self.pad_id, self.pooling))
        if self.label_scoring == "course":
            scores = [after_prompt[:, ids].sum(dim=1) for ids in self.label_name_ids]
        else:
            scores = [after_prompt[:, ids[0]] + self._later_tokens(input_ids, ids) for ids in self.label_name_ids]
        return torch.stack(scores, dim=1) - self.content_free

    @torch.no_grad()
    def calibrate(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Contextual calibration (Zhao et al. 2021, section 5): divides by the probabilities p̂ without content.

        `prompts` are the ids of content-free prompts, and p̂ is the mean of the normalised label probabilities after
        them. Scores become log(p / p̂), which is W = diag(p̂)⁻¹ and b = 0. Returns p̂ (num_labels,).
        """
        self.content_free.zero_()
        shares = [self(torch.tensor([list(ids)], device=self.llama.device))[0].softmax(dim=0) for ids in prompts]
        mean = torch.stack(shares).mean(dim=0)
        self.content_free.copy_(mean.log())
        return mean

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocab_size)."""
        return self.llama.output(hidden).log_softmax(dim=-1)

    def _later_tokens(self, input_ids: Tensor, label_ids: list[int]) -> Tensor:
        """Summed log-probabilities (batch,) of a label's second and later tokens, each given the ones before it."""
        if len(label_ids) == 1:
            return input_ids.new_zeros(len(input_ids), dtype=torch.float32)
        lengths = real_lengths(input_ids, self.pad_id).tolist()
        total = torch.zeros(len(input_ids), device=input_ids.device)
        for index in range(1, len(label_ids)):
            rows = [
                ids[:length] + label_ids[:index] for ids, length in zip(input_ids.tolist(), lengths, strict=True)
            ]
            longer = pad(rows, self.pad_id).to(input_ids.device)
            total += self._log_probs(last_hidden_state(self.llama, longer, self.pad_id))[:, label_ids[index]]
        return total


class LlamaEmbeddingClassifier(nn.Module):
    """Last token's hidden state → dropout → linear head → log-softmax. No vocabulary logits are computed.

    Pooling "mean" averages the states of all real tokens, and "attention" weighs them with a learned query, which
    starts at zero: the mean.

    `config` has the course's `pretrained_model_path`, `num_labels`, `hidden_dropout_prob` and `option` ("pretrain"
    freezes the backbone, any other value trains it), and may have `norm`, `pooling` and `pad_id`; a given `llama` is
    used instead of the path. The head is drawn from torch's global generator, as `nn.Linear` does.
    """

    def __init__(self, config: SimpleNamespace, llama: Llama | None = None):
        super().__init__()
        self.num_labels = config.num_labels
        self.pooling, self.pad_id = _pooling(config, TRAINED_POOLINGS), getattr(config, "pad_id", PAD_ID)
        self.llama = _load(config) if llama is None else llama
        self.llama.requires_grad_(getattr(config, "option", "finetune") != "pretrain")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier_head = nn.Linear(self.llama.config.dim, self.num_labels)
        self.pool_query = nn.Parameter(torch.zeros(self.llama.config.dim)) if self.pooling == "attention" else None

    @torch.no_grad()
    def start_from_label_words(self, label_ids: Sequence[Sequence[int]]) -> None:
        """Sets the head to the output rows of the labels' tokens, averaged over a label's tokens, and the bias to 0.

        After the prompt's question this is the zero-shot classifier of the language model: prompt-based fine-tuning
        (Gao et al. 2021, section 4) and WiSE-FT (Wortsman et al. 2022, section 3) start there.
        """
        rows = [self.llama.output.weight[list(ids)].mean(dim=0) for ids in label_ids]
        self.classifier_head.weight.copy_(torch.stack(rows))
        self.classifier_head.bias.zero_()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Log-probabilities (batch, num_labels) of input_ids (batch, seqlen), padded on the right with `pad_id`."""
        if self.pooling in POOLINGS:
            hidden = last_hidden_state(self.llama, input_ids, self.pad_id, self.pooling)
        else:
            hidden = weighted_hidden_state(self.llama, input_ids, self.pad_id, self.pool_query)
        return F.log_softmax(self.classifier_head(self.dropout(hidden)), dim=-1)


def _pooling(config: SimpleNamespace, known: Sequence[str] = POOLINGS) -> str:
    pooling = getattr(config, "pooling", POOLINGS[0])
    if pooling not in known:
        raise ValueError(f"pooling must be one of {', '.join(known)}, not {pooling!r}")
    return pooling


def _load(config: SimpleNamespace) -> Llama:
    return load_pretrained(config.pretrained_model_path, getattr(config, "norm", None))
