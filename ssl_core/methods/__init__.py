"""Pretraining methods, one file each: ``Config`` (typed, frozen) and ``Method``.

``Method(encoder, cfg, image_size, steps)`` has ``encoder`` (what is kept), ``views`` (the
augmentation it needs), ``forward(views, step) -> (loss, metrics)`` and ``after_step(step)``.
``image_size`` is the side of the global crop, ``steps`` the length of training. Learning rates
are per 256 images. Randomness inside a step (MAE's masks) comes from torch's global generator,
which the training loop seeds before each step.
"""
