"""The encoder itself: a timm model, ViT or CNN, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import HeadwaterError
from . import _patches
from ._outputs import Crops, EncoderOutput, Need, PackedOutput, needed
from ._packing import pack


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
        if self.is_vit:
            _patches.adopt(model)

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
            return pack(self, x)
        crops = Crops(x, keep, mask, token, need)
        if self.cuts(crops):
            return pack(self, [crops]).parts[0]
        self.require_fit(x)
        model: Any = self.model
        whole = keep is None and mask is None and not (self.is_vit and self.checkpointing)
        tokens = model.forward_features(x) if whole else self._through(self.embed(crops))
        return needed(self.output(tokens, x, keep), need)

    def cuts(self, crops: Crops) -> bool:
        """Whether the last block may leave out what is not needed."""
        return self._pools_first and not (isinstance(crops.need, str) and crops.need == "all")

    @property
    def _pools_first(self) -> bool:
        """Whether pooled features are the first token's."""
        model: Any = self.model
        pools = self.is_vit and model.global_pool == "token" and model.attn_pool is None
        return pools and not self.unpackable

    def output(self, tokens: Any, x: Tensor, keep: Tensor | None) -> EncoderOutput:
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

    def _no_grid(self, found: str) -> HeadwaterError:
        rule = f"has no single grid of features ({found})"
        return HeadwaterError(f"backbone '{self.name}'", rule, "choose a plain ViT or a CNN")

    def require_fit(self, x: Tensor) -> None:
        """Refuse images (B, C, H, W) that the model cannot take.

        Raises:
            HeadwaterError: other channels, or a side that its patches do not fill.
        """
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

    def embed(self, crops: Crops) -> Tensor:
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


def _unpackable(model: nn.Module) -> str:
    """Why the blocks of a ViT cannot take a pack; else lets them, and returns nothing."""
    from .. import packed

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
