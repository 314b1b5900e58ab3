"""Where data sets, and what is made of them, lie on this machine."""

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
    return cache() / "data"


def cache() -> Path:
    """Our folder in the user's cache: `clbench` in `$XDG_CACHE_HOME`, or in `~/.cache`. Nothing is created."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (folder if folder.is_absolute() else Path("~/.cache")).expanduser() / "clbench"


def folder(name: str, at: Path | None) -> Path:
    """The folder of one data set: `at` where the user said so, else the one of that name in `root`."""
    return at.expanduser().absolute() if at else root() / name
