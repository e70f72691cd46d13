"""The sizing tables: what is computed, what is marked, and that the guide shows them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # benchmarks are no installed package
sizing: Any = importlib.import_module("benchmarks.sizing")


def made() -> dict[str, dict[str, Any]]:
    """Results with round numbers, in the form that the benchmarks write."""
    about = {"machine": {"cpu": "one", "cores": 2}}
    per = {"shards": 1e4, "manifest": 50, "curated": 60, "shard index": 90}
    per |= {"seed features": 5120, "curated in memory": 300}
    seconds = dict.fromkeys(("ingest", "validate", "seed_embed", "shard"), 0.36)
    row = {"group": "JPEG 256 px", "low": 0, "high": 0}
    views = [row | {"case": "MAE 1×224", "median": 500.0}]
    views += [row | {"case": "image alone", "median": 2000.0}]
    wide = [{"dimensions": 64, "cpu_seconds": 2.0}, {"dimensions": 1280, "cpu_seconds": 10.0}]
    cases = [
        {"case": "all", "images": n, "cpu_seconds": s, "peak_mib": 500 + m}
        for n, s, m in ((100_000, 36.0, 50), (1_000_000, 360.0, 600))
    ]
    mine = {"group": "headwater", "ratio": 1.0, "case": "headwater, 1 workers"}
    return {
        "footprint": about
        | {
            "about": {"images": 1000},
            "bytes_per_image": per,
            "cpu_seconds_per_image": seconds,
            "views": views,
            "width": wide,
            "copies": 2.5,
        },
        "curation": about | {"rows": cases},
        "scaling": about | {"rows": [mine, mine | {"case": "headwater, 2 workers", "ratio": 1.6}]},
    }


def cells(text: str, name: str) -> list[str]:
    """Of the line that begins so, without its name."""
    (line,) = [row for row in text.splitlines() if row.startswith(f"| {name} |")]
    return [c.strip() for c in line.strip("|").split("|")][1:]


def test_bytes_and_hours_grow_with_the_images() -> None:
    text = sizing.by_images(made(), (1000, 1_000_000))
    assert cells(text, "shards, longest side 256 px") == ["10 MB", "~10 GB", "footprint.json"]
    assert cells(text, "shard files at 32 MiB")[1] == "~300"  # 10^10 / 2^25 = 298.02
    assert cells(text, "manifest, curated and shard index")[1] == "~200 MB"
    assert cells(text, "memory: seed_embed, 1,280 numbers")[1] == "~13 GB"
    assert cells(text, "core-hours: ingest")[1] == "~100"


def test_curation_is_as_measured_and_beyond_that_by_its_growth() -> None:
    text = sizing.by_images(made(), (100_000, 1_000_000, 100_000_000))
    assert cells(text, "core-hours: curation, 64 numbers")[:3] == ["0.010", "0.10", "~10"]
    assert cells(text, "core-hours: curation, 1,280 numbers")[:3] == ["~0.050", "~0.50", "~50"]
    slow = made()
    slow["curation"]["rows"][1]["cpu_seconds"] = 720.0  # ×20: 720 s × 20²
    assert cells(sizing.by_images(slow, (10**8,)), "core-hours: curation, 64 numbers")[0] == "~80"
    slow["curation"]["rows"][1]["cpu_seconds"] = 180.0  # ×5 is not believed: 180 s × 10²
    assert cells(sizing.by_images(slow, (10**8,)), "core-hours: curation, 64 numbers")[0] == "~5.0"
    # 550 MiB for 900,000 images more; 1,216 more float32 of each image.
    assert cells(text, "memory: curation, 64 numbers")[1:3] == ["640 MB", "~64 GB"]
    assert cells(text, "memory: curation, 1,280 numbers")[2] == "~550 GB"


def test_cores_allow_for_what_a_further_one_does_not_bring() -> None:
    text = sizing.by_rate(made(), ((1, 400.0), (8, 1000.0)))
    # 0.8 of one alone: 400 a core with MAE, 1,600 with the image alone.
    assert cells(text, "MAE 1×224, views by workers")[1:3] == ["1", "~20"]
    assert cells(text, "any method, views on the GPU")[1:3] == ["1", "~5"]
    assert cells(text, "to be read, 256 px")[1:3] == ["~4.0 MB/s", "~80 MB/s"]


def test_hours_are_images_by_epochs_over_the_rate() -> None:
    text = sizing.by_speed(made(), (36_000_000,), ((2, 500.0),), 10)
    assert cells(text, "2 × 500 img/s") == ["100", "your measurement"]


def trained(case: str, **machine: Any) -> dict[str, Any]:
    """A row of benchmarks.gpu."""
    row = {"case": case, "batch": 256, "steps": 60, "first_step_seconds": 5.14}
    row |= {"images_per_second": 1000.0, "peak_bytes": 2.0**34, "mfu": 0.171}
    row |= {"share/wait": 0.152, "share/checkpoint": 0.02}
    return row | {"machine": {"cpu": "two", "cores": 16, "gpu": "NVIDIA H100 80GB HBM3"} | machine}


def test_trainings_on_a_gpu_are_shown_and_their_rates_taken_further() -> None:
    plain = trained("simclr ViT-S/16")
    found = {"gpu": {"rows": [trained("mae ViT-B/16, not compiled"), plain]}}
    shown = cells(sizing.on_gpu(found), "simclr ViT-S/16")
    assert shown == ["H100", "256", "60", "1,000", "16.0", "17%", "15%", "2%", "5.1"]
    text = sizing.by_speed(found, (36_000_000,), (), 10)
    assert cells(text, "simclr ViT-S/16, one H100: 1,000 img/s") == ["~100", "gpu.json"]
    assert "mae" not in text  # only what one would train with
    assert sizing.notes(found).count("two, 16 cores, NVIDIA H100 80GB HBM3: gpu.") == 1
    more = {"gpu": {"rows": [plain, trained("dino ViT-S/16", gpu="NVIDIA H200")]}}
    assert "two, 16 cores, NVIDIA H200: gpu." in sizing.notes(more)


def test_what_was_not_measured_is_left_out_and_said() -> None:
    few = made()
    del few["curation"]
    text = sizing.text(few)
    assert "curation, 64" not in text
    assert "Not measured yet, so left out: memory, curation, data_path, s3, step, gpu." in text
    assert "one, 2 cores: footprint, scaling." in text


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0994, "0.099"), (0.996, "1.0"), (9.96, "10"), (349, "350"), (12345, "12,000"), (0, "0")],
)
def test_two_digits(value: float, written: str) -> None:
    assert sizing.two(value) == written


def test_units_are_decimal() -> None:
    assert sizing.size(1500) == "1.5 kB"
    assert sizing.size(999_900) == "1.0 MB"
    assert sizing.size(5.12e11) == "510 GB"
    assert sizing.size(3e12) == "3.0 TB"


def test_the_guide_shows_what_the_script_prints() -> None:
    """If not: ``python -m benchmarks.sizing --write``."""
    page = sizing.GUIDE.read_text()
    shown = page.partition(sizing.BEGIN)[2].partition(sizing.END)[0]
    assert shown.strip() == sizing.text(sizing.results()).strip()
    assert sizing.placed(page, sizing.text(sizing.results())) == page


def test_results_are_those_of_the_folder(tmp_path: Path) -> None:
    assert sizing.results(tmp_path) == {}
    assert sizing.text({}).startswith("| images |")
