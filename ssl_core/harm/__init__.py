"""Harm: what accuracy a model has where it serves, with labels and without.

Plug-ins, found by file name, guess accuracy without labels: ``estimate(reference, current) ->
float`` on :class:`_common.Outputs`, the reference with known outcomes. None of them is safe: all
assume that p(label | image) stayed, and each can be far off (arXiv 2201.04234, 2107.03315). They
are shown together with the errors they made (``_common.record``), and only say where labels are
needed. Harm is claimed from labels alone (``_sequence``).

The other files are helpers: ``_accuracy`` (intervals, stratified samples, slices), ``_sequence``
(error over repeated looks), ``_request`` (which images to label), ``_quality`` and ``_diagnosis``
(what changed).
"""
