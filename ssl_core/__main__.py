"""The ``headwater`` command: every stage, and a few questions about the whole."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .config import Config, Paths, load
from .errors import HeadwaterError

# Stages of the versioned chain, in order; dvc.yaml holds the same (a test compares them).
CHAIN = {
    "ingest": "read every source into one manifest; unreadable images are listed with a reason",
    "validate": "check the manifest (Great Expectations) and the images; may block the chain",
    "seed_embed": "features of a pinned encoder, for curation only",
    "curate": "split without leaks, drop duplicates, balance clusters",
    "shard": "write byte-deterministic WebDataset tars with an index",
    "pretrain": "train the encoder without labels; continues after a crash",
    "embed": "features of the new encoder",
    "evaluate": "kNN, linear probe, RankMe beside random init, raw pixels and the seed encoder",
    "promote": "make it champion if it is proven better and nowhere proven worse",
}
Params = Annotated[Path, typer.Option("--params", "-p", help="configuration file")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="override, e.g. -s pretrain.epochs=5")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
DEFAULT = Path("params.yaml")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Own a self-supervised vision backbone: curate, pretrain, evaluate, promote, watch, "
    "retrain.\n\nExamples:\n\n    headwater ingest -s 'data.sources=[\"my/images\"]'\n\n"
    "    headwater pretrain -s pretrain.method=dino\n\n    headwater monitor 2026-03-15 --json",
)


def _config(params: Path, changes: list[str] | None) -> Config:
    import yaml

    pairs = [c.partition("=") for c in changes or []]
    for key, sign, _ in pairs:
        if not sign:
            raise HeadwaterError(f"--set {key}", "is not key=value", "write e.g. pretrain.epochs=5")
    return load(params, {k: yaml.safe_load(v) for k, _, v in pairs})


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=1, default=str))
        return
    for key, value in result.items():
        print(f"{key:>24}  {value}")


def _stage(name: str) -> Any:
    return importlib.import_module(f"ssl_core.stages.{name}")


def _add(name: str, text: str) -> None:
    def command(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
        _print(_stage(name).run(_config(params, set_), Paths()), as_json)

    app.command(name.replace("_", "-"), help=text[0].upper() + text[1:] + ".")(command)


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
def rollback(reason: Annotated[str, typer.Argument(help="why; kept in the log")]) -> None:
    """Go back to the previous champion."""
    from . import registry

    name = registry.rollback(Paths().registry, reason)
    print(f"champion is {name}. Record it: dvc commit -f promote")


@app.command("config")
def show_config(
    params: Params = DEFAULT,
    set_: Set = None,
    schema: Annotated[bool, typer.Option(help="print the JSON schema for editors")] = False,
) -> None:
    """Show the whole configuration with defaults."""
    value = (
        Config.model_json_schema()
        if schema
        else _config(params, set_).model_dump(mode="json", by_alias=True)
    )
    print(json.dumps(value, indent=1))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command; a HeadwaterError prints without a traceback and exits with 2."""
    try:
        app()
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
