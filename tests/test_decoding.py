"""Decoding against Pillow's: what is scaled on the way must look like the whole scaled down."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ssl_core import bands, decoding
from ssl_core.decoding import Corrupt, decode


def photo(size: tuple[int, int]) -> Image.Image:
    """A real photograph with fine detail (scikit-learn ships it), scaled to ``size``."""
    from sklearn.datasets import load_sample_image

    whole = Image.fromarray(load_sample_image("china.jpg"))
    return whole.resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_pillow(data: bytes, side: int) -> NDArray[np.uint8]:
    """The oracle: the whole decoded and scaled by Pillow, (H, W, 3) without the margin."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def inside(square: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, side, side) -> (H, W, 3): the square without its margin."""
    height, width, _ = like.shape
    top, left = (square.shape[1] - height) // 2, (square.shape[2] - width) // 2
    return square[:, top : top + height, left : left + width].transpose(1, 2, 0)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("size", [(500, 334), (331, 500), (257, 255)])
@pytest.mark.parametrize("side", [40, 64, 96, 128, 160, 224, 256, 400])
def test_a_jpeg_looks_like_the_whole_scaled_down(
    side: int, size: tuple[int, int], subsampling: int
) -> None:
    data = encode(photo(size), quality=95, subsampling=subsampling)
    whole = by_pillow(data, side)
    found = decode(data, side, 3, 3)
    assert found.shape == (3, side, side)
    assert psnr(inside(found, whole), whole) > 37  # misplaced by half a pixel: below 33


def test_a_jpeg_is_decoded_at_the_smallest_scale_that_covers_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, sizes = encode(photo((640, 480))), []
    plain = simplejpeg.decode_jpeg

    def noted(*args: object, **options: object) -> NDArray[np.uint8]:
        sizes.append(plain(*args, **options).shape[1])
        return plain(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    for side in (32, 64, 65, 128, 192, 193, 224, 256, 257, 640):
        decode(data, side, 3, 3)
    assert sizes == [80, 80, 160, 160, 240, 320, 320, 320, 640, 640]
    assert all(
        s >= 1.25 * side for s, side in zip(sizes[:-1], (32, 64, 65, 128, 192), strict=False)
    )


def test_at_full_size_pixels_are_those_of_pillow() -> None:
    data = encode(photo((64, 64)), quality=95, subsampling=0)
    difference = decode(data, 64, 3, 3).transpose(1, 2, 0).astype(int) - by_pillow(data, 64)
    assert np.abs(difference).max() <= 1  # two builds of libjpeg-turbo
    exact = encode(photo((64, 64)), "PNG")
    assert (decode(exact, 64, 3, 3).transpose(1, 2, 0) == by_pillow(exact, 64)).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_kind_of_jpeg_is_read_and_equal_bytes_give_equal_pixels(mode: str) -> None:
    data = encode(photo((100, 75)).convert(mode), progressive=mode == "RGB")
    first = decode(data, 32, 3, 3)
    whole = by_pillow(data, 32)
    assert psnr(inside(first, whole), whole) > 34
    assert all((decode(data, 32, 3, 3) == first).all() for _ in range(5))


def test_other_formats_are_scaled_as_pillow_does() -> None:
    for kind in ("PNG", "WEBP", "BMP"):
        data = encode(photo((150, 90)), kind)
        whole = by_pillow(data, 48)
        difference = inside(decode(data, 48, 3, 3), whole).astype(int) - whole
        assert np.abs(difference).max() <= 2
        assert np.abs(difference).mean() < 0.05


def test_damage_is_said() -> None:
    jpeg = encode(photo((100, 75)))
    for data in (jpeg[:400], jpeg[: len(jpeg) // 2], b"", b"GIF89a" + bytes(40), b"\xff\xd8\xff"):
        with pytest.raises(Corrupt):
            decode(data, 32, 3, 3)
    huge = bytearray(jpeg)
    place = huge.index(b"\xff\xc0")  # the frame's header: height and width at byte 5
    huge[place + 5 : place + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(Corrupt, match="65500 × 65500"):
        decode(bytes(huge), 32, 3, 3)


def test_bands_are_counted() -> None:
    array = bands.pack(np.zeros((8, 8, 5), np.uint8))
    assert decode(array, 8, 5, 5).shape == (5, 8, 8)
    assert decode(array, 8, 3, 5).shape == (3, 8, 8)
    with pytest.raises(Corrupt, match="4 channels are expected"):
        decode(array, 8, 4, 4)
    with pytest.raises(Corrupt, match="3 channels where 5"):
        decode(encode(photo((8, 8))), 8, 5, 5)


def test_canvas_fits_the_whole_image_and_leaves_a_white_margin() -> None:
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 20:] = (200, 100, 50)
    out = decoding.canvas(wide, 20)
    assert out.shape == (3, 20, 20)
    assert (out[:, :7] == 255).all()
    assert (out[:, 12:] == 255).all()
    assert (out[:, 7:12, :8] == 0).all()
    assert (out[:, 7:12, 12:] == np.array([200, 100, 50])[:, None, None]).all()
    tall = decoding.canvas(wide.transpose(1, 0, 2), 20)
    assert np.abs(tall.astype(int) - out.transpose(0, 2, 1)).max() <= 1
    tiny = decoding.canvas(np.zeros((1, 400, 3), dtype=np.uint8), 20)  # thinner than a pixel
    assert (tiny[:, 9:11] == 0).any()
