"""The model card of an exported folder: what the model is, its data, licence, recipe, measurements and a sample.

    python run_llama.py --option export --format huggingface --out runs/folder --data "my stories" --licence mit
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import LlamaConfig
from engine.io.files import read_json_object, read_text
from tasks.pretrained import SHIPPED
from tasks.recipe import parse_toml

SHIPPED_DATA = (
    "24,538 stories of TinyStories (R. Eldan and Y. Li 2023, arXiv:2305.07759), whose licence is CDLA-Sharing-1.0; "
    "the text itself is not included"
)
UNKNOWN = "Not recorded."
LAST_TOKEN = (
    '\ninputs = tokenizer(["A film to remember."], padding=True, return_tensors="pt")\n'
    "last = inputs.attention_mask.sum(dim=1) - 1  # a text has the label of its last token\n"
    "logits = model(**inputs).logits[range(len(last)), last]"
)
USE = {
    "causal": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{name}")\ntokenizer = AutoTokenizer.from_pretrained("{name}")',
    "classifier": "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
    'model = AutoModelForSequenceClassification.from_pretrained("{name}")\n'
    'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    "adapter": "from peft import PeftModel\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
    'base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={labels})\n'
    'model = PeftModel.from_pretrained(base, "{name}")\n'
    'tokenizer = AutoTokenizer.from_pretrained("{name}")',
}


@dataclass(frozen=True)
class Facts:
    """What a model card says."""

    name: str
    what: str  # "causal", "classifier" or "adapter"
    config: LlamaConfig
    parameters: int
    data: str | None = None
    licence: str | None = None
    recipe: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    sample: str | None = None
    label_names: tuple[str, ...] = ()
    base: str | None = None  # where an adapter's base model is; None: in the folder `base`
    per_token: bool = False  # a token classifier, whose last token's label is the text's


def recorded(path: Path, data: str | None, licence: str | None) -> dict[str, Any]:
    """Data, licence, recipe and measurements that the files beside a checkpoint record; `data` and `licence` win."""
    shipped = path.resolve() == SHIPPED
    beside = path if path.is_dir() else path.parent
    recipe_path = SHIPPED.parents[1] / "recipes" / "stories.toml" if shipped else beside / "recipe.toml"
    recipe = read_text(recipe_path) if recipe_path.is_file() else None
    if data is None and recipe is not None:
        flags = parse_toml(recipe).get("flags", {})
        data = SHIPPED_DATA if shipped else _listed(flags.get("corpus", flags.get("train")))
    measured: dict[str, Any] = {}
    for name in ("evaluate.json", "result.json"):
        if (beside / name).is_file():
            measured |= {key: value for key, value in read_json_object(beside / name).items() if _is_figure(value)}
    return {"data": data, "licence": licence or ("mit" if shipped else None), "recipe": recipe, "measured": measured}


def _listed(paths: Any) -> str | None:
    names = paths if isinstance(paths, list) else [paths] if paths else []
    return ", ".join(Path(name).name for name in names) or None


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def model_card(facts: Facts) -> str:
    """The card in Markdown, with the header that the hub reads."""
    config, tags = facts.config, {"causal": "text-generation"}
    header = ["---", *([f"license: {facts.licence}"] if facts.licence else [])]
    header += [f"library_name: {'peft' if facts.what == 'adapter' else 'transformers'}"]
    classification = "token-classification" if facts.per_token else "text-classification"
    header += [f"pipeline_tag: {tags.get(facts.what, classification)}", "---", ""]
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[config.norm_type]
    heads = f"{config.n_heads} query and {config.n_kv_heads} key/value heads"
    shape = f"{config.n_layers} layers, {config.dim} wide, {heads}"
    what = {"causal": "A language model", "classifier": "A text classifier", "adapter": "An adapter"}[facts.what]
    about = f"{what} with {facts.parameters:,} parameters: a Llama with {norm}, rotary positions and SwiGLU; {shape}, "
    about += f"a vocabulary of {config.vocab_size:,} and {config.max_seq_len:,} positions. Made with min-llama."
    base = facts.base or f"{facts.name}/base"
    use = USE[facts.what].format(name=facts.name, labels=len(facts.label_names), base=base)
    if facts.per_token:
        use = use.replace("SequenceClassification", "TokenClassification") + LAST_TOKEN
    if facts.what == "adapter" and facts.base is None and "/" in facts.name:
        use = f"# first: hf download {facts.name} --local-dir {facts.name}\n{use}"
    sections = [f"# {facts.name}", about, "## Use", f"```python\n{use}\n```"]
    if facts.label_names:
        sections += [f"Labels: {', '.join(facts.label_names)}."]
    sections += ["## Data", facts.data or UNKNOWN, "## Licence", facts.licence or UNKNOWN]
    sections += ["## Recipe", f"```toml\n{facts.recipe.strip()}\n```" if facts.recipe else UNKNOWN]
    sections += ["## Measured", _table(facts.measured) if facts.measured else UNKNOWN]
    if facts.sample is not None:
        sections += ["## Sample", "Greedy:", f"```\n{facts.sample}\n```"]
    return "\n".join(header) + "\n\n".join(sections) + "\n"


def _table(measured: dict[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {value:,} |" for name, value in measured.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
