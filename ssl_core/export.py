"""A registered model as one file other software loads: timm safetensors, ONNX or torch.export.

Input: normalised images (B, C, S, S) float32, as ``contract.json`` says. Outputs of ONNX and
torch.export: ``embedding`` (B, D), the pooled features, and ``logits`` (B, classes), already
divided by the head's temperature: their softmax is the calibrated probability.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import models
from .artifacts import atomic_dir, sha256_file, write_json
from .errors import HeadwaterError
from .evaluate import _head
from .registry import CARD, Model, path
from .types import Array

CONTRACT, ONNX, TORCH, CHECK = "contract.json", "model.onnx", "model.pt2", "check.npz"
OUTPUTS = ("embedding", "logits")
TOLERANCE = 1e-3  # largest difference from torch, relative to the largest value of that output
OPSET = 18


class Served(nn.Module):
    """Encoder and head as one graph. Features pass as they are: the head folds in its scaling."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.encoder.model
        self.head = nn.Linear(model.head.weight.shape[1], model.head.weight.shape[0])
        scale = 1 / model.head.temperature
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(model.head.weight) * scale)
            self.head.bias.copy_(torch.from_numpy(model.head.bias) * scale)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) -> embedding (B, D), logits (B, classes)."""
        timm: Any = self.model
        tokens = timm.forward_features(image)
        embedding: Tensor = timm.forward_head(tokens, pre_logits=True)
        return embedding, self.head(embedding)


def contract(model: Model, kind: str) -> dict[str, Any]:
    """What a caller has to know: how to make the input, and what comes out."""
    meta = model.meta
    return {
        "model": model.id,
        "format": kind,
        "input": {
            "name": "image",
            "shape": ["batch", model.encoder.channels, meta["image_size"], meta["image_size"]],
            "dtype": "float32",
            "range": "pixels / 255, then (x - mean) / std for each channel",
            "mean": list(meta["mean"]),
            "std": list(meta["std"]),
            "max_side": model.card["max_side"],
            "fit": "scale the longest side down to max_side (bicubic, antialiased), then to the "
            "input's side; centre on white. Transparency is flattened on white",
        },
        "outputs": {
            "embedding": ["batch", model.encoder.embed_dim],
            "logits": ["batch", len(model.head.classes)],
        },
        "classes": list(model.head.classes),
        "temperature": model.head.temperature,
        "temperature_applied": kind != "timm",
        "timm": {"model_name": meta["model_name"], "args": meta["args"]},
    }


# ---- formats -----------------------------------------------------------------------------------


def _timm(model: Model, own: Path, out: Path, sample: Tensor) -> dict[str, float]:
    """encoder.safetensors for ``timm.create_model(checkpoint_path=...)``, and the head beside it.

    Raises:
        HeadwaterError: the encoder has a stem of this package, which timm cannot build.
    """
    if "stem" in model.encoder.args:
        rule = f"has the stem '{model.encoder.args['stem']}', which is not timm's"
        raise HeadwaterError(f"model {model.id}", rule, "export it as onnx or torch")
    for name in (models.WEIGHTS, models.META, _head.WEIGHTS, _head.META):
        shutil.copyfile(own / name, out / name)
    import timm

    plain: Any = timm.create_model(
        model.meta["model_name"],
        num_classes=0,
        checkpoint_path=str(out / models.WEIGHTS),
        **model.meta["args"],
    )
    with torch.inference_mode():
        found = plain.eval()(sample).numpy()
    return _differences(model, sample, [found])


def _program(model: Model, sample: Tensor) -> torch.export.ExportedProgram:
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad(), _quiet():
        return torch.export.export(Served(model).eval(), (sample[:2],), dynamic_shapes=shapes)


def _torch(model: Model, own: Path, out: Path, sample: Tensor) -> dict[str, float]:
    """model.pt2 for ``torch.export.load(...).module()``."""
    with _quiet():
        torch.export.save(_program(model, sample), out / TORCH)
        loaded = torch.export.load(out / TORCH).module()
    with torch.inference_mode():
        found = [t.numpy() for t in loaded(sample)]
    return _differences(model, sample, found)


def _onnx(model: Model, own: Path, out: Path, sample: Tensor) -> dict[str, float]:
    """model.onnx, one file, any batch size.

    Raises:
        HeadwaterError: the extra ``export`` is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        fix = "pip install 'headwater[export]'"
        raise HeadwaterError("--format onnx", f"needs {error.name}", fix) from None
    with _quiet():
        program = torch.onnx.export(
            _program(model, sample),
            dynamo=True,
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(out / ONNX)
    onnx.checker.check_model(out / ONNX, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(out / ONNX, options, providers=["CPUExecutionProvider"])
    return _differences(model, sample, session.run(list(OUTPUTS), {"image": sample.numpy()}))


FORMATS: dict[str, Callable[[Model, Path, Path, Tensor], dict[str, float]]] = {
    "timm": _timm,
    "onnx": _onnx,
    "torch": _torch,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own future; what matters is checked afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- checked -----------------------------------------------------------------------------------


def _expected(model: Model, sample: Tensor) -> list[Array]:
    """What the registry's model says: embedding (B, D) and logits (B, classes)."""
    with torch.inference_mode():
        features = model.encoder.eval()(sample).pooled.float().numpy()
    return [features, model.head.logits(features) / model.head.temperature]


def _differences(model: Model, sample: Tensor, found: list[Any]) -> dict[str, float]:
    """Largest absolute difference by output.

    Raises:
        HeadwaterError: the exported model does not say what the registry's does.
    """
    result: dict[str, float] = {}
    for name, own, other in zip(OUTPUTS, _expected(model, sample), found, strict=False):
        result[name] = float(np.abs(own - np.asarray(other, np.float32)).max())
        limit = TOLERANCE * max(1.0, float(np.abs(own).max()))
        if not result[name] <= limit:
            rule = f"differs from the model by {result[name]:.3g}; at most {limit:.3g} is taken"
            raise HeadwaterError(f"exported {name}", rule, "take another --format, or report a bug")
    return result


def run(registry: Path, model: Model, kind: str, target: Path, pixels: Any) -> dict[str, Any]:
    """Write ``target``/: the model, contract.json and check.npz (an input with its outputs).

    Args:
        pixels: uint8 (B, C, S, S), real images that the export is checked on; at least three, so
            that the batch is none of the sizes it was traced with.

    Raises:
        HeadwaterError: unknown format, a folder that is there and is no export, missing
            packages, or an export that does not say what the model says: nothing is written.
    """
    if kind not in FORMATS:
        raise HeadwaterError(f"--format {kind}", "is not known", f"take {', '.join(FORMATS)}")
    if target.exists() and any(target.iterdir()) and not (target / CONTRACT).exists():
        rule = "holds other files, which an export would replace"
        raise HeadwaterError(target, rule, "give another folder with --out")
    sample = models.preprocess(torch.as_tensor(pixels), model.meta["mean"], model.meta["std"])
    model.encoder.cpu().eval()
    with atomic_dir(target) as out:
        own = path(registry, model.id)
        differences = FORMATS[kind](model, own, out, sample)
        embedding, logits = _expected(model, sample)
        np.savez(out / CHECK, image=sample.numpy(), embedding=embedding, logits=logits)
        files = sorted(p.name for p in out.iterdir())
        about = contract(model, kind) | {
            "checked": {"images": len(sample), "max_abs_difference": differences},
            "card_sha256": sha256_file(own / CARD),
            "files": {name: sha256_file(out / name) for name in files},
        }
        write_json(out / CONTRACT, about)
    return {"model": model.id, "format": kind, "out": target.as_posix(), "files": files} | {
        f"difference_{k}": v for k, v in differences.items()
    }
