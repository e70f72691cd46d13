"""An exported model says what the registry's model says, and its contract suffices to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from test_promote import CFG, CLASSES, build

from ssl_core import export, models, registry
from ssl_core.artifacts import read_json, sha256_file
from ssl_core.commands import export as command
from ssl_core.config import Paths
from ssl_core.errors import HeadwaterError
from ssl_core.registry import Model
from ssl_core.stages import promote


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project with a champion."""
    found = Paths(tmp_path_factory.mktemp("export"))
    build(found, {"a": CLASSES[:3]}, seed=0, groups=96)
    assert promote.run(CFG, found)["promoted"]
    return found


@pytest.fixture(scope="module")
def model(paths: Paths) -> Model:
    return registry.load(paths.registry, str(registry.champion(paths.registry)))


@pytest.fixture(scope="module")
def pixels(paths: Paths, model: Model) -> Any:
    return command.sample(paths, model)


def expected(model: Model, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and probabilities by the registry's own way."""
    with torch.inference_mode():
        features = model.encoder.eval()(torch.from_numpy(image)).pooled.numpy()
    return features, model.head.probabilities(features)


def normalised(contract: dict[str, Any], pixels: Any) -> np.ndarray:
    """By the contract alone: uint8 (B, C, S, S) -> float32."""
    about = contract["input"]
    mean, std = (np.array(about[k], np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    return ((np.asarray(pixels, np.float32) / 255 - mean) / std).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def test_onnx_takes_any_batch_and_needs_only_its_contract(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path
) -> None:
    import onnxruntime

    out = tmp_path / "onnx"
    result = export.run(paths.registry, model, "onnx", out, pixels)
    assert result["difference_embedding"] < 1e-4
    contract = read_json(out / "contract.json")
    assert contract["classes"] == list(model.head.classes)
    assert {n: sha256_file(out / n) for n in contract["files"]} == contract["files"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for size in (1, 5, len(pixels)):
        image = normalised(contract, pixels[:size])
        embedding, logits = session.run(["embedding", "logits"], {"image": image})
        features, p = expected(model, image)
        np.testing.assert_allclose(embedding, features, atol=1e-4)
        np.testing.assert_allclose(softmax(logits), p, atol=1e-4)


def test_torch_export_runs_without_this_package(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path
) -> None:
    out = tmp_path / "torch"
    export.run(paths.registry, model, "torch", out, pixels)
    program = torch.export.load(out / "model.pt2").module()
    image = normalised(read_json(out / "contract.json"), pixels[:3])
    with torch.inference_mode():
        embedding, logits = program(torch.from_numpy(image))
    features, p = expected(model, image)
    np.testing.assert_allclose(embedding.numpy(), features, atol=1e-5)
    np.testing.assert_allclose(softmax(logits.numpy()), p, atol=1e-5)


def test_timm_loads_the_plain_encoder(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path
) -> None:
    out = tmp_path / "timm"
    export.run(paths.registry, model, "timm", out, pixels)
    contract = read_json(out / "contract.json")
    name, args = contract["timm"]["model_name"], contract["timm"]["args"]
    file = out / "encoder.safetensors"
    plain = timm.create_model(name, num_classes=0, checkpoint_path=str(file), **args).eval()
    image = normalised(contract, pixels[:3])
    with torch.inference_mode():
        found = plain(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, expected(model, image)[0], atol=1e-5)


def test_an_export_that_answers_otherwise_is_not_written(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = export.Served.forward

    def wrong(self: export.Served, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding, logits = served(self, image)
        return embedding, logits * 1.5

    monkeypatch.setattr(export.Served, "forward", wrong)
    with pytest.raises(HeadwaterError, match="exported logits: differs from the model by"):
        export.run(paths.registry, model, "torch", tmp_path / "out", pixels)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_replaced(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(HeadwaterError, match="holds other files"):
        export.run(paths.registry, model, "timm", tmp_path, pixels)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_unknown_formats_and_stems_that_timm_lacks(
    paths: Paths, model: Model, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeadwaterError, match="take timm, onnx, torch"):
        export.run(paths.registry, model, "pickle", tmp_path / "x", pixels)
    monkeypatch.setitem(model.encoder.args, "stem", "conv")
    with pytest.raises(HeadwaterError, match="is not timm's"):
        export.run(paths.registry, model, "timm", tmp_path / "x", pixels)
    assert models.META not in [p.name for p in tmp_path.rglob("*")]
