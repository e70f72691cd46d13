"""Batched augmentation on the device, seeded per call, and where it runs.

Crop + antialiased resize + flip (boxes in whole pixels, as torchvision) is torch's uint8 kernel
per sample on a CPU, which touches the box's pixels only: 6x faster than float matrix products
there. Elsewhere it is one (size, H) and one (W, size) matrix per sample: two launches a batch.
Both are torchvision's ``antialias=True``; the uint8 kernel rounds to grey levels, as PIL does.

Then brightness, contrast, saturation, hue, grey, blur, solarise, normalise, on blocks of samples
that stay in cache. There is no data-dependent branch on a GPU: a sample that does not draw an
operation gets the identity.

Differences to torchvision: the jitter order is fixed, and saturation, hue and grey form one
3x3 matrix per sample (clamped once after it). Hue turns the chroma plane of YIQ instead of
HSV: same direction and period, luma kept, no branches (4x cheaper, measured). Saturation, hue
and grey apply to 3-channel images only; the rest to any channel count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from threading import Thread

import torch
from torch import Tensor
from torch.nn import functional as F

from .parallel import ordered_map
from .types import View

TRIES = 10  # crop proposals per sample before the whole image is taken, as torchvision
GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights
CACHE = 8 * 2**20  # bytes of float pixels that are worked on at once on a CPU
TAILS = 4.0  # the blur's kernel ends at so many sigma: beyond lie 6e-5 of its weight
BAND = 16  # output rows per matrix product of the blur on a CPU


@dataclass(frozen=True)
class Draws:
    """The random choices for one view of a batch; each tensor has B rows.

    ``box`` (B, 4) is top, left, height, width in whole pixels (float32); ``factors`` (B, 4) are
    the jitter factors (1, 1, 1, 0 where jitter did not fire), hue in turns; the rest are masks
    (B,) and the blur's ``sigma`` (B,) in output pixels.
    """

    box: Tensor
    flip: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    solarise: Tensor

    def rows(self, part: slice) -> Draws:
        """The choices for some samples."""
        return Draws(*(getattr(self, field.name)[part] for field in fields(self)))


def sent(drawn: list[Draws], device: torch.device) -> list[Draws]:
    """The same on a device, in one copy: many small ones would each wait for the GPU."""
    if device.type == "cpu":
        return drawn
    whole = packed(drawn)
    whole = whole.pin_memory() if device.type == "cuda" else whole
    return unpacked(whole.to(device, non_blocking=True), drawn[0])


def packed(drawn: list[Draws]) -> Tensor:
    """All choices of V views as one float32 tensor: (V, B, 13)."""
    names = [field.name for field in fields(Draws)]
    rows = ([getattr(d, n).float().view(len(d.flip), -1) for n in names] for d in drawn)
    return torch.stack([torch.cat(columns, 1) for columns in rows])


def unpacked(whole: Tensor, like: Draws) -> list[Draws]:
    """Back from (V, B, 13), in the shapes and types of ``like``."""
    models = [getattr(like, field.name) for field in fields(Draws)]
    widths = [x.shape[1] if x.dim() > 1 else 1 for x in models]
    found = []
    for view in whole:
        parts = zip(view.split(widths, 1), models, strict=True)  # (B, 13) -> (B, w) each
        found.append(Draws(*(part.view(-1, *x.shape[1:]).to(x.dtype) for part, x in parts)))
    return found


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

        All randomness comes from ``generator``, which lives on the CPU whatever the device of
        ``images`` is: choices are equal everywhere. On a CPU it is fastest if the strides of
        ``images`` are channels last.
        """
        device = images.device
        if device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        mean = _constant(self.mean, device).view(-1, 1, 1)
        scale = 1 / _constant(self.std, device).view(-1, 1, 1)
        sides = _constant(tuple(float(side) for side in images.shape[-2:]) * 2, device)
        drawn = [draw(view, len(images), images.shape[-2:], generator) for view in self.views]
        done, boxes, jobs = [], [], []
        for view, chosen in zip(self.views, sent(drawn, device), strict=True):
            x = images.new_empty((*images.shape[:2], view.size, view.size), dtype=torch.float32)
            jobs += [(x[i], images[i], view, chosen.rows(i)) for i in _blocks(x)]
            done.append(x)
            boxes.append(torch.cat([chosen.box / sides, chosen.flip.float().unsqueeze(1)], 1))
        _run(jobs, mean, scale)
        return done, boxes


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A few numbers on a device, copied there once: a GPU's stream would wait for each copy."""
    return torch.tensor(values, device=device)


Job = tuple[Tensor, Tensor, View, Draws]  # where the views go; what they are made of


def _run(jobs: list[Job], mean: Tensor, scale: Tensor) -> None:
    """Make every block's views, on a CPU each by one thread: small tensors gain nothing of two.

    So the result does not depend on the number of threads, either.
    """

    @torch.no_grad()  # it holds per thread
    def work(job: Job) -> None:
        out, images, view, chosen = job
        torch.sub(apply(images, view, chosen), mean, out=out).mul_(scale)

    threads = torch.get_num_threads() if jobs[0][0].device.type == "cpu" else 1
    if threads == 1:
        for job in jobs:
            work(job)
        return
    for _ in ordered_map(work, jobs, threads, 2 * threads, single_threaded):
        pass


def single_threaded() -> None:
    """Let torch use one thread for what this thread does; others keep their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # It also became the number with which new threads start: a passing thread undoes that.
    undo = Thread(target=torch.set_num_threads, args=(threads,))
    undo.start()
    undo.join()


def _blocks(x: Tensor) -> list[slice]:
    """Parts of a batch: such as stay in cache on a CPU, the whole elsewhere."""
    step = max(1, CACHE // (4 * x[0].numel())) if x.device.type == "cpu" else len(x)
    return [slice(i, i + step) for i in range(0, len(x), step)]


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

    As torchvision: area uniform in ``scale``, aspect log-uniform in ``ratio``, sides rounded to
    whole pixels, every place equally likely.
    """
    height, width = size
    u = torch.rand(batch, TRIES, 2, generator=generator, device=generator.device)
    area = height * width * (view.scale[0] + (view.scale[1] - view.scale[0]) * u[..., 0])
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    aspect = torch.exp(low + (high - low) * u[..., 1])
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], -1).round_()
    limit = torch.tensor([height, width], dtype=sides.dtype, device=sides.device)
    fits = ((sides > 0) & (sides <= limit)).all(-1)  # (B, TRIES, 2) -> (B, TRIES)
    first = fits.int().argmax(1)
    chosen = sides[torch.arange(batch, device=sides.device), first]  # (B, 2)
    # Fallback as torchvision: the largest centred box with an allowed aspect.
    whole = min(max(width / height, view.ratio[0]), view.ratio[1])
    back = torch.tensor([min(height, round(width / whole)), min(width, round(height * whole))])
    any_fits = fits.any(1, keepdim=True)
    chosen = torch.where(any_fits, chosen, back.to(chosen))
    place = torch.rand(batch, 2, generator=generator, device=generator.device)
    free = limit - chosen
    drawn = torch.minimum((place * (free + 1)).floor_(), free)
    return torch.cat([torch.where(any_fits, drawn, (free / 2).floor_()), chosen], 1)


def apply(images: Tensor, view: View, chosen: Draws) -> Tensor:
    """One view: uint8 (B, C, H, W) -> new float (B, C, size, size) in [0, 1]."""
    x = crop_resize(images, chosen.box, view.size, chosen.flip)
    if any(view.jitter) and view.jitter_p > 0:
        brightness_(x, chosen.factors[:, 0])
        contrast_(x, chosen.factors[:, 1])
    if x.shape[1] == 3 and (any(view.jitter[2:]) or view.grey > 0):
        x = colour(x, chosen.factors[:, 2], chosen.factors[:, 3], chosen.grey)
    if view.blur > 0:
        x = blur(x, chosen.sigma, chosen.blur, view.blur_sigma[1])
    if view.solarise > 0:
        x = solarise(x, chosen.solarise)
    return x


def crop_resize(images: Tensor, box: Tensor, size: int, flip: Tensor) -> Tensor:
    """Cut ``box`` (B, 4: top, left, height, width), resize, mirror where ``flip`` (B,).

    uint8 (B, C, H, W) -> float (B, C, size, size) in [0, 1]: torchvision's antialiased bilinear
    ``resized_crop``. The two ways differ by at most a grey level (1/255).
    """
    on_cpu = images.device.type == "cpu"
    return (_cut if on_cpu else _cut_dense)(images, box, size, flip)


def _cut(images: Tensor, box: Tensor, size: int, flip: Tensor) -> Tensor:
    """Sample by sample, in uint8."""
    out = torch.empty(*images.shape[:2], size, size)  # (B, C, size, size)
    places = box.int().tolist()
    for image, target, place, mirror in zip(images, out, places, flip.tolist(), strict=True):
        top, left, height, width = place
        part = image[:, top : top + height, left : left + width].unsqueeze(0)
        made = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
        target.copy_(made.flip(2) if mirror else made)
    return out.mul_(1 / 255)


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Row-normalised triangle filters (B, size, source) that sample [start, start + length)."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    centre = start + torch.arange(size, device=start.device).add(0.5).view(1, -1, 1) * scale
    pixel = torch.arange(source, device=start.device).add(0.5).view(1, 1, -1)
    # Downscaling widens the filter to the area of an output pixel: that is the antialiasing.
    weights = 1 - (pixel - centre).abs() / scale.clamp_min(1)  # (B, size, source)
    weights = torch.where((pixel > start) & (pixel < start + length), weights.clamp_min_(0), 0)
    return weights.div_(weights.sum(-1, keepdim=True))


def _cut_dense(images: Tensor, box: Tensor, size: int, flip: Tensor) -> Tensor:
    """All samples at once, by two matrix products."""
    batch, channels, height, width = images.shape
    rows = _resize_weights(box[:, 0], box[:, 2], height, size)  # (B, size, H)
    columns = _resize_weights(box[:, 1], box[:, 3], width, size)  # (B, size, W)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    pixels = images.float().div_(255).reshape(batch, channels * height, width)
    x = (pixels @ columns.mT).view(batch, channels, height, size)  # (B, C*H, W) -> (B, C, H, size)
    return rows.unsqueeze(1) @ x  # (B, 1, size, H) @ (B, C, H, size) -> (B, C, size, size)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (B,) and clamp, in place."""
    return x.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey by ``factor`` (B,) and clamp, in place."""
    means = x.mean((2, 3))  # (B, C)
    grey = _constant(GREY, x.device)
    level = means @ grey if x.shape[1] == 3 else means.mean(1)  # (B,)
    shift = (1 - factor) * level
    return x.mul_(factor.view(-1, 1, 1, 1)).add_(shift.view(-1, 1, 1, 1)).clamp_(0, 1)


@lru_cache(maxsize=16)
def _hue_parts(device: torch.device) -> tuple[Tensor, Tensor]:
    """Luma projector P and chroma quarter turn Q: a turn is P + cos(a)(1 - P) + sin(a)Q."""
    yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
        dtype=torch.float64,
    )
    back = torch.linalg.inv(yiq)
    luma = torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64))
    # Positive angles go red -> green -> blue, as hue in HSV.
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return (back @ luma @ yiq).float().to(device), (back @ turn @ yiq).float().to(device)


def colour_matrix(saturation: Tensor, hue: Tensor, grey: Tensor) -> Tensor:
    """Per-sample 3x3 matrices (B, 3, 3); exactly the identity for (1, 0, False)."""
    eye = torch.eye(3, device=hue.device)
    luma, turn = _hue_parts(hue.device)
    angle = hue.view(-1, 1, 1) * (2 * math.pi)
    turned = eye + (angle.cos() - 1) * (eye - luma) + angle.sin() * turn
    to_grey = _constant(GREY, hue.device).expand(3, 3)
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


def blur(x: Tensor, sigma: Tensor, fired: Tensor, most: float = math.inf) -> Tensor:
    """Gaussian blur with per-sample ``sigma`` (B,) where ``fired`` (B,); square (B, C, S, S).

    torchvision's ``gaussian_blur`` with :func:`kernel_size` and reflected borders; the kernel is
    cut at TAILS times ``most``, the largest sigma that may come. May change ``x``.
    """
    half = kernel_size(x.shape[-1]) // 2
    if most < math.inf:
        half = min(half, max(1, math.ceil(TAILS * most)))
    offset = torch.arange(2 * half + 1, device=x.device) - half
    kernel = torch.exp(-0.5 * (offset / sigma.unsqueeze(1)) ** 2)  # (B, T)
    kernel = kernel / kernel.sum(1, keepdim=True)
    if x.device.type != "cpu":
        return _blur_dense(x, torch.where(fired.unsqueeze(1), kernel, (offset == 0).float()))
    matrices = _bands(kernel)
    for i in fired.nonzero().flatten().tolist():
        _blur_banded_(x[i], matrices[i])
    return x


@lru_cache(maxsize=16)
def _blur_basis(size: int, taps: int, device: torch.device) -> Tensor:
    """(T, size*size): entry t is the matrix that shifts by t - T//2 with reflected borders."""
    offset = torch.arange(taps) - taps // 2
    at = (torch.arange(size) + offset.view(-1, 1)).abs()  # (T, size)
    at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return F.one_hot(at, size).float().flatten(1).to(device)


def _blur_dense(x: Tensor, kernel: Tensor) -> Tensor:
    """Two dense matrix products per sample with ``kernel`` (B, T): few launches."""
    size, taps = x.shape[-1], kernel.shape[1]
    basis = _blur_basis(size, taps, x.device)
    matrix = (kernel @ basis).view(-1, 1, size, size)  # (B, T) @ (T, S*S)
    return matrix @ x @ matrix.mT


def _bands(kernel: Tensor) -> Tensor:
    """(B, T) -> (B, BAND, BAND + T - 1): row i holds the kernel from column i on."""
    batch, taps = kernel.shape
    reach = BAND + taps - 1
    flat = kernel.new_zeros(batch, BAND * (reach + 1))
    flat.as_strided((batch, BAND, taps), (flat.shape[1], reach + 1, 1)).copy_(kernel.unsqueeze(1))
    return flat[:, : BAND * reach].view(batch, BAND, reach)


def _blur_banded_(x: Tensor, matrix: Tensor) -> None:
    """One sample (C, S, S) in place, by products that skip the zeros of the dense matrix.

    BAND neighbouring outputs need BAND + T - 1 inputs, through the same small ``matrix``
    wherever they lie: overlapping windows of the padded image, read in place by strides.
    """
    channels, size, _ = x.shape
    reach = matrix.shape[1]
    half, bands = (reach - BAND) // 2, -(-size // BAND)
    full = bands * BAND  # what is beyond size is cut off again
    rows = channels * size
    wide = F.pad(x, (half, half, 0, 0), mode="reflect")
    wide = F.pad(wide, (0, full - size)) if full > size else wide
    windows = wide.as_strided((bands, rows, reach), (BAND, wide.shape[-1], 1))
    across = x.new_empty(rows, full)  # (C*S, S')
    out = across.as_strided((bands, rows, BAND), (BAND, full, 1))
    torch.bmm(windows, matrix.T.expand(bands, -1, -1), out=out)
    # Downwards all channels are one tall image: their bands are equally far apart.
    step = full + BAND * -(-2 * half // BAND)
    tall = x.new_zeros(channels * step + reach, size)
    planes = tall[: channels * step].view(channels, step, size)
    across = across.view(channels, size, full)[..., :size]
    planes[:, : size + 2 * half] = F.pad(across, (0, 0, half, half), mode="reflect")
    count = channels * step // BAND
    windows = tall.as_strided((count, reach, size), (BAND * size, size, 1))
    down = torch.bmm(matrix.expand(count, -1, -1), windows)  # (count, BAND, S)
    x.copy_(down.view(channels, step, size)[:, :size])


def solarise(x: Tensor, fired: Tensor) -> Tensor:
    """Invert values of at least 0.5 where ``fired`` (B,). May change ``x``."""
    if x.device.type != "cpu":
        return torch.where(fired.view(-1, 1, 1, 1) & (x >= 0.5), 1 - x, x)
    for i in fired.nonzero().flatten().tolist():
        x[i].sub_(0.5).abs_().neg_().add_(0.5)  # the same without a comparison
    return x
