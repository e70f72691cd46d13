"""Encoders on disk: weights, and beside them what builds the model again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts import ENCODER, atomic_file, read_json, sha256_file, write_json
from ..errors import HeadwaterError
from ._build import create
from ._encoder import Encoder

WEIGHTS, META = ENCODER


def save(encoder: Encoder, folder: Path, meta: Mapping[str, Any]) -> None:
    """Write encoder.safetensors and encoder.json (``meta`` + model_name, args, sha256)."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in encoder.model.state_dict().items()}
    with atomic_file(folder / WEIGHTS) as temp:
        save_file(state, temp, metadata={"format": "pt"})
    own = {
        "model_name": encoder.name,
        "args": encoder.args,
        "sha256": sha256_file(folder / WEIGHTS),
    }
    write_json(folder / META, {**meta, **own})


def load(folder: Path) -> Encoder:
    """Read an encoder written by :func:`save`.

    Raises:
        HeadwaterError: files missing, checksum wrong, or weights that do not fit the model.
    """
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.exists() or not (folder / META).exists():
        raise HeadwaterError(
            folder, f"holds no {WEIGHTS} with {META}", "give a folder written by stage pretrain"
        )
    meta = read_json(folder / META)
    if sha256_file(path) != meta["sha256"]:
        raise HeadwaterError(
            path, f"does not have the sha256 in {META}", "run stage pretrain again or dvc checkout"
        )
    encoder = create(meta["model_name"], meta["args"])
    try:
        encoder.model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise HeadwaterError(
            path, f"does not fit {meta['model_name']} ({error})", "mend args in encoder.json"
        ) from error
    return encoder
