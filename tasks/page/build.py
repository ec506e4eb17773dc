"""One HTML file from the sources in this folder: template, style, scripts, and the models' data.

    python run_llama.py --option page --out page.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.io.files import check_readable, read_text

SOURCES = Path(__file__).resolve().parent
SCRIPTS = (  # in the order in which the page runs them
    "tokenizer.js", "engine.js", "sampling.js", "session.js", "figures.js", "text_views.js", "lesson_views.js",
    "attention_views.js", "rope_views.js", "adder.js", "weight_views.js", "adder_view.js", "main.js",
)  # fmt: skip


def check_sources() -> None:
    """Raises OSError if a source of the page is missing, as in a copy that holds Python only."""
    for name in ("page.html", "style.css", *SCRIPTS):
        check_readable(SOURCES / name)


def build(models: dict[str, dict[str, Any]]) -> str:
    """The page around models by their role, "language" or "adder". Each holds `model` (see `pack`) and its words."""
    weights, described = [], {}
    for role, content in models.items():
        model = dict(content["model"])
        weights.append(f'<script type="text/plain" id="weights-{role}">{model.pop("bytes")}</script>')
        described[role] = content | {"model": model}
    data = json.dumps(described, ensure_ascii=False, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    replacements = {
        "STYLE": read_text(SOURCES / "style.css"),
        "DATA": f'<script type="application/json" id="data">{data}</script>\n' + "\n".join(weights),
        "SCRIPTS": "\n".join(f"<script>\n{read_text(SOURCES / name)}</script>" for name in SCRIPTS),
    }
    page = read_text(SOURCES / "page.html")
    for name, text in replacements.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page
