"""The simulated year: what each policy of retraining costs, and what it wins back.

Every policy lives through the same weeks of the same scenarios from the same first champion. What
is finished is kept in ``runs/simulate``: an interrupted or repeated call goes on where it stopped.

Policies: ``ours`` is what the sensors do in production (monitor, judge again when labels come,
one repair on proven harm, watch the new champion); ``threshold`` retrains whenever a test of the
week against the reference falls below a p-value, as many set-ups do; ``periodic`` and ``always``
retrain every few weeks and every week. These three put the new model into service without a gate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .. import plugins, registry
from ..artifacts import atomic_dir, read_json, sha256_json, write_bytes, write_json
from ..config import Config, Paths, Pretrain, Simulate
from ..errors import HeadwaterError
from ..progress import Reporter
from ..report import year as pictures
from . import _year, _year_life, _year_scores, monitor, repair, trigger, watch
from ._days import features, read_predictions, read_reference
from ._year_life import Life

RULES = 2  # raise it when a case would come out differently
Act = Callable[[Life, int, list[str]], None]


# ---- policies: what is done at the end of a week, given the days whose labels came -------------


def never(life: Life, week: int, touched: list[str]) -> None:
    """The first champion serves all year."""


def always(life: Life, week: int, touched: list[str]) -> None:
    """Retrain every week."""
    life.retrain(week)


def periodic(life: Life, week: int, touched: list[str]) -> None:
    """Retrain every ``simulate.period`` weeks."""
    if week % life.cfg.simulate.period == 0:
        life.retrain(week)


def threshold(life: Life, week: int, touched: list[str]) -> None:
    """Retrain when the week differs from the reference at a fixed level, look by look."""
    date = _year.date_of(week)
    frame, _ = read_predictions(life.paths, date)
    if not len(frame):
        return
    with life.costs("monitoring"):
        reference = features(read_reference(life.paths, life.champion))
        rng = np.random.default_rng([life.cfg.seed, week])
        found = plugins.load("drift", "mmd").score(reference, features(frame), rng, 199)
    life.rows[-1]["alarm"] = found.p_value < life.cfg.simulate.threshold
    if life.rows[-1]["alarm"]:
        life.retrain(week)


def ours(life: Life, week: int, touched: list[str]) -> None:
    """What the sensors of ``pipelines/`` start, in their order."""
    cfg, paths, date = life.cfg, life.paths, _year.date_of(week)
    with life.costs("monitoring"):
        verdicts = [monitor.run(cfg, paths, d) for d in [*touched, date]]
    said = {v["verdict"] for v in verdicts if v["model"] == life.champion}
    life.rows[-1]["alarm"] = bool(said & {"drift", "harm"})
    life.rows[-1]["broken"] = bool(verdicts[-1]["inputs"]["broken"])
    request = trigger.due(cfg, paths, life.asked)
    if request is not None:
        _mend(life, week, request)
    with life.costs("monitoring"):
        watch.run(cfg, paths)


def _mend(life: Life, week: int, request: trigger.Request) -> None:
    life.asked = request.day
    with life.costs("repair"):
        found = repair.run(life.cfg, life.paths, list(request.dates), request.repair_key)
    rungs = {r["rung"]: f"{r['outcome']}: {r['reason']}" for r in found.get("rungs", [])}
    life.decisions.append({"week": week, "outcome": found["outcome"], "rungs": rungs})
    life.labels += _fresh_labels(found)
    if found["outcome"] == "full":
        life.retrain(week, gated=True)


def _fresh_labels(decision: dict[str, Any]) -> int:
    """Labels learned from, and labels that judged."""
    judged = [r["judged"]["gain"]["n"] for r in decision.get("rungs", []) if "judged" in r]
    return int(decision.get("cost", {}).get("labels", 0)) + max(judged, default=0)


POLICIES: dict[str, Act] = {
    "never": never,
    "ours": ours,
    "threshold": threshold,
    "periodic": periodic,
    "always": always,
}


# ---- one case ----------------------------------------------------------------------------------


def settings(cfg: Config) -> Config:
    """The configuration of the simulated project.

    Raises:
        HeadwaterError: an unknown scenario or policy.
    """
    s = cfg.simulate
    known = _year.scenarios(s.weeks)
    for what, names, all_ in (
        ("scenarios", s.scenarios, known),
        ("policies", s.policies, POLICIES),
    ):
        if wrong := set(names) - set(all_):
            fix = f"take some of {', '.join(all_)}"
            raise HeadwaterError(f"simulate.{what} {', '.join(sorted(wrong))}", "is unknown", fix)
    tree = cfg.model_dump(mode="json", by_alias=True) | {"pretrain": Pretrain().model_dump()}
    for section, changes in s.settings.items():
        tree[section] = tree[section] | changes
    tree["deploy"] |= {"group": _year_life.GROUP, "alerts": []}
    return Config.model_validate(tree)


def live(cfg: Config, life: Life, policy: str) -> dict[str, Any]:
    """All weeks under one policy."""
    for week in range(1, cfg.simulate.weeks + 1):
        before = life.champion
        life.serve(week)
        POLICIES[policy](life, week, life.deliver(week))
        life.moved(week, before, _how(life))
    return {
        "weeks": life.rows,
        "moves": life.moves,
        "decisions": life.decisions,
        "seconds": {k: round(v, 2) for k, v in sorted(life.seconds.items())},
        "labels": life.labels,
        "trainings": life.trainings,
    }


def _how(life: Life) -> str:
    """What changed the champion last: a rung, the whole training, or the way back."""
    last = registry.history(life.paths.registry)[-1]
    return "rollback" if last["event"] == "rollback" else str(last.get("rung", "full"))


def images(cfg: Config, paths: Paths) -> _year.Pool:
    """What deployment shows.

    Raises:
        HeadwaterError: no shards there.
    """
    where, side = cfg.simulate.images, cfg.simulate.image_size
    if where == "digits":
        return _year_life.digits(side)
    folder = paths.root / where
    if not (folder / "index.json").exists():
        fix = "run stage shard, or set simulate.images: digits"
        raise HeadwaterError(f"simulate.images {where}", "is no folder of shards", fix)
    return _year_life.pool_of(folder, side)


class Year:
    """The pool, the first champion, and the weeks of each scenario, made once."""

    def __init__(self, cfg: Config, paths: Paths) -> None:
        self.cfg = settings(cfg)
        pool, s = images(cfg, paths), cfg.simulate
        first, test, self.pool = _year_life.parted(pool, s.new)
        self.base = _year_life.first_images(first, test, cfg.seed)
        self.scenarios = _year.scenarios(s.weeks)
        kept = s.model_dump(mode="json", exclude={"scenarios", "policies"})
        sections = [self.cfg.section(n) for n in ("pretrain", "deploy", "repair", "promote")]
        key = sha256_json([RULES, cfg.seed, kept, sections, [b.key for b in self.base]])[:12]
        self.folder = paths.runs / "simulate" / key

    def champion(self) -> Paths:
        """The project in which the first champion was made."""
        place = self.folder / "first"
        if not place.exists():
            with atomic_dir(place) as out, _year_life.hushed():
                _year_life.first_champion(self.cfg, Paths(out), self.base)
                shutil.rmtree(out / "runs", ignore_errors=True)
        return Paths(place)

    def case(self, scenario: str, policy: str) -> dict[str, Any]:
        """One result, from an earlier call where there is one."""
        file = self.folder / f"{scenario}-{policy}.json"
        if file.exists():
            found: dict[str, Any] = read_json(file)
            return found
        s, work = self.cfg.simulate, self.folder / f"{scenario}-{policy}"
        week = partial(
            _year.week_of,
            self.scenarios[scenario],
            self.pool,
            count=s.per_week,
            seed=self.cfg.seed,
            new=s.new,
            often=s.often,
        )
        paths = _year_life.clone(self.champion(), work)
        life = Life(self.cfg, paths, lru_cache(maxsize=None)(week), self.base)
        with _year_life.hushed():
            found = {"scenario": scenario, "policy": policy, **live(self.cfg, life, policy)}
        write_json(file, found)
        shutil.rmtree(work)
        return found


# ---- the stage ---------------------------------------------------------------------------------


def quick(s: Simulate) -> Simulate:
    """Three scenarios, a quarter of the year, three policies."""
    changes = {
        "weeks": min(s.weeks, 13),
        "scenarios": ("none", "vendor", "camera"),
        "policies": ("never", "ours", "periodic"),
    }
    return s.model_copy(update=changes)


def write(cfg: Config, paths: Paths, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """reports/simulate.json, .md and .png of the cases there are."""
    about = _year.scenarios(cfg.simulate.weeks)
    table = _year_scores.table(cases, about, cfg.promote.margin)
    totals = _year_scores.totals(table, about)
    whole = {"simulate": cfg.simulate.model_dump(mode="json"), "table": table, "totals": totals}
    write_json(paths.reports / "simulate.json", whole | {"cases": cases})
    write_bytes(paths.reports / "simulate.md", pictures.markdown(table, totals, about).encode())
    write_bytes(paths.reports / "simulate.png", pictures.picture(cases, about))
    return totals


def run(cfg: Config, paths: Paths, fast: bool = False) -> dict[str, Any]:
    """Write reports/simulate.json, .md and .png, anew after every case.

    Raises:
        HeadwaterError: an unknown scenario or policy, no images, or too few of them.
    """
    if fast:
        cfg = cfg.model_copy(update={"simulate": quick(cfg.simulate)})
    year, cases = Year(cfg, paths), []
    names = cfg.simulate.scenarios or tuple(year.scenarios)
    chosen = dict.fromkeys(("none", *names))  # its weeks under "never" are what others are held to
    with Reporter("simulate") as report:
        for policy in dict.fromkeys(("never", *cfg.simulate.policies)):
            for scenario in chosen:
                cases.append(year.case(scenario, policy))
                totals = write(year.cfg, paths, cases)
                report.log(f"{scenario}, {policy}: {_year_scores.say(cases[-1])}")
    return {r["policy"]: _year_scores.short(r) for r in totals}
