"""What is collected for retraining: safe names, no loss, labels renewed."""

from __future__ import annotations

import hashlib

import pandas as pd
import pytest
from test_monitor import CFG, DAY, label, serve, watched  # noqa: F401

from ssl_core.config import Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import collect


@pytest.fixture
def arrived(watched: Paths) -> Paths:  # noqa: F811
    """Two predicted days whose files exist, with matching checksums."""
    for date in (DAY, "2026-03-02"):
        frame = serve(watched, n=3, date=date)
        for i, path in enumerate(frame["path"]):
            file = watched.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{date} {i}".encode())
        frame["sha256"] = [
            hashlib.sha256((watched.root / p).read_bytes()).hexdigest() for p in frame["path"]
        ]
        frame.to_parquet(watched.predictions / f"date={date}/part-0.parquet", index=False)
    return watched


def table(paths: Paths, key: str) -> pd.DataFrame:
    file = paths.collected / key / "metadata.csv"
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def test_collected_images_become_a_source(arrived: Paths) -> None:
    frame = pd.read_parquet(arrived.predictions / f"date={DAY}/part-0.parquet")
    label(arrived, frame.iloc[:2], group=["g1", "g2"])
    result = collect.run(CFG, arrived, [DAY, "2026-03-02", DAY], "new")
    want = {"images": 6, "labelled": 2, "days": 2, "folder": "data/collected/new"}
    assert {k: result[k] for k in want} == want
    found = table(arrived, "new")
    assert list(found.columns) == collect.COLUMNS
    assert found["group"].tolist() == ["g1", "g2", "", "", "", ""]
    assert found["label"].tolist() == ["cat", "cat", "", "", "", ""]
    for row in found.itertuples(index=False):
        day, _, name = row.path.partition("/")
        assert day == row.captured_at
        original = arrived.root / CFG.deploy.incoming / day / name
        assert (arrived.collected / "new" / row.path).read_bytes() == original.read_bytes()


def test_collecting_again_renews_labels_but_loses_no_day(arrived: Paths) -> None:
    collect.run(CFG, arrived, [DAY], "k")
    label(arrived, pd.read_parquet(arrived.predictions / f"date={DAY}/part-0.parquet"))
    assert collect.run(CFG, arrived, [DAY, "2026-03-02"], "k")["labelled"] == 3
    with pytest.raises(HeadwaterError, match="already holds 2026-03-02"):
        collect.run(CFG, arrived, [DAY], "k")
    assert len(table(arrived, "k")) == 6


def test_a_changed_or_vanished_image_is_refused(arrived: Paths) -> None:
    file = arrived.root / CFG.deploy.incoming / DAY / "d1.png"
    data = file.read_bytes()
    file.write_bytes(data + b"!")
    with pytest.raises(HeadwaterError, match="changed since it was predicted on"):
        collect.run(CFG, arrived, [DAY], "k")
    file.unlink()
    with pytest.raises(HeadwaterError, match="cannot be read any more"):
        collect.run(CFG, arrived, [DAY], "k")
    assert not (arrived.collected / "k").exists()
    file.write_bytes(data)
    assert collect.run(CFG, arrived, [DAY], "k")["images"] == 3


@pytest.mark.parametrize("key", ["../x", "a/b", "", ".hidden", "a..b", "x" * 65, "a\\b", "a\n"])
def test_unsafe_keys_are_refused(arrived: Paths, key: str) -> None:
    with pytest.raises(HeadwaterError, match="not a plain name"):
        collect.run(CFG, arrived, [DAY], key)
    assert not arrived.collected.exists()


@pytest.mark.parametrize("name", ["../../../../evil.png", "a/../../x.png", "a::b.png", "a\\b.png"])
def test_unsafe_paths_in_a_log_are_refused(arrived: Paths, name: str) -> None:
    file = arrived.predictions / f"date={DAY}/part-0.parquet"
    frame = pd.read_parquet(file)
    frame.loc[0, "path"] = f"{CFG.deploy.incoming}/{DAY}/{name}"
    frame.to_parquet(file, index=False)
    with pytest.raises(HeadwaterError, match="not a safe file name"):
        collect.run(CFG, arrived, [DAY], "k")


def test_no_days_and_days_without_predictions_are_refused(arrived: Paths) -> None:
    with pytest.raises(HeadwaterError, match="are none"):
        collect.run(CFG, arrived, [], "k")
    with pytest.raises(HeadwaterError, match="does not exist"):
        collect.run(CFG, arrived, [DAY, "2026-03-09"], "k")
