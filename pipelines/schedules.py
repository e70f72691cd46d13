"""What runs by the clock. Both are off until someone turns them on in the UI."""

from __future__ import annotations

import dagster as dg

from . import jobs

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=jobs.chain,
    cron_schedule="0 2 * * *",
    description="The whole chain; stages whose inputs have not changed are skipped by DVC.",
)
daily = dg.build_schedule_from_partitioned_job(
    jobs.deployment,
    name="daily",
    hour_of_day=1,
    minute_of_hour=0,
    description="Yesterday's deployment: predictions, then the verdict.",
)
