"""The model card: what a model is, what it is worth, where that ends, and where it came from.

Markdown without a date: equal models have equal cards. It is written when a model enters the
registry and is one of its files from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import _tables
from .html import decimal

NAME = "MODEL_CARD.md"
OURS = "pretrained"
LEAST = 20  # groups of images below which a share says little
WORST = 5  # slices named among the limits
LOAD = """```python
import timm

encoder = timm.create_model(
    "{model_name}", num_classes=0, checkpoint_path="encoder.safetensors", **{args}
)
```"""


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(c).replace("|", "/") for c in row] for row in rows]
    return "\n".join(_tables.markdown(heads, cells))


def _value(row: Any) -> str:
    known = not pd.isna(row.low)
    return f"{decimal(row.value)} ({decimal(row.low)} to {decimal(row.high)})" * known or decimal(
        row.value
    )


def evidence(results: pd.DataFrame) -> str:
    """Measures on the whole test split, encoders beside each other."""
    whole = results[results["slice"] == "all"]
    names = list(dict.fromkeys(whole["encoder"]))
    rows = []
    for (measure, metric), part in whole.groupby(["measure", "metric"], sort=False):
        by = {r.encoder: _value(r) for r in part.itertuples(index=False)}
        what = str(measure) if metric == measure else f"{measure} {metric}"
        rows.append([what.replace("_", " "), *(by.get(n, "") for n in names)])
    return _table(["measure", *names], rows)


def slices(results: pd.DataFrame) -> pd.DataFrame:
    """Our linear probe's accuracy by slice, worst first."""
    own = (results["encoder"] == OURS) & (results["measure"] == "linear")
    part = results[own & (results["metric"] == "accuracy") & (results["slice"] != "all")]
    return part.dropna(subset="value").sort_values(["value", "slice"], ignore_index=True)


def limits(card: Mapping[str, Any], results: pd.DataFrame) -> list[str]:
    """Sentences on where the evidence ends, from the numbers."""
    found = [
        f"It has seen images of {', '.join(card['sources'])}; of any other source nothing is known "
        "but what the slices `unseen:` say."
    ]
    worst = slices(results)
    if len(worst):
        said = [f"{r.slice} {_value(r)} on {r.n} images" for r in worst.head(WORST).itertuples()]
        found.append(f"Least accurate (linear probe): {'; '.join(said)}.")
        small = worst.loc[worst["n"] < LEAST, "slice"].tolist()
        if small:
            found.append(f"Fewer than {LEAST} test images: {', '.join(small)}.")
    ece = results[(results["metric"] == "ece") & (results["encoder"] == OURS)]
    for row in ece[ece["slice"] == "all"].itertuples():
        found.append(f"Its probe's stated confidence is off by {_value(row)} on average.")
    found.append(
        "Test images are held out by group from the same sources and time; accuracy in service is "
        "watched by `headwater monitor`, and `headwater status` tells it."
    )
    return found


def render(
    card: Mapping[str, Any],
    meta: Mapping[str, Any],
    reason: str,
    evidence_: str,
    limits_: Sequence[str],
    lineage: Mapping[str, Any],
) -> str:
    """The whole card.

    Args:
        card: card.json's content.
        meta: encoder.json's.
        reason: why it became a candidate: the gate's sentence.
        evidence_: a table or sentences.
        lineage: name -> hash or other text.
    """
    facts = [
        ("backbone", meta["model_name"]),
        ("pretraining", card.get("method") or "none"),
        ("images for training", f"{card['images']:,} in {card['groups']:,} groups"),
        ("sources", ", ".join(card["sources"])),
        ("classes of its head", card["classes"]),
        ("input", f"{meta['image_size']} px, mean {meta['mean']}, std {meta['std']}"),
    ]
    parts = [
        f"# Model card: {meta['model_name']}, {card.get('method') or 'no'} pretraining",
        _table(["", ""], facts),
        "## Decision",
        reason,
        "## Evidence",
        "On held-out images; 95% intervals over groups of images where there are any.",
        evidence_,
        "## Limits",
        "\n".join(f"- {text}" for text in limits_),
        "## Use",
        LOAD.format(model_name=meta["model_name"], args=dict(meta["args"])),
        "## Lineage",
        _table(["what", "sha256 or name"], [(k, f"`{v}`") for k, v in lineage.items()]),
    ]
    return "\n\n".join(parts) + "\n"
