"""``headwater config``: the whole tree with its defaults, and its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from ._common import DEFAULT, LOGIN, Json, Params, Set, emit, settings

if TYPE_CHECKING:
    from ..config import Section

app = typer.Typer(
    help="Show the whole configuration, or its JSON schema.",
    rich_markup_mode="markdown",
)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Show the whole configuration, or its JSON schema; alone it is `headwater config show`."""
    if context.invoked_subcommand is None:
        show()


@app.command()
def show(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Show every option with its value; what differs from the default is marked.

    Examples:

        headwater config show | grep changed

        headwater config show --json | jq .changed
    """
    from ..config import Config

    cfg = settings(params, set_)
    changed = {
        key: {"value": value, "default": standard}
        for (key, value), (_, standard) in zip(leaves(cfg), leaves(Config()), strict=True)
        if value != standard
    }
    if as_json:
        emit({"config": cfg.model_dump(mode="json", by_alias=True), "changed": changed})
        return
    print(f"# {params if params.exists() else f'{params} is not there: all defaults'}")
    for line in lines(cfg, changed):
        print(LOGIN.sub("***@", line))


@app.command()
def schema() -> None:
    """Print the JSON schema, by which editors complete and check params.yaml.

    Example, for the YAML extension of VS Code and other editors with its language server:

        headwater config schema > .params.schema.json

        sed -i '1i # yaml-language-server: $schema=.params.schema.json' params.yaml
    """
    from ..config import Config

    emit(Config.model_json_schema(by_alias=True))


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option as (section.key, JSON value), in the order of the tree."""
    from ..config import Section

    plain = section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain[key]


def lines(section: Section, changed: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The tree as YAML, one option a line, with a comment where it is not the default."""
    import json

    from ..config import Section

    indent, plain = "  " * prefix.count("."), section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        if isinstance(value, Section):
            yield f"{indent}{key}:"
            yield from lines(value, changed, f"{prefix}{key}.")
            continue
        text = f"{indent}{key}: {json.dumps(plain[key])}"
        was = changed.get(prefix + key)
        yield f"{text}  # changed, default {json.dumps(was['default'])}" if was else text
