"""What each layer is worth to a probe: guillotine regularisation in the backbone (2206.13378).

The best layer is seldom the last where pretraining and the task differ.
"""

from __future__ import annotations

import numpy as np

from .. import embed
from ..config import Analyse
from ..evaluate import _common, knn, linear
from ..types import Array, Embeddings, Labels
from . import _pictures, _tokens
from ._subject import DRAWS, Finding, Row, Rows, Subject, row

TRAIN, TEST = 4096, 2048  # labelled images at most
MOST = 8  # layers: each costs a probe
OUTPUT = "output"  # the encoder's own pooled features, after its last norm
PROBES = ("linear", "knn")


def features(subject: Subject, rows: Rows) -> dict[str, Array]:
    """Layer -> pooled features (N, D) of rows; the encoder's own ones come last."""
    encoder = subject.encoder
    found: dict[str, list[Array]] = {}

    def look(_: object, x: object) -> list[tuple[str, object]]:
        every = _tokens.layers(encoder, x)  # type: ignore[arg-type]
        return [(layer.name, _tokens.pooled(encoder, layer)) for layer in every]

    for _, seen in _tokens.stream(subject, rows, look, _tokens.layers):
        for name, part in seen:
            found.setdefault(name, []).append(part.cpu().numpy())
    kept = _spread(list(found))
    whole = {name: np.concatenate(found[name]) for name in kept}
    return whole | {OUTPUT: subject.rows.features[rows]}


def _spread(names: list[str]) -> list[str]:
    """At most ``MOST`` of the layers, evenly spaced, first and last among them."""
    places = np.linspace(0, len(names) - 1, min(MOST, len(names))).round().astype(int)
    return [names[i] for i in places]


def _part(subject: Subject, rows: Rows) -> Embeddings:
    mask = np.zeros(len(subject.rows), np.bool_)
    mask[rows] = True
    return embed.rows(subject.rows, mask)


def _named(train: Embeddings, test: Embeddings) -> dict[str, Labels]:
    head = linear.fit(train)
    return {
        "linear": linear.named(head, train, test.features),
        "knn": knn.predict(train, test.features),
    }


def probe(subject: Subject, train: Rows, test: Rows) -> list[Row]:
    """Rows of both probes on every layer."""
    fit, look = features(subject, train), features(subject, test)
    known, asked = _part(subject, train), _part(subject, test)
    rows = []
    for name in fit:
        own = embed.with_features(known, fit[name]), embed.with_features(asked, look[name])
        for kind, predicted in _named(*own).items():
            found = _common.shares(predicted, asked.labels, asked.groups, DRAWS)["accuracy"]
            where = f"layer:{name}"
            rows.append(row(f"{kind}_accuracy", found[0], len(asked), where, found[1:]))
    return rows


def _best(rows: list[Row], metric: str) -> list[Row]:
    """Where in depth the best layer lies (0 embedded patches, 1 last block), and what it gains."""
    own = [r for r in rows if r["metric"] == metric]
    values = np.array([r["value"] for r in own[:-1]])  # blocks; the encoder's output comes last
    n, last = own[0]["n"], own[-1]["value"]
    depth = float(values.argmax()) / max(len(values) - 1, 1)
    return [
        row(metric.replace("accuracy", "best_depth"), depth, n),
        row(metric.replace("accuracy", "gain_of_best_layer"), float(values.max()) - last, n),
    ]


def _pictured(rows: list[Row]) -> dict[str, bytes]:
    panels = {}
    for kind in PROBES:
        own = [r for r in rows if r["metric"] == f"{kind}_accuracy"]
        names = [r["slice"].removeprefix("layer:") for r in own]
        value, low, high = ([r[key] for r in own] for key in ("value", "low", "high"))
        panels[f"{kind} probe: accuracy"] = {kind: (names, value, low, high)}
    return {"layerwise": _pictures.lines(panels, ["layer"] * len(panels))}


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Accuracy of a linear probe and of nearest neighbours on every layer."""
    if subject.unlabelled:
        return Finding(missing=subject.unlabelled)
    train = subject.draw(TRAIN, "train", labelled=True)
    test = subject.draw(TEST, "test", labelled=True)
    rows = probe(subject, train, test)
    best = [r for kind in PROBES for r in _best(rows, f"{kind}_accuracy")]
    return Finding(rows + best, _pictured(rows))
