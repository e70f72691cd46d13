"""``headwater init``: a project for one's own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadwaterError
from ._common import Json, emit, table

if TYPE_CHECKING:
    from ._look import Found

FEW = 1000  # images below which an encoder from scratch is for trying out only


def command(
    source: Annotated[
        str, typer.Argument(help="folder, .csv/.parquet table, .tar shards or s3://bucket/prefix")
    ],
    into: Annotated[Path, typer.Option(help="the project's folder; made if it is missing")] = Path(
        "."
    ),
    minutes: Annotated[float, typer.Option(min=0.01, help="of pretraining to plan for")] = 10.0,
    as_json: Json = False,
) -> None:
    """Make a project for your own pictures: looks at some hundred of them and asks nothing.

    Labels come from subfolders or a metadata.csv (path,label,group,...); none are needed. From
    pictures to a report:

        headwater init pictures

        headwater run

        xdg-open reports/report.html

    From a bucket, with the usual AWS_* variables, for an hour of training:

        headwater init s3://bucket/prefix --into birds --minutes 60
    """
    from . import _look, _scaffold

    project, place = into.absolute(), locate(source, into)
    found = _look.look(place, project)
    tree = _scaffold.params(found, place, minutes)
    project.mkdir(parents=True, exist_ok=True)
    made = _scaffold.write(project, place, tree) + _scaffold.versioned(project)
    next_ = "headwater run" if project == Path.cwd() else f"cd {into} && headwater run"
    if as_json:
        emit({"found": _look.plain(found), "params": tree, "made": made, "next": next_})
    else:
        typer.echo(text(found, tree, made, next_))


def locate(source: str, project: Path) -> str:
    """The source as params.yaml names it: relative to the project if it lies inside, else whole.

    Raises:
        HeadwaterError: nothing is there, or the project would lie among the pictures.
    """
    if "://" in source or "{" in source:
        return source
    here, root = Path(source).resolve(), project.resolve()
    if not here.exists():
        raise HeadwaterError(f"source '{source}'", "is not there", "name a folder with pictures")
    if here.is_dir() and root.is_relative_to(here):
        rule = "holds the project itself: its products would be taken for pictures"
        raise HeadwaterError(f"source '{source}'", rule, "run it in another folder, or give --into")
    return here.relative_to(root).as_posix() if here.is_relative_to(root) else here.as_posix()


def text(found: Found, tree: dict[str, Any], made: list[str], next_: str) -> str:
    """What was found, what was chosen, and what to do now."""
    return "\n".join(
        [
            "Found",
            table(facts(found)),
            "Chosen (params.yaml)",
            table(chosen(tree)),
            *(f"Note: {note}" for note in notes(found)),
            f"Made  {', '.join(made)}",
            f"Next  {next_}",
        ]
    )


def facts(found: Found) -> list[tuple[str, str]]:
    """What the pictures are."""
    s, some = found.sizes, ", ".join(f"{n} ({k})" for n, k in list(found.classes.items())[:5])
    more = ", ..." if len(found.classes) > 5 else ""
    labels = f"{len(found.classes)} classes on {found.labelled} files: {some}{more}"
    bad = "; ".join(f"{n} {r} (e.g. {found.examples[r]})" for r, n in found.rejects.items())
    return [
        ("files", f"{found.listed}{'' if found.all_listed else ' and more'}"),
        ("formats", ", ".join(f"{k} {n}" for k, n in found.formats.items())),
        ("longest side", f"{s['least']} to {s['most']} px, median {s['median']}"),
        ("channels", str(found.channels)),
        ("labels", labels if found.classes else "none"),
        ("unreadable", bad or "none of those looked at"),
    ]


def chosen(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """What matters most of the configuration."""
    p = tree["pretrain"]
    return [
        ("method", f"{p['method']} on {p['backbone']}"),
        ("images", f"{p['image_size']} px, crops of {p['crop_size']} px"),
        ("training", f"{p['epochs']:g} epochs, batches of {p['batch_size']}"),
    ]


def notes(found: Found) -> list[str]:
    """What a newcomer should know before waiting."""
    said = []
    if not found.classes:
        said.append(
            "no label was found: the encoder is trained, but not evaluated. Sort some pictures "
            "into folders by class, or add a metadata.csv with columns path and label."
        )
    if found.images < FEW:
        said.append(
            f"{found.images} images are enough to try the chain, not for a good encoder; one "
            "pretrained elsewhere (baseline 'seed' in the report) will be hard to beat."
        )
    if sum(found.rejects.values()) > 0.2 * (sum(found.formats.values()) or 1):
        said.append("many files are unreadable: `headwater run` will stop at validation.")
    return said
