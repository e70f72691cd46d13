"""``make demo``: the whole life of an encoder on embedded images, through the real pipeline.

Raw images become a champion; weeks of deployment pass; a vendor nobody has seen appears; labels
prove the harm; the sensor asks for one repair; the weeks after show what it won back. All runs
are ordinary Dagster runs in the project's own instance: ``make ui`` shows them afterwards.
"""

from __future__ import annotations

import logging
import os
import runpy
import shutil
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from . import home, jobs

FRESH = (
    "data/raw",
    "data/deploy",
    "data/truth",
    "data/products",
    "data/registry",
    "data/history",
    "runs",
    "reports",
)

QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass
class Demo:
    """The state of one demonstration."""

    instance: Any
    console: Console = field(default_factory=lambda: Console(width=100))
    began: float = field(default_factory=time.monotonic)
    cursor: str | None = None
    asked: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        seconds = time.monotonic() - self.began
        self.console.print(f"[dim]{seconds:5.0f} s[/]  [bold]{text}[/]", highlight=False)

    def run(self, job: str, run_config: dict | None = None, **kwargs: Any) -> Any:
        """Execute a job of the definitions in this process; its stages run in their own."""
        from .definitions import defs

        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance, run_config=QUIET | (run_config or {}), **kwargs
        )
        if not result.success:
            raise SystemExit(f"job {job} failed: see the log above, or `make ui`")
        return result


def keys(names: tuple[str, ...]) -> list[Any]:
    """Asset keys without the report, which the demo writes once, at the end."""
    import dagster as dg

    return [dg.AssetKey(name) for name in names if name != "report"]


def unpack() -> None:
    """Raw images, deployment weeks and the truth, from the tars in data/emoji."""
    for name in FRESH:
        shutil.rmtree(home.ROOT / name, ignore_errors=True)
    for child in (home.ROOT / "data/collected").iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    runpy.run_path(str(home.ROOT / "data/emoji/unpack.py"))["unpack"](home.ROOT)


def phases() -> dict[str, list[str]]:
    """Days of deployment by phase, from the truth."""
    truth = pd.read_csv(home.ROOT / "data/truth/truth.csv", keep_default_na=False)
    day = truth["path"].str.extract(r"incoming/(\d{4}-\d\d-\d\d)/")[0]
    return {p: sorted(day[truth["noise"] == p].unique()) for p in ("stable", "shifted", "later")}


def truth_accuracy(folder: str, days: list[str]) -> tuple[float, int]:
    """Share of right predictions on all images of ``days``: the truth knows every label."""
    truth = pd.read_csv(home.ROOT / "data/truth/truth.csv", keep_default_na=False)
    label = truth.set_index("path")["label"]
    parts = [pd.read_parquet(home.ROOT / folder / f"date={d}/part-0.parquet") for d in days]
    frame = pd.concat(parts)
    right = frame["prediction"].to_numpy() == label.reindex(frame["path"]).to_numpy()
    return float(np.mean(right)), len(frame)


def week(demo: Demo, day: str) -> None:
    """Serve and judge one day; then look whether the sensor wants a retraining."""
    from ssl_core.artifacts import read_json

    demo.run("deployment", partition_key=day)
    verdict = read_json(home.ROOT / f"data/deploy/monitor/date={day}/verdict.json")
    right = verdict["accuracy"]
    share = f"{right['value']:.1%} of {right['n']} labelled" if right else "no labels"
    demo.say(f"{day}  {verdict['verdict']:>5}  accuracy {share}")


def tick(demo: Demo, sensor: Any, cursor: str | None) -> Any:
    """Evaluate a real sensor once."""
    import dagster as dg

    with dg.build_sensor_context(instance=demo.instance, cursor=cursor) as context:
        return sensor.evaluate_tick(context)


def sense(demo: Demo) -> bool:
    """What the sensors ask for: a repair, and the whole chain if no cheaper rung passes."""
    from .sensors import full_chain, retrain_on_harm

    found = tick(demo, retrain_on_harm, demo.cursor)
    demo.cursor = found.cursor or demo.cursor
    for request in found.run_requests or []:
        demo.asked.append(str(request.run_key))
        demo.say(f"sensor: repair because of {request.run_key}")
        demo.run("repair_champion", request.run_config, tags=dict(request.tags))
        demo.console.print(ladder_table())
    for request in tick(demo, full_chain, None).run_requests or []:
        demo.say("no cheaper rung passed: the whole chain")
        demo.run(
            "retrain",
            request.run_config,
            tags=dict(request.tags),
            asset_selection=keys(("collected", *jobs.CHAIN)),
        )
    return bool(found.run_requests)


def ladder_table() -> Table:
    """The rungs of the latest repair."""
    from ssl_core.config import Paths
    from ssl_core.stages import repair

    table = Table("rung", "outcome", "seconds", "why", title="repair, cheapest first")
    for row in (repair.history(Paths(home.ROOT)) or [{"rungs": []}])[-1]["rungs"]:
        seconds = f"{row['seconds']:.1f}"
        table.add_row(row["rung"], row["outcome"], seconds, row["reason"])
    return table


def shadow(days: list[str], model: str) -> None:
    """What the old champion would have said on the days after."""
    from ssl_core.config import Paths, load
    from ssl_core.stages import predict

    for day in days:
        predict.run(load(home.ROOT / "params.yaml"), Paths(home.ROOT), day, model)


def methods_table(rows: list[dict[str, Any]]) -> Table:
    """Methods and baselines over seeds."""
    table = Table(
        "encoder",
        "seeds",
        "kNN",
        "linear probe",
        title="held-out glyphs, frozen features, accuracy in %",
    )
    for row in rows:
        cells = [
            f"{100 * row[f'{m}_mean']:.1f}"
            + (f" ± {100 * row[f'{m}_std']:.1f}" if row["seeds"] > 1 else "")
            for m in ("knn", "linear")
        ]
        table.add_row(row["name"], str(row["seeds"]), *cells)
    return table


def margins(rows: list[dict[str, Any]], method: str) -> str:
    """Worst seed of the method minus best seed of each weak baseline."""
    by = {r["name"].removesuffix(" (baseline)"): r for r in rows}
    parts = []
    for name in ("random", "pixels"):
        gains = [
            100 * (min(by[method][f"{m}_values"]) - max(by[name][f"{m}_values"]))
            for m in ("knn", "linear")
        ]
        parts.append(f"{name}: kNN {gains[0]:+.1f}, linear {gains[1]:+.1f}")
    return f"worst {method} seed minus best baseline seed, in points: {'; '.join(parts)}"


def deployment_table(demo: Demo, days: dict[str, list[str]], old: str) -> Table:
    """Accuracy before, during and after, and the share that retraining won back."""
    from ssl_core import registry

    table = Table("phase", "model", "images", "accuracy %", title="deployment, all true labels")
    live, past = "data/deploy/predictions", f"data/deploy/shadow/{old}"
    new = registry.champion(home.ROOT / "data/registry") or "-"
    value = {}
    for name, folder, key, model in (
        ("known vendors", live, "stable", old),
        ("new vendor appears", live, "shifted", old),
        ("new vendor, without repair", past, "later", old),
        ("new vendor, after repair", live, "later", new),
    ):
        value[name], n = truth_accuracy(folder, days[key])
        table.add_row(name, model[:8], str(n), f"{100 * value[name]:.1f}")
    before, _, lost, after = value.values()
    back = (after - lost) / (before - lost) if before > lost else float("nan")
    table.caption = f"won back: {back:.0%} of the accuracy lost on the same images"
    return table


def chain(demo: Demo) -> list[dict[str, Any]]:
    """Raw images to champion, then the same training over seeds and methods."""
    from ssl_core.artifacts import read_json
    from ssl_core.config import Paths, load
    from ssl_core.stages import seeds

    demo.run("chain", asset_selection=keys(jobs.CHAIN))
    demo.say("champion stands; now the same training with other seeds")
    cfg = load(home.ROOT / "params.yaml")
    own = tuple(arm for arm in cfg.seeds.arms if arm.method == cfg.pretrain.method)
    arms = cfg.seeds.model_copy(update={"arms": own})
    seeds.run(cfg.model_copy(update={"seeds": arms}), Paths(home.ROOT))
    return list(read_json(home.ROOT / "reports/seeds.json"))


def play(demo: Demo) -> None:
    """The whole story."""
    from ssl_core import registry
    from ssl_core.config import Paths, load
    from ssl_core.stages import report

    unpack()
    demo.say("unpacked: raw images of three vendors, twelve days of deployment")
    rows = chain(demo)
    days = phases()
    old = registry.champion(home.ROOT / "data/registry")
    if old is None:
        raise SystemExit("no encoder was promoted: see data/products/promotion/decision.json")
    for day in days["stable"] + days["shifted"]:
        week(demo, day)
    if not sense(demo):
        raise SystemExit("the sensor saw no harm: see data/deploy/monitor")
    for day in days["later"]:
        week(demo, day)
    shadow(days["later"], old)
    page = report.run(load(home.ROOT / "params.yaml"), Paths(home.ROOT))
    demo.console.print(methods_table(rows))
    demo.console.print(margins(rows, "simclr"), highlight=False)
    demo.console.print(deployment_table(demo, days, old))
    demo.say(f"done. Report: {page['file']}   Runs and graph: make ui")


def main() -> None:
    """Play the demonstration in the project's own Dagster instance."""
    import dagster as dg

    logging.getLogger("dvc").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    home.prepare()
    os.chdir(home.ROOT)
    with dg.DagsterInstance.get() as instance:
        play(Demo(instance))


if __name__ == "__main__":
    sys.exit(main())
