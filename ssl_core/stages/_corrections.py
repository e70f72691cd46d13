"""Labels that people corrected, by content: a small CSV file that git keeps and ingest applies.

It is no product: nothing can make it again. So it lies in git, line by line and open to review,
and DVC watches it as an input of stage ingest.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import write_bytes
from ..errors import HeadwaterError
from ..validation.labels import PLAIN

COLUMNS = ("sha256", "path", "given", "label")
HEAD = ",".join(COLUMNS) + "\n"
LONGEST = 200  # characters of a label
SHA = re.compile(r"[0-9a-f]{64}")
Correction = dict[str, str]  # of COLUMNS


def plain(label: str) -> bool:
    """Whether a label is text that can name a class."""
    return len(label) <= LONGEST and re.match(PLAIN, label) is not None


def parse(file: Path) -> Iterator[tuple[int, Correction | None]]:
    """(line, row) of a CSV file with a header; None for a row with too few or too many fields.

    Raises:
        HeadwaterError: not UTF-8, not CSV, or without the columns label and one of sha256 and path.
    """
    fix = f"it needs the columns {', '.join(COLUMNS)}"
    try:
        text = file.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise HeadwaterError(file, f"cannot be read ({error.strerror})", "check the name") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise HeadwaterError(file, f"is not UTF-8 CSV ({error})", fix) from None
    names = [n.strip().lower() for n in rows[0][1]] if rows else []
    if "label" not in names or not {"sha256", "path"} & set(names):
        raise HeadwaterError(file, f"has columns {', '.join(names) or 'none'}", fix)
    for line, row in rows[1:]:
        if len(row) != len(names):
            yield line, None
            continue
        found = dict(zip(names, (value.strip() for value in row), strict=True))
        yield line, {name: found.get(name, "") for name in COLUMNS}


def read(file: Path) -> dict[str, Correction]:
    """Stored corrections by sha256; none where there is no file.

    Raises:
        HeadwaterError: a line that `headwater correct` would not have written.
    """
    known: dict[str, Correction] = {}
    for line, row in parse(file) if file.exists() else ():
        fix = "mend the line; `headwater correct` writes this file"
        place = f"{file}, line {line}"
        if row is None or not SHA.fullmatch(row["sha256"]) or not plain(row["label"]):
            raise HeadwaterError(place, "is not sha256,path,given,label", fix)
        if row["sha256"] in known:
            raise HeadwaterError(place, "speaks of an image that an earlier line corrects", fix)
        known[row["sha256"]] = row
    return known


def write(file: Path, known: dict[str, Correction]) -> None:
    """Store them in the order of their sha256: a change is a small difference in git."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(known[sha] for sha in sorted(known))
    write_bytes(file, out.getvalue().encode())


def apply(
    manifest: pd.DataFrame, known: dict[str, Correction]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The manifest with corrected labels, and how many: of rows, and corrections without a row."""
    if not known:
        return manifest, {"corrected": 0, "corrections_unused": 0}
    wanted = manifest["sha256"].map({sha: row["label"] for sha, row in known.items()})
    label = wanted.fillna(manifest["label"]).astype(manifest["label"].dtype)
    changed = wanted.notna() & (manifest["label"].fillna("") != label.fillna(""))
    unused = len(set(known) - set(manifest["sha256"]))
    counts = {"corrected": int(changed.sum()), "corrections_unused": unused}
    return manifest.assign(label=label), counts
