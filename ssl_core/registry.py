"""Models that served, the one that serves, and why: a folder, its files named by content.

``models/<id>/`` are never changed or deleted; ``champion.json`` points at one of them; log.jsonl
tells how it came to that. Files are replaced whole, never appended to or rewritten in place:
they may be links into DVC's cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import (
    ENCODER,
    atomic_dir,
    read_json,
    read_lines,
    sha256_file,
    write_bytes,
    write_json,
)
from .errors import HeadwaterError
from .evaluate import _head
from .lock import exclusive

if TYPE_CHECKING:
    from . import models

CHAMPION, LOG, CARD = "champion.json", "log.jsonl", "card.json"
CORE = (*ENCODER, _head.WEIGHTS, _head.META)  # what a model's id is made of
ID = re.compile(r"[0-9a-f]{12}")
MOVES = ("promote", "rollback")  # the events that change the champion
ANY = "any"  # no model is named so


@dataclass(frozen=True)
class Model:
    """A loaded model: ``meta`` is encoder.json, ``card`` says what it was trained on."""

    id: str
    encoder: models.Encoder
    head: _head.Head
    meta: dict[str, Any]
    card: dict[str, Any]


def champion(folder: Path) -> str | None:
    """Id of the model that serves, or None."""
    file = folder / CHAMPION
    return str(read_json(file)["id"]) if file.exists() else None


def identify(files: Mapping[str, Path]) -> str:
    """The id of a model: from the contents of encoder and head."""
    parts = [f"{name}\0{sha256_file(files[name])}\n" for name in CORE]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def path(folder: Path, name: str) -> Path:
    """The folder of one model.

    Raises:
        HeadwaterError: not an id, or not in the registry; the message lists what is.
    """
    found = folder / "models" / name
    if not ID.fullmatch(name) or not (found / CARD).exists():
        known = sorted(p.parent.name for p in folder.glob(f"models/*/{CARD}"))
        fix = f"take one of {', '.join(known)}" if known else "run stage promote, or dvc checkout"
        raise HeadwaterError(f"model '{name}'", "is not in the registry", fix)
    return found


def add(folder: Path, files: Mapping[str, Path], card: Mapping[str, Any]) -> str:
    """Copy a model in and return its id; one that is there already is only verified.

    An encoder that two models share is there twice: what one may have to go back to must not
    depend on the same bytes on disk. (DVC's cache and remote hold equal files once.)

    Raises:
        HeadwaterError: it is there and damaged.
    """
    with locked(folder):
        _sweep(folder)
        name = identify(files)
        target = folder / "models" / name
        if (target / CARD).exists():
            verify(folder, name)
            return name
        with atomic_dir(target) as out:
            for file, source in files.items():
                shutil.copyfile(source, out / file)
            sums = {file: sha256_file(out / file) for file in sorted(files)}
            write_json(out / CARD, {**card, "id": name, "files": sums})
        return name


def verify(folder: Path, name: str) -> dict[str, Any]:
    """Compare every file of a model with its checksum; returns the card.

    Raises:
        HeadwaterError: unknown model, a file missing or altered.
    """
    own = path(folder, name)
    card: dict[str, Any] = read_json(own / CARD)
    for file, known in card["files"].items():
        if not (own / file).exists() or sha256_file(own / file) != known:
            rule = "is missing or does not match its checksum in card.json"
            raise HeadwaterError(own / file, rule, "run `dvc checkout data/registry`")
    if identify({file: own / file for file in CORE}) != name:
        raise HeadwaterError(own, "holds another model than it is named for", "run `dvc checkout`")
    return card


def load(folder: Path, name: str) -> Model:
    """A verified model, ready to serve.

    Raises:
        HeadwaterError: unknown or damaged.
    """
    from . import models  # torch; Dagster's steps ask only who the champion is

    card, own = verify(folder, name), path(folder, name)
    meta = read_json(own / models.META)
    return Model(name, models.load(own).eval(), _head.load(own), meta, card)


# ---- what happened -----------------------------------------------------------------------------


def locked(folder: Path) -> AbstractContextManager[None]:
    """One writer at a time. The lock lies beside the registry, which DVC hashes whole."""
    return exclusive(folder.with_name(f".{folder.name}.lock"))


def history(folder: Path) -> list[dict[str, Any]]:
    """Every decision, oldest first: event, id, time, and what it rests on."""
    return read_lines(folder / LOG)


def _record(folder: Path, event: str, name: str, about: Mapping[str, Any]) -> None:
    entry = {"event": event, "id": name, **about}
    log = history(folder)
    if log and {k: v for k, v in log[-1].items() if k != "time"} == entry:
        return
    entry["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [json.dumps(e, sort_keys=True) + "\n" for e in [*log, entry]]
    write_bytes(folder / LOG, "".join(lines).encode())


def record(folder: Path, event: str, name: str, about: Mapping[str, Any]) -> None:
    """Add one line to the log. What the last line says already is not said again."""
    with locked(folder):
        _record(folder, event, name, about)


def _sweep(folder: Path) -> None:
    """Delete what a writer that was killed left half written: only the lock's holder writes."""
    for rest in (*folder.glob(".*"), *(folder / "models").glob(".*")):
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def _settle(folder: Path) -> None:
    """Finish what a crash left between log and pointer: the log comes first, so it is right."""
    _sweep(folder)
    moves = [e for e in history(folder) if e["event"] in MOVES]
    if moves and champion(folder) == moves[-1].get("previous") != moves[-1]["id"]:
        verify(folder, moves[-1]["id"])
        write_json(folder / CHAMPION, {"id": moves[-1]["id"]})


def settle(folder: Path) -> str | None:
    """Finish what a crash may have left half done; returns the champion's id."""
    with locked(folder):
        _settle(folder)
        return champion(folder)


def promote(folder: Path, name: str, about: Mapping[str, Any], expected: str | None = ANY) -> None:
    """Make a model of the registry the champion; one that is it already stays.

    The log comes first: after a crash in between, doing it again repeats nothing.

    Args:
        expected: the champion that the decision was made against.

    Raises:
        HeadwaterError: unknown or damaged model, one that was rolled back or rejected, or
            another champion than expected.
    """
    with locked(folder):
        verify(folder, name)
        _settle(folder)
        now = champion(folder)
        if now == name:
            return
        if (why := rejected(folder).get(name)) is not None:
            rule = f"was rejected ({why}) and does not return"
            raise HeadwaterError(f"model '{name}'", rule, "promote another model")
        if expected not in (ANY, now):
            rule = f"is no longer the champion: {now} is"
            raise HeadwaterError(f"model '{expected}'", rule, "compare with the new one: run again")
        _record(folder, "promote", name, {"previous": now, **about})
        write_json(folder / CHAMPION, {"id": name})


def lineage(folder: Path) -> list[str]:
    """Ids from the first champion to the latest, without those that were rolled back."""
    served: list[str] = []
    for entry in history(folder):
        if entry["event"] == "promote" and entry["id"] not in served[-1:]:
            served.append(entry["id"])
        elif entry["event"] == "rollback" and len(served) > 1:
            served.pop()
    return served


def rejected(folder: Path) -> dict[str, str]:
    """Models that were rolled back or rejected, and the reason last given."""
    found = {}
    for entry in history(folder):
        if entry["event"] == "rollback":
            found[entry["previous"]] = entry.get("reason", "")
        elif entry["event"] == "reject":
            found[entry["id"]] = entry.get("reason", "")
    return found


def states(folder: Path) -> dict[str, str]:
    """Where each model stands: candidate, approved, shadow, champion, retired or rejected."""
    found: dict[str, str] = {}
    steps = {"candidate": "candidate", "approve": "approved", "shadow": "shadow"}
    for entry in history(folder):
        event, name = entry["event"], entry["id"]
        if event == "reject":
            found[name] = "rejected"
        elif event in steps:
            found[name] = steps[event]
        elif event in MOVES:
            if entry.get("previous"):
                found[entry["previous"]] = "retired" if event == "promote" else "rejected"
            found[name] = "champion"
    return found


def rollback(folder: Path, reason: str, expected: str | None = ANY) -> str:
    """Make the previous champion serve again; returns its id. Doing it twice goes two back.

    Args:
        expected: the champion that is to go. If it went already, nothing happens.

    Raises:
        HeadwaterError: there is none, or it is damaged.
    """
    with locked(folder):
        _settle(folder)
        now, served = champion(folder), lineage(folder)
        if expected not in (ANY, now) and expected in rejected(folder):
            return str(now)
        if now in served:
            served = served[: len(served) - 1 - served[::-1].index(now)]
        if now is None or not served:
            rule = "there is no champion before it" if now else "has no champion"
            raise HeadwaterError(now or folder, rule, "promote another model instead")
        verify(folder, served[-1])
        _record(folder, "rollback", served[-1], {"previous": now, "reason": reason})
        write_json(folder / CHAMPION, {"id": served[-1]})
        return served[-1]
