"""Batched augmentation on the device: the same tensor code on CPU and GPU, seeded per call.

Every geometric operation is linear and separable, so it is two matrix products per view:
crop + antialiased resize + flip use one (size, H) and one (W, size) matrix per sample (the
triangle filter of PIL and torchvision ``antialias=True``, but with sub-pixel boxes), and the
Gaussian blur one banded (size, size) matrix (torchvision's kernel and reflected borders).
There is no data-dependent branch: a sample that does not draw an operation gets the identity.

Order: crop, flip, brightness, contrast, saturation, hue, grey, blur, solarise, normalise.
Differences to torchvision: the jitter order is fixed, and saturation, hue and grey form one
3x3 matrix per sample (clamped once after it). Hue turns the chroma plane of YIQ instead of
HSV: same direction and period, luma kept, no branches (4x cheaper, measured). Saturation, hue
and grey apply to 3-channel images only; the rest to any channel count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .types import View

TRIES = 10  # crop proposals per sample before the whole image is taken, as torchvision
GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights


@dataclass(frozen=True)
class Draws:
    """The random choices for one view of a batch; each tensor has B rows.

    ``box`` (B, 4) is top, left, height, width in pixels; ``factors`` (B, 4) are the jitter
    factors (1, 1, 1, 0 where jitter did not fire), hue in turns; the rest are masks (B,)
    and the blur's ``sigma`` (B,) in output pixels.
    """

    box: Tensor
    flip: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    solarise: Tensor


class Augmenter:
    """Makes all views of a batch.

    Args:
        views: recipes; one with ``count=n`` gives n consecutive outputs.
        mean, std: per channel, on the [0, 1] scale.
    """

    def __init__(self, views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> None:
        self.views = [view for view in views for _ in range(view.count)]
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The views of :meth:`with_boxes`."""
        return self.with_boxes(images, generator)[0]

    @torch.no_grad()
    def with_boxes(
        self, images: Tensor, generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """uint8 (B, C, H, W) -> one normalised float32 (B, C, size, size) per view, in order.

        The second list says where each view was cut: (B, 5) of top, left, height and width as
        shares of the image, and 1 where it was mirrored.

        All randomness comes from ``generator``, which lives on the device of ``images``.
        """
        pixels = images.float().div_(255)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        sides = torch.tensor([*images.shape[-2:]] * 2, device=images.device)
        done, boxes = [], []
        for view in self.views:
            chosen = draw(view, len(images), images.shape[-2:], generator)
            done.append(apply(pixels, view, chosen).sub_(mean).div_(std))
            boxes.append(torch.cat([chosen.box / sides, chosen.flip.float().unsqueeze(1)], 1))
        return done, boxes


def draw(view: View, batch: int, size: Sequence[int], generator: torch.Generator) -> Draws:
    """Random choices for ``batch`` images of ``size`` (H, W)."""
    device = generator.device
    u = torch.rand(batch, 12, generator=generator, device=device)
    box = _boxes(view, batch, size, generator)
    strength = torch.tensor(view.jitter, device=device)
    fired = (u[:, 0] < view.jitter_p).unsqueeze(1)
    centre = torch.tensor((1.0, 1.0, 1.0, 0.0), device=device)
    low = (centre - strength).clamp_min(0) - (centre == 0) * strength  # hue may be negative
    factors = low + (centre + strength - low) * u[:, 1:5]  # (B, 4)
    sigma = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u[:, 5]
    return Draws(
        box,
        u[:, 6] < view.flip,
        torch.where(fired, factors, centre),
        u[:, 7] < view.grey,
        u[:, 8] < view.blur,
        sigma,
        u[:, 9] < view.solarise,
    )


def _boxes(view: View, batch: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random-resized-crop boxes (B, 4): first of TRIES proposals that fits, else the centre.

    Area is uniform in ``scale``, aspect log-uniform in ``ratio`` (as torchvision), but neither
    sizes nor offsets are rounded to pixels.
    """
    height, width = size
    u = torch.rand(batch, TRIES, 2, generator=generator, device=generator.device)
    area = height * width * (view.scale[0] + (view.scale[1] - view.scale[0]) * u[..., 0])
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    aspect = torch.exp(low + (high - low) * u[..., 1])
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], -1)  # (B, TRIES, 2)
    limit = torch.tensor([height, width], dtype=sides.dtype, device=sides.device)
    fits = (sides <= limit).all(-1)  # (B, TRIES)
    first = fits.int().argmax(1)
    chosen = sides[torch.arange(batch, device=sides.device), first]  # (B, 2)
    # Fallback as torchvision: the largest centred box with an allowed aspect.
    whole = min(max(width / height, view.ratio[0]), view.ratio[1])
    back = torch.tensor([min(height, width / whole), min(width, height * whole)])
    any_fits = fits.any(1, keepdim=True)
    chosen = torch.where(any_fits, chosen, back.to(chosen))
    place = torch.rand(batch, 2, generator=generator, device=generator.device)
    place = torch.where(any_fits, place, 0.5)
    return torch.cat([(limit - chosen) * place, chosen], 1)


def apply(pixels: Tensor, view: View, chosen: Draws) -> Tensor:
    """One view: float (B, C, H, W) in [0, 1] -> new float (B, C, size, size) in [0, 1]."""
    x = crop_resize(pixels, chosen.box, view.size, chosen.flip)
    if any(view.jitter) and view.jitter_p > 0:
        brightness_(x, chosen.factors[:, 0])
        contrast_(x, chosen.factors[:, 1])
    if x.shape[1] == 3 and (any(view.jitter[2:]) or view.grey > 0):
        x = colour(x, chosen.factors[:, 2], chosen.factors[:, 3], chosen.grey)
    if view.blur > 0:
        x = blur(x, chosen.sigma, chosen.blur)
    if view.solarise > 0:
        x = solarise(x, chosen.solarise)
    return x


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Row-normalised triangle filters (B, size, source) that sample [start, start + length)."""
    scale = (length / size).view(-1, 1, 1)
    at = torch.arange(size, device=start.device).add(0.5).view(1, -1, 1)
    centre = start.view(-1, 1, 1) + at * scale  # (B, size, 1)
    pixel = torch.arange(source, device=start.device).add(0.5).view(1, 1, -1)
    # Downscaling widens the filter to the area of an output pixel: that is the antialiasing.
    weights = (pixel - centre).abs_().div_(scale.clamp_min(1)).neg_().add_(1).clamp_min_(0)
    return weights.div_(weights.sum(-1, keepdim=True))


def crop_resize(pixels: Tensor, box: Tensor, size: int, flip: Tensor) -> Tensor:
    """Cut ``box`` (B, 4: top, left, height, width), resize, mirror where ``flip`` (B,).

    (B, C, H, W) -> (B, C, size, size). Equal to torchvision's antialiased bilinear resize,
    except that pixels beyond the box's edge (not the image's) take part in the filter.
    """
    batch, channels, height, width = pixels.shape
    rows = _resize_weights(box[:, 0], box[:, 2], height, size)  # (B, size, H)
    columns = _resize_weights(box[:, 1], box[:, 3], width, size)  # (B, size, W)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    x = pixels.reshape(batch, channels * height, width) @ columns.mT  # (B, C*H, size)
    x = x.view(batch, channels, height, size)
    return rows.unsqueeze(1) @ x  # (B, 1, size, H) @ (B, C, H, size) -> (B, C, size, size)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (B,) and clamp, in place."""
    return x.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey by ``factor`` (B,) and clamp, in place."""
    means = x.mean((2, 3))  # (B, C)
    grey = torch.tensor(GREY, device=x.device)
    level = means @ grey if x.shape[1] == 3 else means.mean(1)  # (B,)
    shift = (1 - factor) * level
    return x.mul_(factor.view(-1, 1, 1, 1)).add_(shift.view(-1, 1, 1, 1)).clamp_(0, 1)


def _hue_parts() -> tuple[Tensor, Tensor]:
    """Luma projector P and chroma quarter turn Q: a turn is P + cos(a)(1 - P) + sin(a)Q."""
    yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
        dtype=torch.float64,
    )
    back = torch.linalg.inv(yiq)
    luma = torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64))
    # Positive angles go red -> green -> blue, as hue in HSV.
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return (back @ luma @ yiq).float(), (back @ turn @ yiq).float()


def colour_matrix(saturation: Tensor, hue: Tensor, grey: Tensor) -> Tensor:
    """Per-sample 3x3 matrices (B, 3, 3); exactly the identity for (1, 0, False)."""
    eye = torch.eye(3, device=hue.device)
    luma, turn = (part.to(hue.device) for part in _hue_parts())
    angle = hue.view(-1, 1, 1) * (2 * math.pi)
    turned = eye + (angle.cos() - 1) * (eye - luma) + angle.sin() * turn
    to_grey = torch.tensor(GREY, device=hue.device).expand(3, 3)
    s = saturation.view(-1, 1, 1)
    matrix = turned @ (s * eye + (1 - s) * to_grey)
    return torch.where(grey.view(-1, 1, 1), to_grey, matrix)


def colour(x: Tensor, saturation: Tensor, hue: Tensor, grey: Tensor) -> Tensor:
    """Saturation factor, hue turn and greyscale mask, each (B,), on (B, 3, H, W)."""
    matrix = colour_matrix(saturation, hue, grey)
    return (matrix @ x.flatten(2)).clamp_(0, 1).view_as(x)  # (B, 3, 3) @ (B, 3, H*W)


def kernel_size(size: int) -> int:
    """SimCLR's rule (arXiv 2002.05709): a tenth of the image, odd, at least 3."""
    return max(3, size // 10 | 1)


@lru_cache(maxsize=16)
def _blur_basis(size: int, device: torch.device) -> Tensor:
    """(T, size*size): entry t is the matrix that shifts by t - T//2 with reflected borders."""
    taps = kernel_size(size)
    offset = torch.arange(taps) - taps // 2
    at = (torch.arange(size) + offset.view(-1, 1)).abs()  # (T, size)
    at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return torch.nn.functional.one_hot(at, size).float().flatten(1).to(device)


def blur(x: Tensor, sigma: Tensor, fired: Tensor) -> Tensor:
    """Gaussian blur with per-sample ``sigma`` (B,) where ``fired`` (B,); square (B, C, S, S)."""
    size = x.shape[-1]
    basis = _blur_basis(size, x.device)
    taps = len(basis)
    offset = torch.arange(taps, device=x.device) - taps // 2
    kernel = torch.exp(-0.5 * (offset / sigma.unsqueeze(1)) ** 2)  # (B, T)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = torch.where(fired.unsqueeze(1), kernel, (offset == 0).float())
    matrix = (kernel @ basis).view(-1, 1, size, size)  # (B, T) @ (T, S*S)
    return matrix @ x @ matrix.mT


def solarise(x: Tensor, fired: Tensor) -> Tensor:
    """Invert values of at least 0.5 where ``fired`` (B,)."""
    return torch.where(fired.view(-1, 1, 1, 1) & (x >= 0.5), 1 - x, x)
