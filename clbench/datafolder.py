"""Where data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The folder that holds one folder for each data set.

    `$CLBENCH_DATA` where it is set, else `clbench/data` in the user's cache: `$XDG_CACHE_HOME`, or `~/.cache` where
    that is unset or relative (XDG Base Directory Specification). Nothing is created.
    """
    chosen = os.environ.get("CLBENCH_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (cache if cache.is_absolute() else Path("~/.cache")).expanduser() / "clbench" / "data"


def folder(name: str, at: Path | None) -> Path:
    """The folder of one data set: `at` where the user said so, else the one of that name in `root`."""
    return at.expanduser().absolute() if at else root() / name
