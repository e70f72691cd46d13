"""The code location. It only merges: things are defined in assets/ and beside this file."""

from __future__ import annotations

import dagster as dg

from assets import (
    analyse,
    audit,
    curate,
    deployment,
    embed,
    evaluate,
    ingest,
    pretrain,
    promote,
    repair,
    report,
    seed_embed,
    shard,
    sources,
    studies,
    validate,
)

from . import jobs, schedules, sensors

modules = (
    sources,
    ingest,
    validate,
    seed_embed,
    curate,
    shard,
    pretrain,
    embed,
    audit,
    evaluate,
    analyse,
    promote,
    deployment,
    repair,
    report,
    studies,
)

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(modules, include_specs=True),
    jobs=[
        jobs.chain,
        jobs.analyse_encoders,
        jobs.retrain,
        jobs.repair_champion,
        jobs.watch_champion,
        jobs.deployment,
        jobs.remonitor,
        jobs.backup,
    ],
    schedules=[schedules.nightly, schedules.daily],
    sensors=[
        sensors.retrain_on_harm,
        sensors.full_chain,
        sensors.follow_up,
        sensors.tell,
        sensors.late_labels,
        sensors.new_day,
    ],
)
