"""What did the encoder learn? Measures and analyses beside other encoders."""

import dagster as dg
import pandas as pd

from ssl_core.config import Paths, load

from ._dvc import ROOT
from ._pictures import picture

SHOWN = 8  # pictures in the UI; the page holds all


@dg.asset(group_name="model", kinds={"html"}, pool="gpu", deps=["evaluate"])
def analyse(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Attention, layers, masks, corruptions ... and one page that compares encoders."""
    from ssl_core.stages import analyse as stage

    found = stage.run(load(ROOT / "params.yaml"), Paths(ROOT))
    folder = Paths(ROOT).analysis
    table = pd.read_parquet(folder / "results.parquet")
    ours = table[(table["encoder"] == found["encoders"][0]) & (table["slice"] == "all")]
    metadata = {f"{r.measure}/{r.metric}": float(r.value) for r in ours.dropna().itertuples()}
    for file in sorted((folder / "pictures" / found["encoders"][0]).glob("*.png"))[:SHOWN]:
        metadata |= picture(file.read_bytes(), file.stem)
    metadata["page"] = dg.MetadataValue.path(str((ROOT / found["page"]).resolve()))
    return dg.MaterializeResult(metadata=metadata)
