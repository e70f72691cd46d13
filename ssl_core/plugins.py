"""Plug-ins are found by file name: ``ssl_core/<kind>/<name>.py`` is the plug-in ``name``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from .errors import HeadwaterError


def names(kind: str) -> list[str]:
    """Names of all plug-ins of one kind, sorted; files that start with ``_`` are helpers."""
    package = importlib.import_module(f"ssl_core.{kind}")
    found = (m.name for m in pkgutil.iter_modules(package.__path__))
    return sorted(n for n in found if not n.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        HeadwaterError: there is no such file; the message lists the choices.
    """
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise HeadwaterError(
            f"{kind} '{name}'",
            f"is not one of {', '.join(known)}",
            f"{hint}set the name in params.yaml or add ssl_core/{kind}/{name}.py",
        )
    return importlib.import_module(f"ssl_core.{kind}.{name}")
