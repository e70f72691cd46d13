"""Measures of frozen features, found by file name.

A measure is ``run(train, test, cfg) -> rows`` on two :class:`Embeddings`. Each row is a dict with
``slice, metric, value, low, high, n``; ``low`` and ``high`` are NaN where there is no interval.
The first row on slice ``all`` is the measure's main number, the one in metrics.json. It sees
features and labels, never an encoder; labels of the test split are only counted.

Slices: ``all``; ``source:<name>``; ``worst:source``; ``tail:many|medium|few`` by the class's
labelled training images; ``unseen:<name>``, tested on that source after fitting on the others;
``neighbours:<k>`` and ``shots:<n>`` where a value belongs to a count.
"""
