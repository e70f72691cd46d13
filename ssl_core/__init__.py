"""headwater's library: from messy images to a watched, self-retraining vision encoder.

Layers, low to high (imports only go down, siblings do not import each other; kept by
``tests/test_layers.py``)::

    errors types
    config plugins artifacts dist parallel progress
    images models augment shards losses
    sources methods evaluate drift curation report
    checkpoints registry train embed
    stages
    __main__
"""

__version__ = "0.1.0"
