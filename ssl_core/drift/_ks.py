"""Kolmogorov–Smirnov distances of many columns under many relabellings."""

from __future__ import annotations

import numpy as np

from ._common import Matrix

FEW = 2  # a column with so few values is a share: the normal test of two shares has more power


def distances(column: Matrix, marks: Matrix) -> tuple[Matrix, Matrix]:
    """Largest gap (P,) between the distribution functions, and n m / (n + m) (P,).

    ``column`` (N,) may hold NaN: these rows are left out. A side without rows has distance 0.
    """
    seen = np.flatnonzero(~np.isnan(column))
    order = seen[np.argsort(column[seen], kind="stable")]
    ordered, marks = column[order], marks[order]
    n = marks.sum(axis=0)
    m = len(order) - n
    below = np.cumsum(marks, axis=0)  # (N, P) reference's rows up to here
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(order) else order
    here = below if len(ends) == len(order) else below[ends]
    # here / n - (ends + 1 - here) / m, with one array in memory
    here *= 1 / np.maximum(n, 1) + 1 / np.maximum(m, 1)
    here -= (ends + 1)[:, None] / np.maximum(m, 1)
    largest = np.maximum(here.max(axis=0, initial=0.0), -here.min(axis=0, initial=0.0))
    largest[(n == 0) | (m == 0)] = 0
    return largest, n * m / np.maximum(n + m, 1)


def p_values(columns: Matrix, marks: Matrix) -> Matrix:
    """Asymptotic p-values (K, P) of each column of (N, K) for each relabelling (N, P)."""
    from scipy.special import erfc, kolmogorov

    found = np.ones((columns.shape[1], marks.shape[1]))
    for i, column in enumerate(columns.T):
        gap, size = distances(column, marks)
        known = column[~np.isnan(column)]
        if len(np.unique(known)) > FEW:
            found[i] = kolmogorov(np.sqrt(size) * gap)
        elif len(known) and (spread := known.std() / max(np.ptp(known), 1e-300)) > 0:
            found[i] = erfc(gap * np.sqrt(size) / spread / 2**0.5)
    return found
