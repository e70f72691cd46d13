"""Measurements against peers, paired in one run; ``python -m benchmarks.run`` does them all."""
