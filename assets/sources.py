"""What comes from outside: raw images, and deployment images taken in for retraining."""

import dagster as dg
from pydantic import Field

from ssl_core.config import Paths, load
from ssl_core.stages import collect

from ._dvc import ROOT

raw_images = dg.AssetSpec(
    "raw_images",
    group_name="data",
    description="Folders, manifests, WebDatasets or S3 prefixes named in params.yaml data.sources.",
)


class Take(dg.Config):
    """Which days of deployment join the training data; none by default."""

    dates: list[str] = Field(default=[])
    key: str = ""


@dg.asset(group_name="data", kinds={"python"}, pool="io")
def collected(context: dg.AssetExecutionContext, config: Take) -> dg.MaterializeResult:
    """Images of deployment, with labels where they came, as an ordinary source folder."""
    paths = Paths(ROOT)
    if config.dates:
        key = config.key or max(config.dates)
        found = collect.run(load(ROOT / "params.yaml"), paths, config.dates, key)
        context.log.info("collected %s", found)
        return dg.MaterializeResult(metadata=found)
    folders = sorted(p.name for p in paths.collected.iterdir() if p.is_dir())
    return dg.MaterializeResult(metadata={"folders": len(folders), "names": ", ".join(folders)})
