"""Copies: the search for pairs, the aligned pixels, and leaks between the splits."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.neighbors import NearestNeighbors
from test_curation import drawing, frame_of

from ssl_core.config import Curate
from ssl_core.curation import _cells, _copies, _pixels, _vectors, leak, near

Look = Callable[[np.ndarray], np.ndarray]


def thumbs(images: list[Image.Image]) -> np.ndarray:
    return np.stack([_pixels.thumbnail(np.asarray(i.convert("RGB"))) for i in images])


def looker(images: list[Image.Image]) -> Look:
    small = thumbs(images)
    return lambda rows: small[rows]


def edits(image: Image.Image) -> dict[str, Image.Image]:
    """What copies go through."""
    w, h = image.size
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=50)
    return {
        "jpeg": Image.open(jpeg).convert("RGB"),
        "cropped": image.crop((4, 2, w - 1, h - 4)),
        "brighter": ImageEnhance.Brightness(image).enhance(1.3),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }


# ---- the mirrored hash -------------------------------------------------------------------------


def test_the_hash_of_a_mirror_image_is_the_hash_with_every_other_bit_turned() -> None:
    """Up to frequencies near the median, whose sign is chance."""
    rng = np.random.default_rng(0)
    off, chance = [], []
    for _ in range(30):
        image = drawing(rng).filter(ImageFilter.GaussianBlur(2))
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pair = pd.Series([str(imagehash.phash(i)) for i in (image, mirrored)])
        bits = _vectors.phash_bits(pair)
        off.append(int(np.bitwise_count(bits[0] ^ bits[1] ^ _vectors.MIRROR)))
        chance.append(int(np.bitwise_count(bits[0] ^ bits[1])))
    assert np.mean(off) < 5
    assert np.mean(chance) > 20


# ---- pixels ------------------------------------------------------------------------------------


def shifted(base: np.ndarray, scale: float, dx: float, dy: float) -> np.ndarray:
    """``base``, a function on the plane, sampled on a stretched and moved grid: (3, S, S)."""
    line = np.linspace(-1, 1, _pixels.SIDE)
    x, y = np.meshgrid(scale * line + dx, scale * line + dy)
    waves = [np.sin(k @ np.stack([x.ravel(), y.ravel()]) + p) for k, p in base]
    colour = np.sum(waves, axis=0).reshape(1, _pixels.SIDE, _pixels.SIDE)
    return np.clip(128 + 25 * np.repeat(colour, 3, axis=0), 0, 255).astype(np.uint8)


def waves(rng: np.random.Generator) -> Any:
    return [(rng.normal(0, 2.5, 2), rng.uniform(0, 6.28)) for _ in range(6)]


def test_alignment_finds_scale_and_shift_and_no_agreement_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    scenes = [waves(rng) for _ in range(40)]
    first = np.stack([shifted(s, 1, 0, 0) for s in scenes])
    moves = [(rng.uniform(0.9, 1.1), *rng.uniform(-0.08, 0.08, 2)) for _ in scenes]
    second = np.stack([shifted(s, *m) for s, m in zip(scenes, moves, strict=True)])
    assert (_pixels.agreement(first, first) > 0.999).all()
    assert np.mean(_pixels.agreement(first, second) > 0.9) > 0.95
    assert (_pixels.agreement(first, np.roll(second, 1, axis=0)) < 0.5).all()


def test_brightness_does_not_count_but_one_corner_does() -> None:
    rng = np.random.default_rng(1)
    first = np.stack([shifted(waves(rng), 1, 0, 0) for _ in range(20)])
    dark = (first * 0.6 + 10).astype(np.uint8)
    clipped = np.clip(first.astype(int) + 60, 0, 255).astype(np.uint8)
    assert (_pixels.agreement(first, dark) > 0.98).all()
    assert (_pixels.agreement(first, clipped) > 0.9).all()
    marked = first.copy()
    marked[:, :, 15:21, 15:21] = 255 - marked[:, :, 15:21, 15:21]
    assert (_pixels.agreement(first, marked) < 0.75).all()


def test_flat_pictures_agree_with_nothing_and_batches_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = np.full((2, 3, _pixels.SIDE, _pixels.SIDE), 200, dtype=np.uint8)
    assert _pixels.agreement(flat, flat).tolist() == [0, 0]
    assert len(_pixels.agreement(flat[:0], flat[:0])) == 0
    rng = np.random.default_rng(2)
    scenes = np.stack([shifted(waves(rng), 1, 0, 0) for _ in range(9)])
    whole = _pixels.agreement(scenes, scenes[::-1])
    monkeypatch.setattr(_pixels, "BATCH", 2)
    np.testing.assert_allclose(_pixels.agreement(scenes, scenes[::-1]), whole, atol=1e-4)


# ---- the near step with pixels -----------------------------------------------------------------


def family(label: str | None = None) -> tuple[pd.DataFrame, np.ndarray, list[Image.Image]]:
    """20 drawings and their edits. Features: the drawing's own direction, with noise."""
    rng = np.random.default_rng(3)
    images, rows, features = [], [], []
    for i in range(20):
        image = drawing(rng).filter(ImageFilter.GaussianBlur(1))
        centre = rng.normal(size=16)
        for name, picture in {"own": image, **edits(image)}.items():
            images.append(picture)
            rows.append({"source": f"{i}", "phash": str(imagehash.phash(picture)), "format": name})
            rows[-1] |= {"width": picture.width, "height": picture.height, "label": label}
            noisy = centre + rng.normal(0, 0.5, 16)
            features.append(noisy / np.linalg.norm(noisy))
    return frame_of(rows), np.array(features, dtype=np.float32), images


def test_with_pixels_crops_and_mirror_images_are_found_without_they_are_not() -> None:
    frame, features, images = family()
    blind = near.apply(frame, features, Curate(), 0)
    out = near.apply(frame, features, Curate(), 0, look=looker(images))
    for step in (blind, out):  # no false pair
        grouped = step[step["dup_group"] >= 0].groupby("dup_group")["source"]
        assert (grouped.nunique() == 1).all()
    found = ~out["keep"] | (out["dup_group"] >= 0)
    assert found.groupby(out["format"]).mean().min() >= 0.9
    assert blind[blind["format"] == "mirrored"]["dup_group"].max() == -1
    assert out["keep"].sum() <= 22


def test_a_mirror_image_with_another_label_is_no_copy() -> None:
    frame, features, images = family("left")
    frame.loc[frame["format"] == "mirrored", "label"] = "right"
    out = near.apply(frame, features, Curate(), 0, look=looker(images))
    assert (out.loc[out["format"] == "mirrored", "dup_group"] == -1).all()
    assert (out.loc[out["format"] == "jpeg", "dup_group"] >= 0).mean() > 0.9


def test_only_rows_in_doubt_are_looked_at() -> None:
    frame, features, images = family()
    seen: list[int] = []
    small = looker(images)

    def look(rows: np.ndarray) -> np.ndarray:
        seen.extend(rows.tolist())
        return small(rows)

    frame.loc[:4, ["keep", "reason"]] = [False, "quarantine"]
    near.apply(frame, features, Curate(), 0, look=look)
    assert len(seen) == len(set(seen))
    assert min(seen) > 4
    near.apply(frame[-1:], features[-1:], Curate(), 0, look=look)


@pytest.mark.parametrize(("cosine", "clean", "noisy"), [(0.65, 1, 1), (0.5, 1, 0), (0.35, 0, 0)])
def test_the_less_features_agree_the_more_pixels_count(
    cosine: float, clean: int, noisy: int
) -> None:
    image = drawing(np.random.default_rng(3)).resize((96, 96)).filter(ImageFilter.GaussianBlur(2))
    same = image.crop((3, 4, 93, 92))
    rng = np.random.default_rng(0)
    grain = np.asarray(same, np.float32) + rng.normal(0, 75, (same.height, same.width, 3))
    rough = Image.fromarray(grain.clip(0, 255).astype(np.uint8))
    cfg, turned = Curate(near_hamming=-1), np.array([cosine, (1 - cosine**2) ** 0.5])
    features = np.stack([np.array([1.0, 0.0]), turned]).astype(np.float32)
    for other, found, agrees in ((same, clean, (0.97, 1)), (rough, noisy, (0.86, 0.95))):
        pair = thumbs([image, other])
        low, high = agrees
        assert low < _pixels.agreement(pair[:1], pair[1:])[0] <= high
        frame = frame_of([{"phash": str(imagehash.phash(i))} for i in (image, other)])
        out = near.apply(frame, features, cfg, 0, look=lambda rows, p=pair: p[rows])
        assert (~out["keep"]).sum() == found


def test_a_forest_joins_what_the_pairs_joined() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 40, 400):
        pairs = 100 + rng.integers(0, 30, (count, 2))
        thin = _copies.forest(pairs)
        assert len(thin) <= max(29, 0) or len(thin) == count
        whole, less = (_copies.components(130, p).tolist() for p in (pairs, thin))
        assert whole == less
    dense = np.array([(i, j) for i in range(50) for j in range(i)])
    assert len(_copies.forest(dense)) == 49


# ---- cells -------------------------------------------------------------------------------------


def crowd(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around Zipf-like directions; the second half of the last tenth are near copies."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 24))
    weight = 1 / np.arange(1, 51)
    x = centres[rng.choice(50, count, p=weight / weight.sum())] + 0.6 * rng.normal(size=(count, 24))
    copied = rng.choice(count // 2, count // 10, replace=False)
    x[-len(copied) :] = x[copied] + 0.2 * rng.normal(size=(len(copied), 24))
    return _vectors.normalise(x), np.stack([copied, np.arange(count - len(copied), count)], axis=1)


@pytest.mark.parametrize("spherical", [True, False])
def test_the_nearest_centres_are_those_of_scikit_learn(
    spherical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_vectors, "SEARCHED", 64)
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(300, 12)), rng.normal(size=(40, 12))
    if spherical:  # of unit rows the largest inner product is the smallest cosine distance
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    search = NearestNeighbors(n_neighbors=3, metric="cosine" if spherical else "euclidean")
    want = search.fit(centres).kneighbors(points, return_distance=False)
    x, c = points.astype(np.float32), centres.astype(np.float32)
    np.testing.assert_array_equal(_vectors.nearest(x, c, 3, spherical), want)
    np.testing.assert_array_equal(_vectors.assign(x, c, spherical), want[:, 0])


def test_copies_share_a_cell_and_no_cell_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cells, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(_cells, "CELL", 100)
    unit, copies = crowd(6000)
    found = list(_cells.cells(unit, 0))
    assert len(found) > 40
    assert max(len(c) for c in found) < 1000
    homes = [set() for _ in unit]
    for number, cell in enumerate(found):
        assert (np.diff(cell) > 0).all()
        for row in cell:
            homes[row].add(number)
    assert {len(h) for h in homes} <= {1, 2, 3, 4}  # crowded cells are divided
    shared = [bool(homes[a] & homes[b]) for a, b in copies]
    assert np.mean(shared) > 0.99
    again = list(_cells.cells(unit, 0))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_identical_rows_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    blocks = _copies._blocks

    def counted(cell: np.ndarray, side: Any) -> Any:
        sizes.append(len(cell))
        return blocks(cell, side)

    monkeypatch.setattr(_copies, "_blocks", counted)
    frame = frame_of([{"phash": "00ff00ff00ff00ff"} for _ in range(900)])
    out = near.apply(frame, np.ones((900, 4), dtype=np.float32), Curate(), 0)
    assert sizes == [1]
    assert out["keep"].sum() == 1
    assert (out["dup_group"] == 0).all()


# ---- leak --------------------------------------------------------------------------------------


def straddling() -> tuple[pd.DataFrame, np.ndarray, list[Image.Image]]:
    """The family with each drawing in training and its edits in test, but for the last ten."""
    frame, features, images = family()
    own = frame["format"] == "own"
    frame["split"] = np.where(own, "train", "test")
    frame.loc[frame.index >= 50, "split"] = "train"
    return frame, features, images


def test_training_copies_of_test_images_go_and_no_test_image_does() -> None:
    frame, features, images = straddling()
    before = frame.copy()
    out = leak.apply(frame, features, Curate(), 0, look=looker(images))
    assert frame.equals(before)
    lost = out[~out["keep"]]
    assert set(lost.index) == set(range(0, 50, 5))
    assert (lost["reason"] == "leak").all()
    assert (lost["detail"] == "copy of a test image").all()
    named = out.set_index("sha256").loc[lost["dup_of"]]
    assert (named["split"] == "test").all()
    assert named["source"].tolist() == lost["source"].tolist()
    assert (out["dup_group"] == frame["dup_group"]).all()  # the split does not move


def test_equal_bytes_leak_whatever_features_say_and_dropped_rows_do_not() -> None:
    rows = [
        {"sha256": "a", "split": "train", "phash": "ffff0000ffff0000"},
        {"sha256": "a", "split": "test", "phash": "ffff0000ffff0000"},
        {"sha256": "b", "split": "train", "phash": "00ff00ff00ff00ff"},
        {"sha256": "b", "split": "test", "keep": False, "phash": "00ff00ff00ff00ff"},
        {"sha256": "c", "split": "test", "phash": "0f0f0f0f0f0f0f0f"},
    ]
    out = leak.apply(frame_of(rows), np.eye(5, dtype=np.float32), Curate(), 0)
    assert out["keep"].tolist() == [False, True, True, False, True]
    assert out["detail"].tolist()[0] == "same bytes as a test image"
    assert out["dup_of"].tolist()[0] == "a"


def test_leak_limits_are_looser_than_those_of_near() -> None:
    rows = [{"phash": "0" * 16}, {"phash": f"{2**6 - 1:016x}", "split": "test"}]
    frame, features = frame_of(rows), np.ones((2, 4), dtype=np.float32)
    assert near.apply(frame, features, Curate(), 0)["keep"].all()
    assert leak.apply(frame, features, Curate(), 0)["keep"].tolist() == [False, True]


def test_without_a_test_side_nothing_leaks() -> None:
    frame = frame_of([{"phash": "0" * 16}] * 3)
    assert leak.apply(frame, np.ones((3, 4), dtype=np.float32), Curate(), 0)["keep"].all()


def test_trace_says_which_step_dropped_an_image_why_and_for_which(tmp_path: Any) -> None:
    from ssl_core.commands import trace
    from ssl_core.config import Paths

    frame, features, images = straddling()
    frame["dup_of"] = frame["dup_of"].astype("str")
    out = leak.apply(frame, features, Curate(), 0, look=looker(images))
    paths = Paths(tmp_path)
    paths.curated.mkdir(parents=True)
    paths.manifest.mkdir(parents=True)
    out.to_parquet(paths.curated / "curated.parquet", index=False)
    out[["path", "sha256", "label", "group", "source"]].to_parquet(
        paths.manifest / "manifest.parquet", index=False
    )
    lost = out[~out["keep"]].iloc[0]
    found = trace.trace(paths, str(lost["path"]))
    assert found["curation"][0]["dup_of"] == lost["dup_of"]
    line = f"dropped (leak: copy of a test image), for {lost['dup_of'][:12]}, split train"
    assert line in trace.text(found)


def test_pictures_are_ruled_out_by_the_same_rule_as_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (6, 3, 24, 24))
    faint = 200 + rng.integers(0, 3, (2, 3, 24, 24))  # hardly any contrast
    mixed = [base * w + rng.integers(0, 256, base.shape) * (1 - w) for w in (1.0, 0.7, 0.5, 0.3)]
    pictures = np.concatenate([*mixed, faint, faint]).astype(np.uint8)
    a, b = (x.ravel() for x in np.indices((len(pictures), len(pictures))))
    turned = rng.random(len(a)) < 0.3
    second = _pixels.mirrored(pictures[b], turned)
    floats = (torch.from_numpy(x.astype(np.float64) / 255) for x in (pictures[a], second))
    exact = _pixels._as_they_lie(*floats).numpy() > _pixels.HOPELESS[0]
    found = _pixels.hopeful(pictures, a, b, turned)
    assert not (exact & ~found).any()
    assert (found & ~exact).sum() <= 1
    assert 0.05 < exact.mean() < 0.5
