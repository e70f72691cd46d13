"""Pretraining methods, one file each: ``Config`` (typed, frozen), ``PAPER`` and ``Method``.

``Method(encoder, cfg, task)`` has ``encoder`` (what is kept), ``views`` (the augmentation it
needs), ``forward(views, step, **inputs) -> (loss, metrics)`` and ``after_step(step)``. ``wants``
names further inputs, given by keyword: ``labels`` (B,) int64 with -1 for unknown, ``boxes`` (where
each view was cut, see ``augment.Augmenter.with_boxes``), ``weights`` (B,) with mean 1.

``PAPER`` holds the options of the published recipe; ``Config``'s defaults suit small data sets.
Metrics may hold ``chance``, the loss at which nothing is told apart, and ``entropy`` of targets:
the guard of the training loop reads them. Randomness inside a step (masks) comes from torch's
global generator, which the training loop seeds before each step.
"""
