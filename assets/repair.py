"""The repair ladder, and what follows it."""

import contextlib
from typing import Any

import dagster as dg
from pydantic import Field

from ssl_core import registry
from ssl_core.config import Paths, load

from ._dvc import ROOT

CHECK = dg.AssetCheckSpec(
    "harm_is_repaired",
    asset="repair",
    description="A rung passed the gate, or there was nothing to repair.",
)


class Cause(dg.Config):
    """Which days did harm; none by default, and then nothing is repaired."""

    dates: list[str] = Field(default=[])
    key: str = ""


def record(context: dg.AssetExecutionContext, before: str | None) -> None:
    """Tell DVC of another champion, unless its stage has other work to do anyway."""
    if registry.champion(Paths(ROOT).registry) == before:
        return
    from dvc.repo import Repo

    with contextlib.chdir(ROOT), Repo() as repo:
        stage = repo.stage.collect("promote")[0]
        if stage.changed_deps():
            context.log.warning("DVC: stage promote is stale, so the registry is not committed")
            return
        repo.commit("promote", force=True)


def _table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    columns = ("rung", "outcome", "seconds", "expected_seconds", "labels", "reason")
    records = [dg.TableRecord({c: row.get(c) for c in columns}) for row in rows]
    kinds = {"seconds": "float", "expected_seconds": "float", "labels": "int"}
    schema = dg.TableSchema([dg.TableColumn(c, kinds.get(c, "string")) for c in columns])
    return dg.MetadataValue.table(records, schema)


def _metadata(decision: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {k: str(decision.get(k)) for k in ("outcome", "rung", "candidate")}
    found |= {"reason": decision["reason"], "key": decision["key"]}
    found |= {f"gain/{k}": float(v) for k, v in (decision.get("gain") or {}).items()}
    found |= {f"cost/{k}": float(v) for k, v in (decision.get("cost") or {}).items()}
    if decision.get("rungs"):
        found["rungs"] = _table(decision["rungs"])
    return found


@dg.asset(group_name="deployment", kinds={"pytorch"}, pool="gpu", check_specs=[CHECK])
def repair(context: dg.AssetExecutionContext, config: Cause) -> dg.MaterializeResult:
    """The cheapest change to the champion that fresh held-out labels prove a repair."""
    from ssl_core.stages import repair as stage

    if not config.dates:
        passed = dg.AssetCheckResult(passed=True, check_name="harm_is_repaired")
        return dg.MaterializeResult(metadata={"outcome": "nothing asked"}, check_results=[passed])
    paths = Paths(ROOT)
    before = registry.champion(paths.registry)
    decision = stage.run(load(ROOT / "params.yaml"), paths, config.dates, config.key)
    context.log.info("%s: %s", decision["outcome"], decision["reason"])
    record(context, before)
    check = dg.AssetCheckResult(
        passed=decision["outcome"] in ("promoted", "nothing"),
        check_name="harm_is_repaired",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"reason": decision["reason"]},
    )
    return dg.MaterializeResult(metadata=_metadata(decision), check_results=[check])


@dg.asset(group_name="deployment", kinds={"pytorch"}, pool="gpu")
def watch(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Approved and shadow models, and whether labels send a new champion back."""
    from ssl_core.stages import watch as stage

    paths = Paths(ROOT)
    before = registry.champion(paths.registry)
    found = stage.run(load(ROOT / "params.yaml"), paths)
    record(context, before)
    lines = "\n".join(f"- {entry}" for entry in found["done"])
    return dg.MaterializeResult(
        metadata={"champion": str(found["champion"]), "done": dg.MetadataValue.md(lines)}
    )
