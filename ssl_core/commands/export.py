"""``headwater export``: a model of the registry for other software."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadwaterError
from ._common import Json, show

if TYPE_CHECKING:
    from ..config import Paths
    from ..registry import Model

CHECKED = 16  # real images that an export is compared on
LEAST = 3


def command(
    model: Annotated[str, typer.Argument(help="id in the registry, or champion")] = "champion",
    kind: Annotated[str, typer.Option("--format", help="timm, onnx or torch")] = "onnx",
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("export"),
    as_json: Json = False,
) -> None:
    """Write a model as timm safetensors, ONNX or torch.export, checked on real images.

    contract.json beside it says how to make the input and what comes out: embedding, and logits
    of the calibrated head. Nothing is written if the export answers otherwise than the model.
    Examples:

        headwater export champion --format onnx --out deploy/onnx

        headwater export 1a2b3c4d5e6f --format timm --out encoder
    """
    from .. import export
    from ..config import Paths
    from ..stages import predict

    paths = Paths()
    chosen = predict.choose(paths, "" if model == "champion" else model)
    pixels = sample(paths, chosen)
    show(export.run(paths.registry, chosen, kind, out, pixels), as_json)


def sample(paths: Paths, model: Model) -> Any:
    """Held-out images as the model sees them: uint8 (B, C, S, S).

    Raises:
        HeadwaterError: there are no shards, or too few images in them.
    """
    import numpy as np

    from ..reader import ShardReader

    reader = ShardReader(paths.shards, None, int(model.meta["image_size"]))
    if len(reader) < LEAST:
        fix = "run stage shard on some images"
        raise HeadwaterError(paths.shards, f"holds fewer than {LEAST} images to check on", fix)
    rows = np.linspace(0, len(reader) - 1, min(CHECKED, len(reader))).astype(np.int64)
    return reader.take(rows)
