"""Which property of images that should say nothing tells the label, and does a probe lean on it.

Three questions, since each alone misleads. Does the property tell a class from the rest better than
chance, on held-out groups? Better than a property should (``too_well``)? And does the probe give
another answer where it is present, among images of the same label? Colour tells bananas from cars
by right; a blue frame that is on nine of ten cats does not, and a probe that says cat where it sees
the frame will be wrong wherever the frame means nothing. So a property of the whole image is named
only if the probe leans on it; metadata and the image's margin, which no class should follow, as
soon as they tell the class: another training may lean on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Audit
from ..evaluate import _common
from ..types import Array, Labels
from .properties import Property

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEVEL = 0.05  # chance that any property is named where none tells anything
VERDICTS = ("leans", "named")
ALIKE = 0.8  # images in common, of those that have either property
SHOWN = 6  # images of each kind beside a finding
DRAWS = 500
COLUMNS = (
    "property",
    "kind",
    "target",
    "class",
    "value",
    "score",
    "chance_low",
    "chance_high",
    "p_value",
    "inside",
    "outside",
    "lean",
    "lean_low",
    "lean_high",
    "leans",
    "named",
    "same_as",
    "text",
)


@dataclass(frozen=True)
class Ground:
    """N labelled images: classes ``label`` (N,) in 0..C-1, what out-of-sample probes say of them
    (``said``), and its group.
    """

    label: Labels
    said: Labels
    group: NDArray[np.str_]
    classes: tuple[str, ...]


# ---- chance ------------------------------------------------------------------------------------


def shuffles(groups: NDArray[np.str_], count: int, seed: int) -> Iterator[Labels]:
    """Orders (N,) of the rows in which groups of equal size have changed places as a whole.

    Images of one group are not independent: to permute single images would make chance look
    smaller than it is.
    """
    _, code = np.unique(groups, return_inverse=True)
    order = np.argsort(code, kind="stable")  # rows group by group
    size = np.bincount(code)
    start = np.cumsum(size) - size
    rng = np.random.default_rng(seed)
    for _ in range(count):
        moved = np.arange(len(code))
        for n in np.unique(size):
            same = np.flatnonzero(size == n)
            other = rng.permutation(same)
            within = np.arange(n)
            to = order[(start[same][:, None] + within).ravel()]
            moved[to] = order[(start[other][:, None] + within).ravel()]
        yield moved


# ---- the label ---------------------------------------------------------------------------------


def counts(code: Labels, label: Labels, fold: Labels, shape: tuple[int, int, int]) -> Matrix:
    """Images by fold, value and class: (K, B, C)."""
    flat = (fold * shape[1] + code) * shape[2] + label
    images = np.bincount(flat, minlength=shape[0] * shape[1] * shape[2])
    table: Matrix = images.reshape(shape).astype(np.float64)
    return table


def speaks_for(table: Matrix) -> Mask:
    """Which values are commoner within a class than outside: (..., B, C) -> (..., B, C)."""
    size = table.sum(axis=-2, keepdims=True)  # images of the class
    rest = table.sum(axis=-1, keepdims=True) - table
    others = rest.sum(axis=-2, keepdims=True)
    found: Mask = table / np.maximum(size, 1) > rest / np.maximum(others, 1)
    return found


def scores(table: Matrix) -> Matrix:
    """Balanced accuracy (C,) of telling each class from the rest by the value alone.

    ``table`` (K, B, C) has images by fold; which values speak for a class is learned on the other
    folds.
    """
    whole = table.sum(axis=0)  # (B, C)
    says = speaks_for(whole - table)  # (K, B, C)
    rest = table.sum(axis=2, keepdims=True) - table
    hit = (says * table).sum(axis=(0, 1)) / np.maximum(whole.sum(axis=0), 1)
    away = whole.sum() - whole.sum(axis=0)
    alarm = (says * rest).sum(axis=(0, 1)) / np.maximum(away, 1)
    balanced: Matrix = (hit + 1 - alarm) / 2
    return balanced


def lean(ground: Ground, number: int, has: Mask, draws: int = DRAWS) -> tuple[float, float, float]:
    """How much more often the probe says class ``number`` where an image has the property, at the
    same label: mean of the differences within the class and outside, with an interval over groups.

    A side without images of both kinds is left out.
    """
    said, own = ground.said == number, ground.label == number
    cells = np.stack([own & has, own & ~has, ~own & has, ~own & ~has], axis=1)  # (N, 4)
    _, code = np.unique(ground.group, return_inverse=True)
    groups = int(code.max()) + 1
    both = np.concatenate([cells, cells & said[:, None]], axis=1).astype(np.float64)
    totals = np.stack([np.bincount(code, c, groups) for c in both.T], axis=1)  # (G, 8)

    def value(sums: Matrix) -> Matrix:
        count, named = sums[:, :4], sums[:, 4:]
        share = np.divide(named, count, out=np.full_like(count, np.nan), where=count > 0)
        sides = np.stack([share[:, 0] - share[:, 1], share[:, 2] - share[:, 3]])
        live = np.isfinite(sides)
        none = np.full(len(sums), np.nan)
        total = np.where(live, sides, 0).sum(axis=0)
        mean: Matrix = np.divide(total, live.sum(axis=0), out=none, where=live.any(axis=0))
        return mean

    middle = float(value(totals.sum(axis=0, keepdims=True))[0])
    low, high = _common.spread(value(_common.resample(totals, draws, _common.SEED)))
    return middle, low, high


def by_label(ground: Ground, properties: list[Property], cfg: Audit, seed: int) -> pd.DataFrame:
    """Every property against every class that is large enough: one row each.

    ``p_value`` is that of the largest standardised score among all of them under shuffled labels
    (Westfall and Young): the chance that *any* looks so good where none tells anything.
    """
    folds, classes = cfg.folds, len(ground.classes)
    large = np.bincount(ground.label, minlength=classes) >= cfg.min_class
    if not properties or not large.any():
        return pd.DataFrame(columns=list(COLUMNS))

    # Folds that know nothing of the label: shuffled labels must be as likely as these.
    _, group = np.unique(ground.group, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group] % folds

    def everything(label: Labels) -> Matrix:  # (properties, C)
        shapes = [(folds, len(p.names), classes) for p in properties]
        tables = [counts(p.code, label, fold, s) for p, s in zip(properties, shapes, strict=True)]
        return np.stack([scores(t) for t in tables])[:, large]

    observed = everything(ground.label)
    orders = shuffles(ground.group, cfg.permutations, seed)
    chance = np.stack([everything(ground.label[o]) for o in orders])  # (permutations, ., C)
    every = np.concatenate([observed[None], chance])  # alike by right where nothing is told
    spread = every.std(axis=0)
    # The median keeps a value that hardly ever moves from being the most extreme one (as "s0" of
    # Tusher et al. 2001).
    z = (every - every.mean(axis=0)) / (spread + np.median(spread) + 1e-9)
    p = (z.max(axis=(1, 2))[:, None, None] >= z[0]).mean(axis=0)
    low, high = np.quantile(chance, [0.025, 0.975], axis=0)
    rows = []
    for i, own in enumerate(properties):
        for j, number in enumerate(np.flatnonzero(large)):
            rows.append(
                {
                    "property": own.name,
                    "kind": own.kind,
                    "target": "label",
                    "class": ground.classes[number],
                    "score": observed[i, j],
                    "chance_low": low[i, j],
                    "chance_high": high[i, j],
                    "p_value": p[i, j],
                }
            )
    return pd.DataFrame(rows)


def present(ground: Ground, own: Property, number: int) -> tuple[Mask, str]:
    """Which images (N,) have a value that speaks for a class, and the values' names."""
    shape = (1, len(own.names), len(ground.classes))
    zero = np.zeros_like(ground.label)
    says = speaks_for(counts(own.code, ground.label, zero, shape))[0, :, number]
    has: Mask = says[own.code]
    count = np.bincount(own.code[has & (ground.label == number)], minlength=len(own.names))
    order = [i for i in np.argsort(-count, kind="stable") if says[i] and count[i]]
    more = f" and {len(order) - 3} more" if len(order) > 3 else ""
    return has, ", ".join(own.names[i] for i in order[:3]) + more


def explain(row: dict[str, Any]) -> str:
    """A finding in plain words."""
    where = f"{row['property']} is {row['value']}"
    text = (
        f"{where}: so in {row['inside']:.0%} of the images labelled '{row['class']}' and in "
        f"{row['outside']:.0%} of the others. It alone tells them apart with balanced accuracy "
        f"{row['score']:.2f} (chance: up to {row['chance_high']:.2f})."
    )
    if row["p_value"] > LEVEL:
        return f"{text} That may be chance."
    points = 100 * row["lean"]
    moved = f"says '{row['class']}' {abs(points):.0f} points {'more' if points > 0 else 'less'}"
    how = f"At the same label, the probe {moved} often where it is so"
    return f"{text} {how}: it {'leans' if row['leans'] else 'does not lean'} on it."


def detail(ground: Ground, own: Property, row: dict[str, Any], cfg: Audit) -> dict[str, Any]:
    """A row with its value, how common it is, how far the probe leans on it, and a verdict."""
    number = ground.classes.index(row["class"])
    has, value = present(ground, own, number)
    inside = ground.label == number
    middle, low, high = lean(ground, number, has)
    telling = row["p_value"] <= LEVEL and row["score"] >= cfg.too_well
    leans = low > 0 and middle >= cfg.lean
    full = row | {
        "value": value,
        "inside": float(has[inside].mean()),
        "outside": float(has[~inside].mean()) if (~inside).any() else 0.0,
        "lean": middle,
        "lean_low": low,
        "lean_high": high,
        "leans": bool(telling and leans),
        "named": bool(telling and (leans or own.kind != "content")),
    }
    return full | {"text": explain(full)}


# ---- the clusters ------------------------------------------------------------------------------


def clusters(features: Array, seed: int) -> Labels:
    """Cluster (N,) of each row: k-means on its leading principal components, rows of length one."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rows = _common.unit(features)
    width = min(32, *rows.shape)
    turned = PCA(width, random_state=seed).fit_transform(rows)
    count = int(np.clip(len(rows) // 50, 2, 64))
    found: Labels = KMeans(count, n_init=2, random_state=seed).fit_predict(turned).astype(np.int64)
    return found


def told(table: Matrix) -> float:
    """Share of a property's entropy that the cluster tells, from images by value and cluster."""
    p = table / table.sum()
    value, cluster = p.sum(axis=1, keepdims=True), p.sum(axis=0, keepdims=True)
    live = p > 0
    mutual = float((p[live] * np.log(p[live] / (value @ cluster)[live])).sum())
    own = value[value > 0]
    entropy = float(-(own * np.log(own)).sum())
    return mutual / entropy if entropy else 0.0


def by_cluster(
    cluster: Labels,
    groups: NDArray[np.str_],
    properties: list[Property],
    cfg: Audit,
    seed: int = 0,
) -> pd.DataFrame:
    """Every property against the clusters: mutual information over the property's entropy, less
    what shuffled clusters make of it, over what they leave (as adjusted mutual information).
    """
    many, zero = int(cluster.max()) + 1, np.zeros_like(cluster)

    if not properties:
        return pd.DataFrame(columns=list(COLUMNS))

    def everything(own: Labels) -> Matrix:  # (properties,)
        shapes = [(1, len(p.names), many) for p in properties]
        tables = [counts(p.code, own, zero, s)[0] for p, s in zip(properties, shapes, strict=True)]
        return np.array([told(t) for t in tables])

    observed = everything(cluster)
    orders = shuffles(groups, cfg.permutations, seed)
    chance = np.stack([everything(cluster[o]) for o in orders])  # (permutations, properties)
    middle = chance.mean(axis=0)
    rest = np.maximum(1 - middle, 1e-9)
    score, null = (observed - middle) / rest, (chance - middle) / rest
    rows = []
    for i, own in enumerate(properties):
        p = (1 + int((null.max(axis=1) >= score[i]).sum())) / (1 + cfg.permutations)
        low, high = np.quantile(null[:, i], [0.025, 0.975])
        named = p <= LEVEL and score[i] >= cfg.cluster
        text = (
            f"The cluster of an image's features tells {max(0, score[i]):.0%} of its {own.name} "
            f"(chance: up to {high:.0%})"
        )
        rows.append(
            {
                "property": own.name,
                "kind": own.kind,
                "target": "cluster",
                "score": score[i],
                "chance_low": low,
                "chance_high": high,
                "p_value": p,
                "named": bool(named),
                "text": text + (": the encoder sorts images by it." if named else "."),
            }
        )
    return pd.DataFrame(rows)


# ---- all ---------------------------------------------------------------------------------------


def search(ground: Ground, properties: list[Property], cfg: Audit, seed: int = 0) -> pd.DataFrame:
    """What tells the label: named findings and what else is conspicuous, and the best class of each
    other property.
    """
    table = by_label(ground, properties, cfg, seed)
    if not len(table):
        return table
    table = table.sort_values(["p_value", "score"], ascending=[True, False], kind="stable")
    telling = (table["p_value"] <= LEVEL) & (table["score"] >= cfg.too_well)
    chosen = table[telling | ~table["property"].duplicated()]
    by_name = {p.name: p for p in properties}
    records: list[dict[str, Any]] = [
        {str(k): v for k, v in r.items()} for r in chosen.to_dict("records")
    ]
    rows = [detail(ground, by_name[r["property"]], r, cfg) for r in records]
    return pd.DataFrame(joined(ground, by_name, rows))


def joined(
    ground: Ground, by_name: dict[str, Property], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Named rows that speak of the same images as a better one of the same class say so, in
    ``same_as``: a frame has four corners.
    """
    first: dict[str, list[tuple[str, Mask]]] = {}
    found = []
    for row in sorted(rows, key=lambda r: -r["score"]):
        name, same = row["class"], ""
        if row["named"]:
            has, _ = present(ground, by_name[row["property"]], ground.classes.index(name))
            others = first.setdefault(name, [])
            alike = (p for p, h in others if (h & has).sum() >= ALIKE * (h | has).sum())
            same = next(alike, "")
            others += [] if same else [(row["property"], has)]
        text = f"As {same}, on the same images: {row['text']}" if same else row["text"]
        found.append(row | {"same_as": same, "text": text})
    return found


def rank(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables as one, ``COLUMNS``: what is named first, then by score."""
    some = [t for t in tables if len(t)] or [pd.DataFrame()]
    both = pd.concat(some, ignore_index=True).reindex(columns=list(COLUMNS))
    for verdict in VERDICTS:
        both[verdict] = both[verdict].astype("boolean").fillna(False).astype(bool)
    text = dict.fromkeys(("property", "kind", "target", "class", "value", "same_as", "text"), "str")
    same = both["same_as"].astype(object)
    both["same_as"] = same.where(same.notna(), "").astype("str")
    both = both.astype(text | {c: "float64" for c in COLUMNS if c not in (*text, *VERDICTS)})
    order = ["named", "target", "score"]
    return both.sort_values(order, ascending=[False, False, False], ignore_index=True)


def examples(ground: Ground, own: Property, name: str) -> dict[str, Labels]:
    """Rows to look at: with the class and the property, and those where only one is there."""
    number = ground.classes.index(name)
    has, _ = present(ground, own, number)
    inside = ground.label == number
    cells = {"both": inside & has, "class only": inside & ~has, "property only": ~inside & has}
    return {k: np.flatnonzero(v)[:SHOWN] for k, v in cells.items()}
