"""Jobs: selections of assets that are run together. None may be named as an asset is."""

from __future__ import annotations

import dagster as dg

from assets.backup import push_products
from ssl_core.__main__ import CHAIN as STAGES

CHAIN = (*STAGES, "report")

chain = dg.define_asset_job(
    "chain", selection=list(CHAIN), description="Raw images to (perhaps) a new champion."
)
retrain = dg.define_asset_job(
    "retrain",
    selection=["collected", *CHAIN],
    description="Take deployment images in, then the whole chain. The ladder's last rung.",
)
analyse_encoders = dg.define_asset_job(
    "analyse_encoders",
    selection=["analyse"],
    description="What the encoder learnt, beside others. Minutes; nothing waits for it.",
)
repair_champion = dg.define_asset_job(
    "repair_champion",
    selection=["repair"],
    description="The cheapest rung that mends the champion. Asked for by a sensor.",
)
watch_champion = dg.define_asset_job(
    "watch_champion",
    selection=["watch"],
    description="Settle approvals and shadows; roll back a champion that labels prove worse.",
)
deployment = dg.define_asset_job(
    "deployment",
    selection=["predictions", "monitor"],
    description="Serve the champion over one day and judge the day.",
)
remonitor = dg.define_asset_job(
    "remonitor", selection=["monitor"], description="Judge a day again: labels have come."
)


@dg.job(description="Products and registry to the DVC remote (variable HEADWATER_REMOTE, or core).")
def backup() -> None:
    push_products()
