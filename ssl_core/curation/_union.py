"""Connected components, and the train/test split that rests on them."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Pairs = NDArray[np.int64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
SPLIT_STEPS = 1_000_000


def components(count: int, pairs: Pairs) -> Ints:
    """Name each of ``count`` nodes by the least node connected to it: (P, 2) -> (count,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)  # labels run 0..C-1, so first[label] is it
    return np.asarray(first[labels], dtype=np.int64)


def same(values: pd.Series) -> Pairs:
    """Pairs that chain the positions holding equal values; nulls equal nothing: (N,) -> (P, 2)."""
    codes, _ = pd.factorize(values)
    order = np.argsort(codes, kind="stable")
    equal = (codes[order[1:]] == codes[order[:-1]]) & (codes[order[1:]] >= 0)
    return np.stack([order[:-1][equal], order[1:][equal]], axis=1).astype(np.int64)


def label_codes(labels: pd.Series) -> Ints:
    """Labels as integers, -1 for none: (N,) -> (N,)."""
    return np.asarray(pd.Categorical(labels).codes, dtype=np.int64)


def duplicate_groups(frame: pd.DataFrame, pairs: Pairs) -> Ints:
    """Merge new duplicate ``pairs`` (row positions) into the frame's ``dup_group``: -> (N,).

    A group is named by its first row; a row that is nobody's duplicate gets -1.
    """
    known = frame["dup_group"].where(frame["dup_group"] >= 0)
    roots = components(len(frame), np.concatenate([same(known), pairs]))
    return np.where(np.bincount(roots, minlength=len(frame))[roots] > 1, roots, -1)


def drop(frame: pd.DataFrame, candidates: Mask, reason: str) -> pd.DataFrame:
    """Keep one of each ``dup_group`` among the candidate rows: the best one.

    Best is the largest area, then a labelled one (its label is worth having), then the least
    sha256 and path, so the choice does not depend on the order of files.
    """
    rows = frame[candidates & (frame["dup_group"] >= 0).to_numpy()]
    ranked = rows.assign(
        area=-rows["width"].astype(np.int64) * rows["height"].astype(np.int64),
        bare=rows["label"].isna(),
    ).sort_values(["area", "bare", "sha256", "path"], kind="stable")
    best = ranked.groupby("dup_group")["sha256"].first()
    losers = ranked.index[ranked.duplicated("dup_group")]
    frame.loc[losers, "keep"] = False
    frame.loc[losers, "reason"] = reason
    # Rows dropped by an earlier step follow their group's winner, so dup_of is always kept.
    copies = frame["reason"].str.startswith("duplicate") & frame["dup_group"].isin(best.index)
    frame.loc[copies, "dup_of"] = frame.loc[copies, "dup_group"].map(best)
    return frame


def is_test(group: str, fraction: float) -> bool:
    """The split's coin: depends on the group's name alone."""
    digest = hashlib.sha256(f"split:{group}".encode()).digest()
    draw = int.from_bytes(digest) % SPLIT_STEPS
    return draw / SPLIT_STEPS < fraction


def assign_split(frame: pd.DataFrame, fraction: float) -> list[str]:
    """``"train"`` or ``"test"`` for each row, so that nothing straddles the split.

    Rows that share ``group``, bytes or ``dup_group`` stand or fall together; the lexicographically
    least group of such a union tosses the coin. New images therefore move no old one, except
    where they join two unions that had fallen on different sides: one side must give way, or
    the test split would hold a near copy of a training image.
    """
    duplicates = frame["dup_group"].where(frame["dup_group"] >= 0)
    pairs = [same(frame["group"]), same(frame["sha256"]), same(duplicates)]
    roots = components(len(frame), np.concatenate(pairs))
    names = frame["group"].groupby(roots).min().tolist()  # in the order of roots
    code = np.unique(roots, return_inverse=True)[1]
    sides = np.array(["test" if is_test(str(name), fraction) else "train" for name in names])
    found: list[str] = sides[code].tolist()
    return found
