"""Which method to start with: a table of cases, the first that applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ._facts import LARGE, MUCH, RULE, TAIL, Advice, Facts

Case = tuple[Callable[[Facts], bool], Advice]

METHODS: list[Case] = [  # the first that applies
    (
        lambda f: f.labelled and f.tail >= TAIL,
        Advice(
            "supcon_ce",
            "most images have labels and the classes are unequal: learn features by contrast "
            "first, then a class-balanced classifier",
            "arXiv 2103.14267",
        ),
    ),
    (
        lambda f: f.labelled,
        Advice(
            "supcon", "most images have labels: let them choose the positives", "arXiv 2004.11362"
        ),
    ),
    (
        lambda f: f.task == "dense" and f.modest,
        Advice(
            "vicregl", "matches places, and needs neither much data nor a ViT", "arXiv 2210.01571"
        ),
    ),
    (
        lambda f: f.task == "dense" and f.images >= LARGE and f.gpu_hours < MUCH,
        Advice(
            "mae",
            "much data, little compute: it encodes a quarter of the patches. Fine-tune it: its "
            "frozen features are weak",
            "arXiv 2111.06377",
        ),
    ),
    (
        lambda f: (
            f.images >= LARGE and f.gpu_hours >= MUCH and (f.task == "dense" or f.tail < TAIL)
        ),
        Advice(
            "dinov2",
            "much data and compute; strong frozen features, patches too",
            "arXiv 2304.07193",
        ),
    ),
    (
        lambda f: f.task == "dense",
        Advice("ibot", "learns patches beside the image, on a ViT", "arXiv 2111.07832"),
    ),
    (
        lambda f: f.tail >= TAIL and not f.modest,
        Advice("pmsn", "its prototypes may be as unequal as the classes are", "arXiv 2210.07277"),
    ),
    (
        lambda f: f.images < 1000,
        Advice("vicreg", "a small batch has few negatives; this needs none", "arXiv 2105.04906"),
    ),
    (
        lambda f: f.modest,
        Advice(
            "simclr",
            "learns most per minute with a small CNN",
            "arXiv 2002.05709, and measured here, LOG.md",
        ),
    ),
    (
        lambda _: True,
        Advice("dino", "strong k-NN features from a ViT at moderate compute", "arXiv 2104.14294"),
    ),
]


def method(f: Facts) -> Advice:
    """The first of ``METHODS`` that applies. When it applies is a rule of thumb in each case."""
    found = next(advice for applies, advice in METHODS if applies(f))
    return replace(found, source=f"{found.source}; when to take it: {RULE}")
