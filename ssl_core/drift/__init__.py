"""Two-sample detectors, found by file name.

A detector is ``score(reference, current, rng, permutations) -> Score`` on features (N, D) and
(M, D). Its p-value is valid (level at most alpha) when both samples are exchangeable, for any
number of permutations P: p = (1 + #{permuted >= observed}) / (1 + P). All detect *change*, not
*harm*: a drop in accuracy is proven by labels only (stages/monitor.py).
"""
