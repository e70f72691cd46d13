"""Losses: pure functions on tensors, in fp32 even under autocast, means over the global batch.

Targets never receive gradient; bad arguments raise ``ValueError``.
"""
