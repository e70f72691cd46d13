"""Generators of images for rare classes, found by file name.

A generator is ``Options`` (a frozen section) and ``generate(pool, wanted, options, seed, work,
report) -> Iterator[Made]``: up to ``wanted[label]`` candidates for each class. It sees training
images only. What is kept of the candidates is decided elsewhere (``_filter.py``), by the same rules
for all.
"""
