"""``headwater query``: SQL over every result, with DuckDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadwaterError
from ._common import Json, emit, table

if TYPE_CHECKING:
    from ..config import Paths

SHOWN = 200  # lines


def views(paths: Paths) -> dict[str, str]:
    """Name -> Parquet file, or pattern, of what there is."""
    patterns = {
        "manifest": (paths.manifest, "manifest.parquet"),
        "rejects": (paths.manifest, "rejects.parquet"),
        "curated": (paths.curated, "curated.parquet"),
        "shards": (paths.shards, "index.parquet"),
        "evaluation": (paths.evaluation, "results.parquet"),
        "test_predictions": (paths.evaluation, "test_predictions.parquet"),
        "analysis": (paths.analysis, "results.parquet"),
        "predictions": (paths.predictions, "*/*.parquet"),
        "monitor": (paths.monitor, "*/*.parquet"),
    }
    for file in sorted(paths.reports.glob("study-*.parquet")):
        patterns[file.stem.replace("-", "_")] = (paths.reports, file.name)
    return {k: str(folder / p) for k, (folder, p) in patterns.items() if any(folder.glob(p))}


def ask(sql: str, paths: Paths) -> list[dict[str, Any]]:
    """The rows of a statement.

    Raises:
        HeadwaterError: DuckDB is not installed, or refuses the statement.
    """
    try:
        import duckdb
    except ImportError as error:
        fix = "pip install 'headwater[query]'"
        raise HeadwaterError("headwater query", "needs the package duckdb", fix) from error
    known = views(paths)
    with duckdb.connect() as base:
        for name, file in known.items():
            quoted = file.replace("'", "''")
            base.execute(f"CREATE VIEW \"{name}\" AS SELECT * FROM read_parquet('{quoted}')")
        try:
            found = base.execute(sql)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        except duckdb.Error as error:
            fix = f"tables here: {', '.join(known) or 'none yet, run a stage first'}"
            raise HeadwaterError(f"query '{sql}'", str(error).splitlines()[0], fix) from None


def command(
    sql: Annotated[str, typer.Argument(help="a statement; empty: list the tables")] = "SHOW TABLES",
    as_json: Json = False,
) -> None:
    """Ask the results, which are Parquet files, in SQL.

    Examples:

        headwater query

        headwater query "SELECT encoder, value, low, high FROM evaluation WHERE slice = 'all' AND
        metric = 'accuracy' ORDER BY value DESC"

        headwater query "SELECT split, reason, count(*) FROM curated GROUP BY ALL"
    """
    from ..config import Paths

    found = ask(sql, Paths())
    if as_json:
        emit(found)
    elif found:
        lines = [list(found[0]), *(list(row.values()) for row in found[:SHOWN])]
        typer.echo(table(lines))
        if len(found) > SHOWN:
            typer.echo(f"  ... {len(found) - SHOWN} more lines (--json gives all)")
