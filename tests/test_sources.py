"""Each kind of source against planted files with known labels and known troubles."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_core import images, plugins, sources
from ssl_core import s3 as s3_api
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.sources import Item, webdataset
from ssl_core.sources import s3 as source_s3
from ssl_core.stages import curate, ingest, seed_embed, shard, validate


def picture(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def plant(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))


def listed(location: str, root: Path) -> dict[str, Item]:
    items = list(sources.listing(location, root))
    assert len({i.ref for i in items}) == len(items)
    return {i.ref: i for i in items}


def labels(found: dict[str, Item]) -> dict[str, str | None]:
    return {ref: i.label for ref, i in found.items() if i.reject is None}


def reasons(found: dict[str, Item]) -> dict[str, str]:
    return {ref: i.reject.reason for ref, i in found.items() if i.reject}


# ---- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("data/raw", "folder"),
        ("photos.d", "folder"),
        ("m.csv", "table"),
        ("m.parquet", "table"),
        ("x.tar", "webdataset"),
        ("x-{000..003}.tar", "webdataset"),
        ("s3://bucket/a.csv", "s3"),
        ("s3://bucket", "s3"),
        ("kind.tar", "folder"),
        ("http://host/x", None),
        ("x.zip", None),
    ],
)
def test_each_location_is_claimed_by_one_kind(
    tmp_path: Path, location: str, kind: str | None
) -> None:
    (tmp_path / "photos.d").mkdir()
    (tmp_path / "kind.tar").mkdir()
    kinds = {name: plugins.load("sources", name) for name in plugins.names("sources")}
    claims = [name for name, module in kinds.items() if module.matches(location, tmp_path)]
    assert claims == ([kind] if kind else [])
    if kind is None:
        with pytest.raises(HeadwaterError, match="folder, s3, table, webdataset"):
            sources.listing(location, tmp_path)


# ---- folder ------------------------------------------------------------------------------------


def test_a_folders_label_is_the_path_of_its_parent(tmp_path: Path) -> None:
    plant(tmp_path / "set", "cat/1.png", "cat/sub/2.PNG", "dog/日本 é.png", "top.png", ".hid/x.png")
    for name in (".gitkeep", "cat/.DS_Store", "cat.dvc"):
        (tmp_path / "set" / name).write_text("")
    (tmp_path / "set/notes.txt").write_text("hello")
    found = listed("set", tmp_path)
    assert labels(found) == {
        "set/cat/1.png": "cat",
        "set/cat/sub/2.PNG": "cat/sub",
        "set/dog/日本 é.png": "dog",
        "set/top.png": None,
        "set/notes.txt": None,
    }
    assert {i.source for i in found.values()} == {"set"}
    assert all(i.group is None and i.version for i in found.values())
    outside = listed(str(tmp_path / "set"), tmp_path / "elsewhere")
    assert sorted(outside) == sorted(str(tmp_path / ref) for ref in found)


def test_an_absent_folder_is_an_error_unless_it_is_a_default(tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="source 'nowhere': is not there"):
        listed("nowhere", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadwaterError, match="is not a folder"):
        listed("file", tmp_path)
    assert listed("data/collected", tmp_path) == {}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/.gitkeep").write_text("")
    assert listed("bare", tmp_path) == {}


def test_metadata_describes_its_folder_and_no_value_but_blank_is_null(tmp_path: Path) -> None:
    plant(tmp_path / "set", "a/1.png", "a/2.png", "a/3.png", "b.png")
    (tmp_path / "set/metadata.csv").write_bytes(
        "path,label,group,source,captured_at,extra\r\n"
        'a/1.png,"NA, not null",g1,camera,2026-01-02,9\r\n'
        "a/2.png,null,,,\r\n"
        "./a//3.png,,\r\n".encode("utf-8-sig")
    )
    found = listed("set", tmp_path)
    assert labels(found) == {
        "set/a/1.png": "NA, not null",
        "set/a/2.png": "null",
        "set/a/3.png": None,
        "set/b.png": None,
    }
    one = found["set/a/1.png"]
    assert (one.group, one.source, one.captured_at) == ("g1", "camera", "2026-01-02")
    two = found["set/a/2.png"]
    assert (two.group, two.source, two.captured_at) == (None, "set", None)


def test_every_subfolder_may_have_its_own_metadata(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "all/march/2026-03-01/x.png",
        "all/march/2026-03-01/y.png",
        "all/april/x.png",
        "all/plain/z.png",
    )
    (tmp_path / "all/march/metadata.csv").write_text(
        "path,label,source\n2026-03-01/x.png,cat,deployment\n2026-03-01/gone.png,cat,d\n"
    )
    (tmp_path / "all/april/metadata.csv").write_text("path,label\nx.png,dog\n")
    found = listed("all", tmp_path)
    assert labels(found) == {
        "all/march/2026-03-01/x.png": "cat",
        "all/march/2026-03-01/y.png": None,
        "all/april/x.png": "dog",
        "all/plain/z.png": "plain",
    }
    assert found["all/march/2026-03-01/x.png"].source == "deployment"
    assert reasons(found) == {"all/march/2026-03-01/gone.png": "missing-file"}


def test_the_deeper_table_speaks_for_its_files(tmp_path: Path) -> None:
    plant(tmp_path / "set", "b/x.png", "b/y.png")
    (tmp_path / "set/metadata.csv").write_text("path,label\nb/x.png,outer\nb/y.png,outer\n")
    (tmp_path / "set/b/metadata.csv").write_text("path,label\nx.png,inner\n")
    assert labels(listed("set", tmp_path)) == {"set/b/x.png": "inner", "set/b/y.png": "outer"}


def test_names_match_however_their_accents_are_spelled(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(f, "é.png") for f in ("NFC", "NFD"))
    assert composed != split
    plant(tmp_path / "set", split)
    (tmp_path / "set/metadata.csv").write_text(f"path,label\n{composed},accent\n")
    assert labels(listed("set", tmp_path)) == {f"set/{split}": "accent"}


def test_metadata_that_climbs_repeats_or_names_nothing_is_listed(tmp_path: Path) -> None:
    plant(tmp_path, "secret.png", "set/x.png")
    (tmp_path / "set/metadata.csv").write_text(
        "path,label\nx.png,first\n../secret.png,s\n/etc/passwd,s\n,blank\ngone.png,g\n"
    )
    items = list(sources.listing("set", tmp_path))
    assert labels({i.ref: i for i in items}) == {"set/x.png": "first"}
    refused = [i.reject.reason for i in items if i.reject]
    assert sorted(refused) == ["missing-file", "unsafe-path", "unsafe-path", "unsafe-path"]
    (tmp_path / "set/metadata.csv").write_text("path,label\nx.png,first\nx.png,second\n")
    items = list(sources.listing("set", tmp_path))
    assert [(i.label, i.reject and i.reject.reason) for i in items] == [
        ("first", None),
        (None, "duplicate-key"),
    ]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"name,label\nx,y\n", "has no column 'path'"),
        (b"", "has no column 'path'"),
        (b"path,label\nx.png,\xff\xfe\n", "cannot be read"),
        (b'path\n"x', "cannot be read"),
    ],
)
def test_an_unusable_table_stops_the_work(tmp_path: Path, data: bytes, rule: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/metadata.csv").write_bytes(data)
    (tmp_path / "m.csv").write_bytes(data)
    for location in ("set", "m.csv"):
        with pytest.raises(HeadwaterError, match=rule):
            listed(location, tmp_path)


def test_links_are_judged_and_never_walked(tmp_path: Path) -> None:
    plant(tmp_path, "set/cat/1.png", "set/dog/2.png", "other/3.png")
    links = {
        "set/cat/loop": "..",
        "set/self": "self",
        "set/out": "../other",
        "set/out.png": "../other/3.png",
        "set/dead.png": "nothing",
        "set/again": "dog",
        "set/cat/alias.png": "../dog/2.png",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    found = listed("set", tmp_path)
    assert labels(found) == {
        "set/cat/1.png": "cat",
        "set/dog/2.png": "dog",
        "set/cat/alias.png": "cat",
    }
    assert reasons(found) == {
        "set/cat/loop": "symlink-loop",
        "set/self": "symlink-loop",
        "set/out": "unsafe-path",
        "set/out.png": "unsafe-path",
        "set/dead.png": "missing-file",
        "set/again": "duplicate-key",
    }
    (tmp_path / "door").symlink_to("set")  # the source itself may be a link
    assert labels(listed("door", tmp_path)).keys() >= {"door/cat/1.png", "door/dog/2.png"}


def test_names_that_cannot_be_written_down_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "set/a.tar::b.png")
    (tmp_path / "set" / os.fsdecode(b"\xff.png")).write_bytes(picture())
    assert reasons(listed("set", tmp_path)) == {
        "set/a.tar::b.png": "unsafe-path",
        "set/\\udcff.png": "unsafe-path",
    }


# ---- table -------------------------------------------------------------------------------------


def test_csv_and_parquet_manifests_name_the_same_images(tmp_path: Path) -> None:
    plant(tmp_path, "m/img/1.png", "m/img/2.png", "far.png")
    (tmp_path / "m/link.png").symlink_to("../far.png")
    rows: list[dict[str, Any]] = [
        {"path": "img/1.png", "label": "cat", "group": "g"},
        {"path": "img/2.png", "label": None},
        {"path": str(tmp_path / "far.png"), "label": "far"},
        {"path": "../far.png", "label": "x"},
        {"path": "gone.png", "label": "x"},
        {"path": "s3://b/k.png", "label": "far"},
        {"path": "link.png", "label": "x"},
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "m/list.csv", index=False)
    frame.to_parquet(tmp_path / "m/list.parquet")
    for name in ("list.csv", "list.parquet"):
        found = listed(f"m/{name}", tmp_path)
        assert labels(found) == {
            "m/img/1.png": "cat",
            "m/img/2.png": None,
            "far.png": "far",
            "s3://b/k.png": "far",
        }
        assert reasons(found) == {
            "m/../far.png": "unsafe-path",
            "m/gone.png": "missing-file",
            "m/link.png": "unsafe-path",
        }
        assert found["m/img/1.png"].group == "g"
        assert {i.source for i in found.values() if not i.reject} == {"list"}


def test_parquet_values_become_plain_text(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png")
    table = pa.table(
        {
            "path": ["1.png", "2.png"],
            "label": [3.0, float("nan")],
            "group": [7, 8],
            "captured_at": [datetime(2026, 1, 2, 3, 4, 5), None],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    found = listed("m.parquet", tmp_path)
    assert labels(found) == {"1.png": "3", "2.png": None}
    assert [i.group for i in found.values()] == ["7", "8"]
    assert [i.captured_at for i in found.values()] == ["2026-01-02T03:04:05", None]


def test_a_missing_or_broken_manifest_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match=r"source 'm\.csv': is not there"):
        listed("m.csv", tmp_path)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(HeadwaterError, match="is not a Parquet file"):
        listed("m.parquet", tmp_path)
    pd.DataFrame({"file": ["x"]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(HeadwaterError, match="has no column 'path'"):
        listed("m.parquet", tmp_path)


# ---- WebDataset --------------------------------------------------------------------------------


def test_ranges_expand() -> None:
    assert webdataset.expand("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert len(webdataset.expand("{0..1}/b-{0..2}.tar")) == 6
    assert webdataset.expand("plain.tar") == ["plain.tar"]


def test_shards_of_the_webdataset_library_are_read(tmp_path: Path) -> None:
    from webdataset import ShardWriter

    pattern = str(tmp_path / "birds-%03d.tar")
    with ShardWriter(pattern, maxcount=3, verbose=0) as writer:
        for i in range(8):
            sample: dict[str, Any] = {"__key__": f"{i % 2}/s{i}", "png": picture(i)}
            if i == 5:
                sample["cls"] = 1
            elif i == 6:
                sample["txt"] = "naïve\n"
            elif i != 7:
                sample["json"] = {
                    "label": f"kind {i % 2}",
                    "group": i // 4,
                    "source": "lake",
                    "captured_at": "2026-05-01",
                }
            writer.write(sample)
    found = listed("birds-{000..002}.tar", tmp_path)
    assert len(found) == 8
    assert list(found)[4] == "birds-001.tar::0/s4.png"
    assert [i.label for i in found.values()] == [
        "kind 0",
        "kind 1",
        "kind 0",
        "kind 1",
        "kind 0",
        "1",
        "naïve",
        None,
    ]
    four, five = list(found.values())[4:6]
    assert (four.group, four.source, four.captured_at) == ("1", "lake", "2026-05-01")
    assert (five.group, five.source, five.captured_at) == (None, "birds", None)
    for i, ref in enumerate(found):
        assert images.read_bytes(ref, tmp_path) == picture(i)


def tar_of(path: Path, members: list[tuple[str, bytes]], **special: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in special.values():
            tar.addfile(info)


def test_a_hostile_tar_is_read_as_far_as_it_is_safe(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    tar_of(
        tmp_path / "x.tar",
        [
            ("ok.png", picture()),
            ("../up.png", picture()),
            ("/abs.png", picture()),
            ("ok.png", picture(1)),
            ("note.txt", b"alone"),
            ("bad.png", picture()),
            ("bad.json", b"{not json"),
            ("list.png", picture()),
            ("list.json", b"[1]"),
            ("odd.png", picture()),
            ("odd.json", json.dumps({"label": "\ud800"}).encode()),
            ("deep.png", picture()),
            ("deep.json", b"[" * 200_000),
        ],
        link=link,
        folder=folder,
    )
    items = list(sources.listing("x.tar", tmp_path))
    assert [i.ref for i in items if not i.reject] == ["x.tar::ok.png"]
    assert sorted((i.ref.partition("::")[2], i.reject.reason) for i in items if i.reject) == [
        ("../up.png", "unsafe-path"),
        ("/abs.png", "unsafe-path"),
        ("bad.png", "bad-metadata"),
        ("deep.png", "bad-metadata"),
        ("link.png", "unsafe-path"),
        ("list.png", "bad-metadata"),
        ("note", "not-an-image"),
        ("odd.png", "bad-metadata"),
        ("ok.png", "duplicate-key"),
    ]
    assert images.read_bytes("x.tar::ok.png", tmp_path) == picture()


def test_a_tar_cut_short_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    tar_of(path, [(f"{i}.png", picture(i)) for i in range(9)])
    path.write_bytes(path.read_bytes()[: 9 * 1024])
    found = listed("x.tar", tmp_path)
    assert reasons(found) == {"x.tar": "truncated"}
    assert list(labels(found)) == [f"x.tar::{i}.png" for i in range(5)]
    for i in range(4):
        assert images.read_bytes(f"x.tar::{i}.png", tmp_path) == picture(i)
    with pytest.raises(images.Reject, match=r"truncated: x\.tar ends 776 bytes early"):
        images.read_bytes("x.tar::4.png", tmp_path)
    path.write_bytes(path.read_bytes()[: 4 * 2048])  # just between two members
    found = listed("x.tar", tmp_path)
    assert reasons(found) == {"x.tar": "truncated"}
    assert len(labels(found)) == 4


def test_a_missing_shard_and_a_file_that_is_no_tar_are_errors(tmp_path: Path) -> None:
    tar_of(tmp_path / "x-0.tar", [("a.png", picture())])
    with pytest.raises(HeadwaterError, match=r"x-1\.tar is not there"):
        listed("x-{0..1}.tar", tmp_path)
    (tmp_path / "y.tar").write_bytes(b"\x1f\x8b compressed, perhaps")
    with pytest.raises(HeadwaterError, match=r"y\.tar is not a tar"):
        listed("y.tar", tmp_path)


# ---- S3 ----------------------------------------------------------------------------------------


@pytest.fixture
def s3(bucket: Any) -> Any:
    """A boto3 client of a real HTTP server."""
    return bucket


def test_objects_below_a_prefix_are_listed_page_by_page(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_s3, "PAGE", 5)
    table = "path,label\ncat/0000.png,tabby\ncat/gone.png,x\ndog/d.png,outer\n"
    bodies = {f"set/cat/{i:04d}.png": b"x" for i in range(17)}
    bodies |= {
        "set/cat/é 1.png": picture(),
        "set/.hidden/x.png": b"x",
        "settle/x.png": b"x",
        "set/metadata.csv": table.encode(),
        "set/": b"",
        "set/dog/metadata.csv": b"path,label\nd.png,hound\n",
        "set/dog/d.png": b"x",
    }
    for key, body in bodies.items():
        s3.put_object(Bucket="lake", Key=key, Body=body)
    found = listed("s3://lake/set", tmp_path)
    assert len(labels(found)) == 19
    assert reasons(found) == {"s3://lake/set/cat/gone.png": "missing-file"}
    known = {r: x for r, x in labels(found).items() if x}
    assert known == {
        "s3://lake/set/cat/0000.png": "tabby",
        "s3://lake/set/dog/d.png": "hound",
    }
    assert {i.source for i in found.values() if not i.reject} == {"set"}
    assert images.read_bytes("s3://lake/set/cat/é 1.png", tmp_path) == picture()
    before = found["s3://lake/set/cat/0001.png"].version
    s3.put_object(Bucket="lake", Key="set/cat/0001.png", Body=b"y")
    assert listed("s3://lake/set/", tmp_path)["s3://lake/set/cat/0001.png"].version != before
    whole = listed("s3://lake", tmp_path)
    assert whole["s3://lake/settle/x.png"].label == "settle"
    assert whole["s3://lake/settle/x.png"].source == "lake"


def test_what_is_wrong_with_s3_is_said(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeadwaterError, match="s3://nope/x: its bucket does not exist"):
        listed("s3://nope/x", tmp_path)
    with pytest.raises(HeadwaterError, match="names no bucket"):
        listed("s3://", tmp_path)
    with pytest.raises(images.Reject, match="missing-file"):
        images.read_bytes("s3://lake/none.png", tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    s3_api._client.cache_clear()
    with pytest.raises(HeadwaterError, match="no S3 credentials were found"):
        listed("s3://lake/set", tmp_path)
    s3_api._client.cache_clear()


def test_a_dead_s3_stops_ingest_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ENDPOINT_URL", "http://127.0.0.1:9"),
        ("ACCESS_KEY_ID", "x"),
        ("SECRET_ACCESS_KEY", "x"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    s3_api._client.cache_clear()
    cfg = Config.model_validate({"data": {"sources": ["s3://lake/set"]}})
    with pytest.raises(HeadwaterError, match="s3://lake/set: S3 does not answer"):
        ingest.run(cfg, Paths(tmp_path))
    assert not Paths(tmp_path).manifest.exists()
    s3_api._client.cache_clear()


# ---- another data set, by configuration alone --------------------------------------------------


def digits() -> list[tuple[str, bytes]]:
    """Real handwriting: 300 of the UCI digits that scikit-learn ships, enlarged to 32 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    made = []
    for pixels, label in zip(found.images[:300], found.target[:300], strict=True):
        image = Image.fromarray((255 - pixels * 15.9).astype(np.uint8))
        out = io.BytesIO()
        image.resize((32, 32), Image.Resampling.BICUBIC).save(out, "PNG")
        made.append((f"digit {label}", out.getvalue()))
    return made


def put_folder(root: Path, samples: list[tuple[str, bytes]]) -> str:
    for i, (label, data) in enumerate(samples):
        file = root / "digits" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return "digits"


def put_table(root: Path, samples: list[tuple[str, bytes]]) -> str:
    put_folder(root, samples)
    rows = [{"path": f"digits/{x}/{i}.png", "label": x} for i, (x, _) in enumerate(samples)]
    pd.DataFrame(rows).to_csv(root / "digits.csv", index=False)
    return "digits.csv"


def put_tars(root: Path, samples: list[tuple[str, bytes]]) -> str:
    half = len(samples) // 2
    for n, part in enumerate((samples[:half], samples[half:])):
        members = [
            (f"{i}.{e}", d)
            for i, (x, data) in enumerate(part)
            for e, d in (("png", data), ("cls", x.encode()))
        ]
        tar_of(root / f"digits-{n}.tar", members)
    return "digits-{0..1}.tar"


def test_every_kind_of_source_gives_the_same_images(tmp_path: Path) -> None:
    found = []
    for put in (put_folder, put_table, put_tars):
        root = tmp_path / put.__name__
        root.mkdir()
        cfg = Config.model_validate({"data": {"sources": [put(root, digits())]}})
        counts = ingest.run(cfg, Paths(root))
        assert (counts["kept"], counts["rejected"], counts["classes"]) == (300, 0, 10)
        assert counts["by_source"] == {"digits": 300}
        frame = pd.read_parquet(Paths(root).manifest / "manifest.parquet").drop(columns="path")
        found.append(frame.sort_values(["sha256", "label"], ignore_index=True))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_other_real_images_reach_the_shards_by_configuration_alone(tmp_path: Path) -> None:
    location = put_tars(tmp_path, digits())
    cfg = Config.model_validate({"data": {"sources": [location]}, "curate": {"clusters": 10}})
    paths = Paths(tmp_path)
    assert ingest.run(cfg, paths)["kept"] == 300
    assert validate.run(cfg, paths)["success"]
    assert seed_embed.run(cfg, paths)["images"] == 300
    kept = curate.run(cfg, paths)
    assert kept["train"] > 100
    assert kept["test"] > 30
    made = shard.run(cfg, paths)
    assert made["train"] + made["test"] == kept["kept"]
    index = pd.read_parquet(paths.shards / "index.parquet")
    assert sorted(index["label"].unique()) == [f"digit {i}" for i in range(10)]
