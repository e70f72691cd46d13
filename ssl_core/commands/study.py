"""``headwater study``: a question of the literature, asked of one's own images."""

from __future__ import annotations

from typing import Annotated

import typer

from ._common import DEFAULT, Json, Params, Set, emit, settings


def command(
    name: Annotated[str, typer.Argument(help="temperature, projector, alignment, cl-vs-mim ...")],
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option(help="two seeds, a tenth of the compute, fewer arms: to see it run")
    ] = False,
) -> None:
    """Train what a paper's claim needs, measure it over seeds, and say whether the data agrees.

    Writes reports/study-NAME.md with figures and sentences, .parquet, .json and .png. Finished
    trainings are kept: an interrupted study goes on where it stopped. Examples:

        headwater study temperature --quick

        headwater study alignment -s 'bench.sets={mine: data/products/shards}' -s study.seeds=5

        headwater study cl-vs-mim -s 'study.sets=[digits]' --json | jq '.claims[].verdict'
    """
    from dataclasses import asdict

    from ..config import Paths
    from ..studies import _write

    paths = Paths()
    study = _write.run(name, settings(params, set_), paths, quick)
    if as_json:
        emit({"claims": [asdict(c) for c in study.claims], "left_out": study.left_out})
        return
    for claim in study.claims:
        print(f"{claim.verdict:>9}  {claim.sentence()}")
