"""Two-sample detectors, found by file name.

A detector is ``score(reference, current, rng, permutations, groups=None) -> Score``; its constant
``SEES`` says on what (N rows of the reference, M of now):

- ``"features"``: embeddings (N, D) and (M, D);
- ``"classes"``: text (N, 2) and (M, 2): the predicted class, and the true one ("" if unknown);
- ``"quality"``: numbers (N, 6) and (M, 6), columns ``quality.COLUMNS``, NaN where an input could
  not be read.

``groups`` are the names (N,) and (M,) of what is exchangeable as a whole: images of one group are
relabelled together. The p-value is valid (P(p <= u) <= u) for any number of permutations when the
groups of both samples are exchangeable, whatever the dimension or the dependence within a group.
All detect *change*, not *harm*: a drop in accuracy is proven by labels only. One p-value is one
look; what many looks together say is in ``ssl_core/alarm.py``.
"""
