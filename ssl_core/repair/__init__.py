"""Rungs of the repair ladder, one file each, cheapest first in ``repair.rungs``.

``cost(ctx, cfg)`` says how many images it sends through the encoder (a training step counts three
times), ``propose(ctx, cfg)`` answers with a Candidate, or why there is none. A rung sees only what
it may learn from; what judges it lies elsewhere (``_judge.Evidence``).
"""
