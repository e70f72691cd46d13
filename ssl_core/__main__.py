"""The ``headwater`` command: every stage, and a few questions about the whole."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .commands import (
    clean,
    config,
    diff,
    doctor,
    export,
    forget,
    init,
    query,
    run,
    serve,
    status,
    study,
    trace,
)
from .commands._common import CHAIN, DEFAULT, Json, Params, Set
from .commands._common import settings as _config
from .commands._common import show as _print
from .errors import HeadwaterError

if TYPE_CHECKING:
    from .config import Paths as _Paths

__all__ = ["CHAIN", "app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Own a self-supervised vision backbone: curate, pretrain, evaluate, promote, watch, "
    "retrain.\n\nExamples:\n\n    headwater ingest -s 'data.sources=[\"my/images\"]'\n\n"
    "    headwater pretrain -s pretrain.method=dino\n\n    headwater monitor 2026-03-15 --json\n\n"
    "From a folder of pictures to a report: `headwater init FOLDER`, `headwater run`. "
    "Exit codes: 0 done, 1 something to mend, 2 wrong usage. Completion of your shell: "
    "`headwater --install-completion`.",
)


def Paths() -> _Paths:
    """Places of the project in the working directory; pydantic is imported only when asked."""
    from .config import Paths as Places

    return Places()


def _stage(name: str) -> Any:
    return importlib.import_module(f"ssl_core.stages.{name}")


def _add(name: str, text: str) -> None:
    def command(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
        _print(_stage(name).run(_config(params, set_), Paths()), as_json)

    sentence = text[0].upper() + text[1:] + "."
    app.command(name.replace("_", "-"), help=sentence, rich_help_panel="Stages")(command)


for _command in (
    init,
    run,
    status,
    doctor,
    trace,
    forget,
    diff,
    query,
    export,
    serve,
    study,
    clean,
):
    _name = _command.__name__.rpartition(".")[2]
    app.command(_name)(_command.command)
app.add_typer(config.app, name="config")
for _name, _text in CHAIN.items():
    _add(_name, _text)

Date = Annotated[str, typer.Argument(help="partition, YYYY-MM-DD")]


@app.command()
def predict(
    date: Date,
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    model: Annotated[
        str, typer.Option(help="id of a model in the registry, for a shadow run beside the log")
    ] = "",
) -> None:
    """Serve the champion over one day's images and write the prediction log."""
    _print(_stage("predict").run(_config(params, set_), Paths(), date, model), as_json)


@app.command()
def monitor(date: Date, params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Compare one day with the reference: drift, and harm where labels have come."""
    _print(_stage("monitor").run(_config(params, set_), Paths(), date), as_json)


@app.command()
def request_labels(
    date: Date,
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    count: Annotated[int, typer.Option(help="how many images to label")] = 100,
    take: Annotated[
        Path | None, typer.Option(help="a filled-in sheet (CSV), to add to the day's labels")
    ] = None,
) -> None:
    """Choose the images whose labels tell most about a day's accuracy; write a review sheet.

    Open data/deploy/requests/date=DATE/sheet.html, name the images, download the CSV, then

        headwater request-labels DATE --take Downloads/DATE.csv
    """
    stage = _stage("request_labels")
    _print(stage.run(_config(params, set_), Paths(), date, count, take), as_json)


@app.command()
def diagnose(date: Date, params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Say what changed on a day: classes, a new class, the camera, one source, or all images."""
    found = _stage("diagnose").run(_config(params, set_), Paths(), date)
    shown = {k: found[k] for k in ("cause", "text")}
    _print(found if as_json else shown, as_json)


@app.command()
def audit(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Doubtful labels, confounders and missing metadata, on a page to review; changes nothing.

    Open reports/audit/audit.html, decide, download the CSV, then

        headwater correct Downloads/corrections.csv
    """
    _print(_stage("audit").run(_config(params, set_), Paths()), as_json)


@app.command()
def correct(
    file: Annotated[Path, typer.Argument(help="CSV with sha256 or path, and label")],
    new_classes: Annotated[
        bool, typer.Option("--new-classes", help="take labels that no image has yet")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store corrected labels in data/corrections.csv; the next ingest applies them.

    Bad rows change nothing and are listed with a reason in reports/corrections-rejects.csv.
    """
    _print(_stage("correct").run(Paths(), file, new_classes), as_json)


@app.command()
def collect(
    key: Annotated[str, typer.Argument(help="name of the new source folder")],
    dates: Annotated[list[str], typer.Argument(help="partitions to take, YYYY-MM-DD ...")],
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Take deployment images into the training data, for retraining."""
    _print(_stage("collect").run(_config(params, set_), Paths(), dates, key), as_json)


@app.command()
def seeds(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Train methods over several seeds and compare them with the baselines."""
    _print(_stage("seeds").run(_config(params, set_), Paths()), as_json)


@app.command()
def bench_methods(
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option(help="one seed, a tenth of the compute, no fine-tuning")
    ] = False,
) -> None:
    """Train every method at equal compute on the sets of section bench; table and picture.

    An interrupted call goes on where it stopped. Example, two methods on your own shards:

        headwater bench-methods -s 'bench.sets={mine: data/products/shards}' -s
        'bench.methods=[simclr, dino]'
    """
    _print(_stage("bench_methods").run(_config(params, set_), Paths(), quick), as_json)


@app.command()
def simulate(
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option(help="three scenarios, three policies and a quarter of a year")
    ] = False,
) -> None:
    """Live through a year of deployment under several policies of retraining, and compare them.

    Eight scenarios on handwritten digits, from no change to a broken camera; how much accuracy
    each policy loses, what it costs, and which promotions do harm. An interrupted call goes on
    where it stopped. Examples:

        headwater simulate --quick

        headwater simulate -s 'simulate.scenarios=[vendor, blur]' -s 'simulate.policies=[ours,
        periodic]' -s simulate.period=8

        headwater simulate -s simulate.images=data/products/shards -s 'simulate.often=[cat, dog]' -s
        simulate.new=horse
    """
    _print(_stage("simulate").run(_config(params, set_), Paths(), quick), as_json)


@app.command()
def analyse(
    encoders: Annotated[
        list[str] | None,
        typer.Argument(help="pretrained, random, seed, a model's id, a folder, hub:<timm name>"),
    ] = None,
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Look at what encoders learnt: measures, analyses, and one page that compares them.

    Without names: our own and those of analyse.encoders. What is known of an encoder is not
    computed again. Examples:

        headwater analyse

        headwater analyse pretrained seed runs/bench/encoders/emoji/dino-0-1a2b3c4d5e6f

        headwater analyse -s 'analyse.analyses=[attention, corruptions]'
    """
    _print(_stage("analyse").run(_config(params, set_), Paths(), tuple(encoders or ())), as_json)


@app.command()
def recommend(
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    images: Annotated[int | None, typer.Option(help="for training")] = None,
    classes: Annotated[int | None, typer.Option(help="0: unknown")] = None,
    tail: Annotated[float | None, typer.Option(help="largest class over the smallest")] = None,
    object_scale: Annotated[
        float | None, typer.Option(help="share of the image's area that the object takes")
    ] = None,
    task: Annotated[str | None, typer.Option(help="classification or dense")] = None,
    compute: Annotated[str | None, typer.Option(help="GPU-hours, or cpu")] = None,
    labels: Annotated[float | None, typer.Option(help="share of images with a label")] = None,
) -> None:
    """Say which method and options to start from, with reasons, sources and a params.yaml.

    What is not given is read from the shards, if there are any. Example:

        headwater recommend --images 20000 --classes 5 --compute cpu
    """
    stage = _stage("recommend")
    given = {
        "images": images,
        "classes": classes,
        "tail": tail,
        "object_scale": object_scale,
        "task": task,
        "compute": compute,
        "labels": labels,
    }
    result = stage.run(_config(params, set_), Paths(), **given)
    print(json.dumps(result, indent=1) if as_json else stage.text(result))


@app.command()
def report(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Write one offline HTML page about data, training, evaluation and deployment."""
    _print(_stage("report").run(_config(params, set_), Paths()), as_json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Argument(help="why; kept in the log")], as_json: Json = False
) -> None:
    """Go back to the previous champion."""
    from . import registry

    name = registry.rollback(Paths().registry, reason)
    _print({"champion": name, "record it": "dvc commit -f promote"}, as_json)


@app.command("repair")
def repair_(
    dates: Annotated[list[str], typer.Argument(help="harmed days, YYYY-MM-DD ...")],
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    key: Annotated[str, typer.Option(help="name of this repair; empty: champion and day")] = "",
) -> None:
    """Climb the repair ladder: the cheapest rung that passes the gate becomes champion."""
    found = _stage("repair").run(_config(params, set_), Paths(), dates, key)
    _print(found if as_json else {k: v for k, v in found.items() if k != "rungs"}, as_json)


@app.command()
def watch(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Settle approvals and shadows, and roll back a new champion that labels prove worse."""
    _print(_stage("watch").run(_config(params, set_), Paths()), as_json)


@app.command()
def approve(
    model: Annotated[str, typer.Argument(help="id of the candidate")],
    reason: Annotated[str, typer.Argument(help="who and why; kept in the log")],
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Let a repaired model that waits for approval go on."""
    _stage("watch").approve(Paths(), model, reason)
    _print(_stage("watch").run(_config(params, set_), Paths()), as_json)


@app.command()
def alert(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Send what happened since the last call to the addresses of deploy.alerts."""
    _print(_stage("alert").run(_config(params, set_), Paths()), as_json)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else __version__)


def main() -> None:
    """Run the command: 0 done, 1 the user has to mend something, 2 wrong usage.

    A HeadwaterError prints without a traceback; ``headwater run`` reads it from the events.
    """
    try:
        app()
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        if path := os.environ.get("HEADWATER_EVENTS"):
            run.note(path, error)
        sys.exit(1)


if __name__ == "__main__":
    main()
