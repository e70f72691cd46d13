"""Encoders over timm: one interface for ViTs and CNNs, checkpoints, and the pinned seed encoder.

Everything downstream uses only :class:`EncoderOutput`, ``embed_dim``, ``stride`` and ``n_prefix``.
A saved ``encoder.safetensors`` is the plain timm state dict: ``timm.create_model(model_name,
num_classes=0, checkpoint_path=..., **args)`` loads it without this package, unless ``args`` names
a ``stem``: those are this package's own (``stems.py``), and only :func:`load` builds them.
"""

from ._build import create
from ._encoder import Encoder, require_channels
from ._files import META, WEIGHTS, load, save
from ._outputs import Crops, EncoderOutput, Need, PackedOutput
from ._pixels import Colour, normalisation, preprocess
from ._seed import SEED_NAME, Pooled, seed_encoder

__all__ = [
    "META",
    "SEED_NAME",
    "WEIGHTS",
    "Colour",
    "Crops",
    "Encoder",
    "EncoderOutput",
    "Need",
    "PackedOutput",
    "Pooled",
    "create",
    "load",
    "normalisation",
    "preprocess",
    "require_channels",
    "save",
    "seed_encoder",
]
