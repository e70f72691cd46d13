"""Generators against closed forms, the filter on planted candidates, and who is never tested on."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ssl_core import embed, plugins, shards
from ssl_core.artifacts import read_json
from ssl_core.commands import forget, trace
from ssl_core.config import Config, Curate, Paths, Synthesise, load
from ssl_core.curation._vectors import phash_bits
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter
from ssl_core.reader import ShardReader
from ssl_core.stages import _subjects, curate, ingest, seed_embed, shard, synthesise, validate
from ssl_core.stages import embed as embed_stage
from ssl_core.synth import _filter, composite, diffusers_model, flow
from ssl_core.synth._pool import Pool, checked
from ssl_core.synth._unet import UNet

MEAN, STD = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
TINY_FLOW = {"side": 16, "width": 16, "steps": 3, "batch_size": 4, "solver_steps": 2}
TABLE = {"composite": {}, "flow": TINY_FLOW, "diffusers_model": {"model": "here", "side": 16}}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the flow: formulas ------------------------------------------------------------------------


def test_the_target_is_the_derivative_of_the_path() -> None:
    x0, x1 = (torch.randn(5, 3, 4, 4, generator=rng(i), dtype=torch.float64) for i in (0, 1))
    for time in (0.1, 0.5, 0.9):
        t, step = torch.full((5,), time, dtype=torch.float64), 1e-6
        rise = (flow.point(x0, x1, t + step) - flow.point(x0, x1, t - step)) / (2 * step)
        torch.testing.assert_close(flow.target(x0, x1), rise, atol=1e-8, rtol=0)
    assert torch.equal(flow.point(x0, x1, torch.zeros(5)), x0)
    assert torch.equal(flow.point(x0, x1, torch.ones(5)), x1)


def best_field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x1 - x0 | x_t] for x1 ~ N(MEAN, STD^2) and x0 ~ N(0, 1), by conditioning of Gaussians."""
    t = t[:, None]
    variance = (1 - t) ** 2 + t**2 * STD**2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def test_the_exact_field_carries_noise_to_the_gaussian() -> None:
    """Its flow is known: x0 goes to MEAN + STD x0."""
    x0 = torch.randn(200, 2, generator=rng())
    torch.testing.assert_close(
        flow.integrate(best_field, x0, 200), MEAN + STD * x0, atol=2e-3, rtol=0
    )
    coarse, fine = (
        (flow.integrate(best_field, x0, n) - MEAN - STD * x0).abs().max() for n in (8, 16)
    )
    assert coarse / fine > 2.5  # Heun's error falls with the square of the step


def test_training_by_the_loss_reaches_the_moments() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU()
    ).append(torch.nn.Linear(64, 2))

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net(torch.cat([x, t[:, None]], 1))

    optimiser, own = torch.optim.Adam(net.parameters(), 5e-3), rng(1)
    for step in range(1500):
        x1 = MEAN + STD * torch.randn(256, 2, generator=own)
        value = flow.loss(field, x1, own)
        optimiser.zero_grad()
        value.backward()
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 1500)
        optimiser.step()
    drawn = flow.integrate(field, torch.randn(4000, 2, generator=own), 30)
    torch.testing.assert_close(drawn.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), STD, atol=0.12, rtol=0)
    x, t = torch.randn(500, 2, generator=own), torch.rand(500, generator=own)
    at = t[:, None] * MEAN + ((1 - t[:, None]) ** 2 + (t[:, None] * STD) ** 2).sqrt() * x
    off = (field(at, t) - best_field(at, t)).pow(2).mean()
    assert off < 0.05 * best_field(at, t).pow(2).mean()


def test_guidance_extrapolates_from_no_class() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return x + label[:, None].float()

    x, t, label = torch.zeros(2, 3), torch.zeros(2), torch.tensor([0, 1])
    for strength in (0.0, 1.0, 2.5):
        found = flow.guided(Model(), label, 4, strength)(x, t)
        expected = 4 + strength * (label[:, None].float() - 4)
        torch.testing.assert_close(found, expected.expand(2, 3))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_by_a_power_of_their_size(power: float) -> None:
    labels = np.array([0] * 16 + [1] * 4 + [-1])
    chance = flow.weights(labels, power).numpy()
    share = np.array([16.0, 4.0, 1.0]) ** power
    share /= share.sum()
    assert [chance[labels == i].sum() for i in (0, 1, -1)] == pytest.approx(list(share))


def test_the_network_starts_at_zero_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    net = UNet(3, 16, 2)
    x, t, label = torch.randn(2, 3, 16, 16), torch.rand(2), torch.tensor([0, 3])
    assert net(x, t, label).abs().max() == 0
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn(p.shape)
    net(x, t, label).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not torch.equal(net(x, t, label)[0], net(x, t, torch.tensor([1, 3]))[0])


# ---- the generators ----------------------------------------------------------------------------


def disc(colour: tuple[int, int, int], ground: int = 240, side: int = 32) -> np.ndarray:
    """A disc on a plain ground."""
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), ground, np.uint8)
    image[(y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2] = colour
    return image


def pool() -> Pool:
    pixels = [disc((200, 30 + 5 * i, 30)) for i in range(6)] + [disc((20, 40, 220))] * 2
    return Pool(np.stack(pixels), np.array([0, 0, 0, 0, 0, -1, 1, 1]), ("red", "blue"))


class FakePipeline:
    """What diffusers gives back."""

    asked: ClassVar[list[str]] = []

    @classmethod
    def from_pretrained(cls, name: str, **words: object) -> FakePipeline:
        assert words["local_files_only"]
        assert words["use_safetensors"]
        if name != "here":
            raise OSError("no such folder")
        return cls()

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def to(self, device: str) -> FakePipeline:
        return self

    def __call__(self, prompts: list[str], **words: object) -> types.SimpleNamespace:
        self.asked.extend(prompts)
        size = (words["width"], words["height"])
        return types.SimpleNamespace(images=[Image.new("RGB", size, (9, 9, 9)) for _ in prompts])


@pytest.fixture
def diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(DiffusionPipeline=FakePipeline)
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    monkeypatch.setattr(FakePipeline, "asked", [])


def made_by(name: str, tmp_path: Path, seed: int = 0) -> list:
    module = plugins.load("synth", name)
    options = checked(module.Options, TABLE[name], name)
    with Reporter("test") as report:
        return list(module.generate(pool(), {0: 2, 1: 3}, options, seed, tmp_path, report))


def test_every_generator_has_a_row() -> None:
    assert sorted(TABLE) == plugins.names("synth")


@pytest.mark.parametrize("name", sorted(TABLE))
def test_generators_give_what_is_wanted_the_same_each_time(
    name: str, tmp_path: Path, diffusers: None
) -> None:
    first, second = made_by(name, tmp_path / "a"), made_by(name, tmp_path / "b")
    assert [m.label for m in first] == [0, 0, 1, 1, 1]
    for a, b in zip(first, second, strict=True):
        assert a.pixels.dtype == np.uint8
        assert a.pixels.shape[2] == 3
        assert np.array_equal(a.pixels, b.pixels)
        assert a.parents == b.parents
    if name != "diffusers_model":
        other = made_by(name, tmp_path / "c", seed=1)
        assert any(
            not np.array_equal(a.pixels, b.pixels) for a, b in zip(first, other, strict=True)
        )


def test_a_trained_flow_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").mkdir()
    first = made_by("flow", tmp_path / "w")
    monkeypatch.setattr(flow, "train", lambda *words: pytest.fail("trained again"))
    second = made_by("flow", tmp_path / "w")
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    monkeypatch.setitem(TABLE, "flow", TINY_FLOW | {"steps": 4})
    with pytest.raises(pytest.fail.Exception):
        made_by("flow", tmp_path / "w")


def test_a_flow_overfits_a_flat_colour(tmp_path: Path) -> None:
    """A set of one colour per class: what is drawn has the colour of the class that was asked."""
    pixels = np.stack([np.full((16, 16, 3), c, np.uint8) for c in (40, 210)] * 8)
    own = Pool(pixels, np.array([0, 1] * 8), ("dark", "light"))
    options = flow.Options(
        **TINY_FLOW | {"steps": 250, "batch_size": 16, "lr": 3e-3, "ema": 0.98, "solver_steps": 8}
    )
    with Reporter("test") as report:
        made = list(flow.generate(own, {0: 6, 1: 6}, options, 0, tmp_path, report))
    level = [np.mean([m.pixels.mean() for m in made if m.label == label]) for label in (0, 1)]
    assert level[0] < 90
    assert level[1] > 160


def test_otsu_is_the_best_threshold() -> None:
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(20, 5, 300), draw.normal(90, 10, 100)])

    def between(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    found = composite.otsu(values)
    edges = np.histogram(values, 256)[1][1:-1]
    assert between(found) == pytest.approx(max(between(e) for e in edges), rel=0.01)


def test_the_object_is_found_and_pasted_on_the_other_ground() -> None:
    front, back = disc((200, 20, 20)), disc((20, 20, 200), ground=120)
    mask = composite.outline(front)
    assert mask is not None
    truth = (front != 240).any(2)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    made = composite.paste(front, back, composite.Options(), np.random.default_rng(0))
    assert made is not None
    red = (made[..., 0] > 180) & (made[..., 2] < 60)
    blue = made[..., 2].astype(int) - made[..., 0] > 100
    assert 0.04 < red.mean() < 0.4  # the object came along
    assert not blue.any()  # and that of the other did not
    assert (np.abs(made[:2].astype(int) - 120) < 5).all()  # its ground did
    assert composite.outline(np.full((32, 32, 3), 7, np.uint8)) is None


def test_mixtures_are_made_of_both() -> None:
    one, two = np.full((16, 16, 3), 10, np.uint8), np.full((16, 16, 3), 210, np.uint8)
    draw = np.random.default_rng(0)
    for _ in range(20):
        cut = composite.cutmix(one, two, draw)
        assert set(np.unique(cut)) == {10, 210}
        assert 0.2 <= (cut == 210).mean() <= 0.55
        mixed = np.unique(composite.mixup(one, two, draw))
        assert len(mixed) == 1
        assert 10 + 0.29 * 200 < mixed[0] < 10 + 0.71 * 200


def test_diffusers_is_asked_by_class_and_only_what_lies_here(
    tmp_path: Path, diffusers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by("diffusers_model", tmp_path)
    assert FakePipeline.asked == ["a photo of red"] * 2 + ["a photo of blue"] * 3
    assert diffusers_model.prompt(diffusers_model.Options(), "food/food_fruit") == (
        "a photo of food food fruit"
    )
    with pytest.raises(HeadwaterError, match="cannot be loaded"):
        diffusers_model.pipeline(diffusers_model.Options(model="elsewhere"))
    with pytest.raises(HeadwaterError, match="is empty"):
        diffusers_model.pipeline(diffusers_model.Options())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(HeadwaterError, match="needs diffusers"):
        diffusers_model.pipeline(diffusers_model.Options(model="here"))


# ---- the filter --------------------------------------------------------------------------------

CLASSES, PER_CLASS, WIDTH = 12, 8, 32


def world(seed: int = 0) -> tuple[_filter.Real, np.ndarray]:
    """Twelve well separated classes on the sphere, and their centres; pHashes are all different."""
    draw = np.random.default_rng(seed)
    centres = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))[0][:CLASSES]
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    features = near(centres[labels], draw)
    names = np.array([f"r{i}" for i in range(len(labels))])
    rows = pd.DataFrame({"key": names, "group": names, "source": "s"})
    rows["label"] = [f"c{label:02d}" for label in labels]
    train = embed.with_features(embed.frame(rows, [f"c{i:02d}" for i in range(CLASSES)]), features)
    # The last row of ``features`` is an image of the test split.
    everything = np.concatenate([features, near(centres[:1], draw)])
    return _filter.Real(everything, bits(len(everything), draw), train), centres


def near(centres: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return (centres + 0.1 * draw.normal(size=centres.shape)).astype(np.float32)


def bits(count: int, draw: np.random.Generator) -> np.ndarray:
    return draw.integers(0, 2**63, count, dtype=np.uint64)


def reasons(features: np.ndarray, labels: list[int], hashes: np.ndarray | None = None) -> list[str]:
    real, _ = world()
    own = bits(len(features), np.random.default_rng(9)) if hashes is None else hashes
    found = _filter.Candidates(features.astype(np.float32), own, np.array(labels))
    table = _filter.judge(found, real, Synthesise(unusual=0.05), Curate())
    return table["reason"].tolist()


def test_the_filter_accepts_what_is_new_and_of_its_class() -> None:
    _, centres = world()
    fresh = near(centres, np.random.default_rng(5))
    assert reasons(fresh, list(range(CLASSES))).count("") >= CLASSES - 2


def test_the_filter_rejects_copies_of_any_real_image() -> None:
    real, _ = world()
    rows = [0, 13, len(real.features) - 1]  # the last is of the test split
    labels = [0, 1, 0]
    assert reasons(real.features[rows], labels) == ["copy"] * 3  # by features alone
    changed = near(real.features[rows], np.random.default_rng(1))
    cosine = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(changed, real.features[rows], strict=True)
    ]
    assert all(0.78 < c < 0.97 for c in cosine)
    assert reasons(changed, labels, real.bits[rows] ^ np.uint64(5)) == ["copy"] * 3  # by both
    assert "copy" not in reasons(changed, labels)  # likeness alone is no copy


def test_the_filter_rejects_wrong_classes_and_strangers() -> None:
    _, centres = world()
    draw = np.random.default_rng(7)
    swapped = near(centres, draw)
    found = reasons(swapped, [(i + 1) % CLASSES for i in range(CLASSES)])
    assert set(found) <= {"far", "other-class"}
    halfway = 0.72 * centres[0] + 0.69 * centres[1]
    table = reasons(np.stack([halfway, -centres[0]]), [1, 0])
    assert all(table)


def test_the_probe_names_a_rare_class_as_readily_as_a_common_one() -> None:
    real, centres = world()
    keep = np.array([(i % PER_CLASS < 2) or i < PER_CLASS for i in range(CLASSES * PER_CLASS)])
    few = embed.rows(real.train, keep)  # class 0 has eight images, the others two
    fresh = near(centres, np.random.default_rng(3))
    found = _filter.Candidates(fresh, bits(CLASSES, np.random.default_rng(1)), np.arange(CLASSES))
    assert (_filter.ranks(found, few) == 0).mean() > 0.8


def test_likeness_is_brute_force() -> None:
    real, _ = world()
    unit = real.train.features / np.linalg.norm(real.train.features, axis=1, keepdims=True)
    found = _filter.likeness(unit, real.train.labels, real.train, own=True)
    for i in range(0, len(unit), 7):
        same = [j for j in range(len(unit)) if j != i and real.train.labels[j] == i // PER_CLASS]
        assert found[i] == pytest.approx(max(float(unit[i] @ unit[j]) for j in same), abs=1e-5)


def test_generators_take_turns_and_no_more_than_wanted_is_kept() -> None:
    table = pd.DataFrame(
        {
            "reason": ["", "", "", "", "far", "", ""],
            "label": [0, 0, 0, 0, 0, 1, 1],
            "generator": ["b", "b", "b", "a", "a", "a", "a"],
        }
    )
    features = np.eye(7, 8, dtype=np.float32)
    features[6] = features[5]
    found = _filter.choose(table, features, {0: 3, 1: 2}, 0.97)
    assert found["reason"].tolist() == ["", "", "enough", "", "far", "", "repeat"]


# ---- in the chain ------------------------------------------------------------------------------

ON = {
    "synthesise.generators": ["composite"],
    "synthesise.target": 30,
    "synthesise.side": 32,
    "synthesise.guesses": 1,
    "data.min_side": 16,
}


def chain(project: Path, changes: dict, last: object = shard, rare: bool = True) -> Config:
    """Up to the shards. Flowers are rare: 24 of them."""
    for file in sorted((project / "images/flower").iterdir())[24:] if rare else ():
        file.unlink()
    cfg, paths = load(project / "params.yaml", changes), Paths(project)
    for stage in (ingest, validate, seed_embed, curate, shard):
        stage.run(cfg, paths)
        if stage is last:
            break
    return cfg


def test_accepted_images_are_marked_in_every_product_and_trained_on_only(project: Path) -> None:
    cfg, paths = chain(project, ON), Paths(project)
    frame = pd.read_parquet(paths.curated / "curated.parquet")
    made = frame[shards.synthetic(frame["source"])]
    table = pd.read_parquet(paths.curated / "synthetic.parquet")
    assert len(made) == (table["reason"] == "").sum()
    assert len(made) > 3
    assert set(made["source"]) == {"synthetic:composite"}
    assert set(made["split"]) == {"train"}
    assert set(made["label"]) == {"flower"}
    counts = read_json(paths.curated / "lineage.json")["counts"]["synthetic"]
    assert sum(counts.values()) == len(table)
    assert counts["composite: accepted"] == len(made)
    index = pd.read_parquet(paths.shards / "index.parquet")
    mine = index[shards.synthetic(index["source"])]
    assert set(mine["key"]) == set(made["sha256"])
    assert set(mine["split"]) == {"train"}
    assert "synthetic.tar::" in made["path"].iloc[0]
    found = trace.trace(paths, made["sha256"].iloc[0])
    assert found["verdict"] == "kept for training, synthetic:composite"
    assert found["shard"]
    # The same again: equal bytes.
    before = {p.name: p.read_bytes() for p in paths.curated.iterdir()}
    curate.run(cfg, paths)
    assert {p.name: p.read_bytes() for p in paths.curated.iterdir()} == before


def test_embeddings_hold_real_images_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, paths = chain(project, ON), Paths(project)
    meta = {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    paths.pretrain.mkdir(parents=True)
    for name in ("encoder.json", "lineage.json"):
        (paths.pretrain / name).write_text(f"{meta}".replace("'", '"'))
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    encoder.embed_dim = 4  # type: ignore[assignment]
    monkeypatch.setattr(embed_stage.models, "load", lambda folder: encoder)
    monkeypatch.setattr(embed_stage, "made_here", lambda cfg: ["pixels"])
    embed_stage.run(cfg, paths)
    table = pd.read_parquet(paths.embeddings / "index.parquet")
    index = pd.read_parquet(paths.shards / "index.parquet")
    assert not shards.synthetic(table["source"]).any()
    assert len(table) == (~shards.synthetic(index["source"])).sum() < len(index)
    for name in ("features", "pixels"):
        assert len(np.load(paths.embeddings / f"{name}.npy")) == len(table)


def test_analyses_look_at_real_images_only(project: Path) -> None:
    cfg, paths = chain(project, ON), Paths(project)
    index = pd.read_parquet(paths.shards / "index.parquet")
    real = index[~shards.synthetic(index["source"])]
    with Reporter("test") as report:
        seen, _ = _subjects.subject("seed", cfg, paths, report)
    assert seen.rows.sha256.tolist() == real["key"].tolist()
    assert len(real) < len(index)
    whole = ShardReader(paths.shards, None, seen.source.side)
    some = np.array([len(real) - 1, 0])
    assert torch.equal(seen.source.take(some), whole.take(real.index.to_numpy()[some]))
    again = embed.compute(seen.encoder, whole, *seen.colour)[real.index]
    np.testing.assert_array_equal(seen.rows.features, again)


def test_what_comes_marked_is_kept_out_of_the_test_split(project: Path) -> None:
    rows = ["path,label,source"]
    for file in sorted((project / "images").rglob("*.png")):
        drawn = "synthetic:other" if int(file.stem) % 3 == 0 else "camera"
        rows.append(f"{file.relative_to(project / 'images')},{file.parent.name},{drawn}")
    (project / "images/metadata.csv").write_text("\n".join(rows))
    chain(project, {}, rare=False)
    frame = pd.read_parquet(Paths(project).curated / "curated.parquet")
    marked = frame[shards.synthetic(frame["source"])]
    assert {"train", "test"} == set(marked["split"])
    assert not marked.loc[marked["split"] == "test", "keep"].any()
    assert "synthetic" in set(marked["reason"])
    index = pd.read_parquet(Paths(project).shards / "index.parquet")
    assert not shards.synthetic(index.loc[index["split"] == "test", "source"]).any()


def test_shard_refuses_a_synthetic_image_in_the_test_split() -> None:
    row = {"keep": True, "split": "test", "sha256": "a", "path": "x::y", "source": "synthetic:flow"}
    frame = pd.DataFrame([row])
    with pytest.raises(HeadwaterError, match="x::y: is synthetic and in the test split"):
        shard.order(frame)
    assert len(shard.order(frame.assign(split="train"))) == 1


def test_off_is_off(project: Path) -> None:
    chain(project, {}, last=curate)
    assert sorted(p.name for p in Paths(project).curated.iterdir()) == [
        "curated.parquet",
        "lineage.json",
        "summary.json",
    ]


def test_bad_settings_are_named(project: Path) -> None:
    for changes, words in (
        ({"synthesise.generators": ["flo"]}, r"did you mean 'flow'"),
        (ON | {"synthesise.options": {"composite": {"turns": 3}}}, r"composite.turns.*known here"),
        (ON | {"synthesise.options": {"flow": {}}}, r"options.flow: are of a generator"),
        (ON | {"data.channels": 5}, r"data.channels = 5"),
    ):
        with pytest.raises(HeadwaterError, match=words):
            synthesise.options(load(project / "params.yaml", changes))


def test_forgetting_takes_what_was_composed_of_it_along(project: Path) -> None:
    chain(project, ON)
    paths = Paths()
    table = pd.read_parquet(paths.curated / "synthetic.parquet")
    parents = table.loc[table["reason"] == "", "parents"].str.split()
    sha = parents.explode().value_counts().index[0]
    children = {
        k for k, p in zip(table["sha256"], table["parents"].str.split(), strict=True) if sha in p
    }
    assert forget.composed(paths, sha) == children
    forget.forget(paths, sha)
    for file, column in (
        (paths.curated / "curated.parquet", "sha256"),
        (paths.curated / "synthetic.parquet", "sha256"),
        (paths.shards / "index.parquet", "key"),
    ):
        assert not pd.read_parquet(file)[column].isin({sha, *children}).any()
    left = pd.read_parquet(paths.curated / "curated.parquet")
    for row in left[shards.synthetic(left["source"])].itertuples():
        assert shard.make_sample(row, Path(), 32).key == row.sha256  # the tar still gives the rest
    assert phash_bits(left["phash"]).dtype == np.uint64
