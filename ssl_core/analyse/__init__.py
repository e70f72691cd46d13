"""Analyses of an encoder on images, found by file name.

An analysis is ``run(subject: Subject, cfg: Analyse) -> Finding``: what it looks at is a
:class:`~ssl_core.analyse._subject.Subject`, ``cfg`` is the section ``analyse`` alone. Rows are
those of ``evaluate/`` (``slice, metric, value, low, high, n``); where a value belongs to a layer,
a severity or a count, the slice says so: ``layer:3``, ``severity:5``, ``shots:20``; two of them
are joined by a slash: ``fog/severity:5``. Layers count from 1; layer 0 is the embedded patches.
Pictures are PNG by name. What an encoder cannot give (attention of a CNN, masks that nobody drew)
is no error: the finding says why it is empty.

Measures of features alone belong to ``evaluate/``; studies that train belong to ``studies/``.
"""
