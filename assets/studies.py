"""Questions of the literature asked of one's own images; each trains what it needs, when asked."""

import dagster as dg

from ssl_core import plugins
from ssl_core.config import Paths, load
from ssl_core.studies import _write

from ._dvc import ROOT
from ._pictures import picture


def _study(name: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"study_{name}",
        group_name="studies",
        kinds={"pytorch", "markdown"},
        pool="gpu",
        description=_write.about(name),
    )
    def study(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        found = _write.run(name, load(ROOT / "params.yaml"), Paths(ROOT))
        counts = {"yes": 0, "no": 0, "undecided": 0}
        for claim in found.claims:
            counts[claim.verdict] += 1
        said = "\n".join(f"- {claim.sentence()}" for claim in found.claims)
        page = Paths(ROOT).reports / f"{_write.stem(name)}.md"
        metadata = {f"claims/{k}": v for k, v in counts.items()}
        metadata |= {"claims": dg.MetadataValue.md(said)}
        metadata |= {"page": dg.MetadataValue.path(str(page.resolve()))}
        for title, png in found.pictures.items():
            metadata |= picture(png, title)
        return dg.MaterializeResult(metadata=metadata)

    return study


studies = [_study(name) for name in plugins.names(_write.KIND)]
