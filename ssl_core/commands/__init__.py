"""What ``headwater`` answers beside its stages: one file per command, found in ``__main__``.

Nothing heavy is imported until a command runs: ``headwater --help`` answers in a blink.
"""
