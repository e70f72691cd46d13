"""Curation steps, found by file name.

A step is ``apply(frame, features, cfg, seed) -> frame``. ``features`` (N, D) are rows of
``frame``; a step looks only at rows with ``keep`` and may clear ``keep`` (stating ``reason``, and
``detail`` for people) and fill ``dup_group``, ``dup_of`` or ``cluster``. A step that must know the
train/test split says ``NEEDS_SPLIT = True`` and runs after those that do not. One that says
``NEEDS_PIXELS = True`` is also given ``look``, which reads small pictures of some rows.
"""
