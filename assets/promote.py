"""Champion or challenger."""

from collections.abc import Iterator

import dagster as dg

from ssl_core.artifacts import read_json
from ssl_core.config import Paths

from ._dvc import ROOT, run_stage

CHECK = dg.AssetCheckSpec(
    "challenger_is_better",
    asset="promote",
    description="The new encoder took the champion's place. Keeping the champion is no failure.",
)


@dg.asset(
    group_name="model",
    kinds={"dvc"},
    pool="gpu",
    deps=["shard", "pretrain", "embed", "evaluate"],
    check_specs=[CHECK],
)
def promote(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """The registry's champion, after a paired bootstrap against the one before."""
    version = run_stage(context, "promote")
    decision = read_json(Paths(ROOT).promotion / "decision.json")
    numbers = {k: decision[k] for k in ("difference", "low", "high") if decision.get(k) is not None}
    metadata = {
        "reason": decision["reason"],
        "candidate": str(decision["candidate"]),
        "champion before": str(decision["champion"]),
        "promoted": int(decision["promoted"]),
        **{k: float(v) for k, v in numbers.items()},
    }
    yield dg.MaterializeResult(
        metadata=metadata,
        data_version=version,
        check_results=[
            dg.AssetCheckResult(
                passed=bool(decision["promoted"]),
                check_name="challenger_is_better",
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"reason": decision["reason"]},
            )
        ],
    )
