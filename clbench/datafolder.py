"""Where data sets, and what is made of them, lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from clbench.errors import BadValue


def root() -> Path:
    """The folder that holds one folder for each data set.

    `$CLBENCH_DATA` where it is set, else `clbench/data` in the user's cache: `$XDG_CACHE_HOME`, or `~/.cache` where
    that is unset or relative (XDG Base Directory Specification). Nothing is created. Raises BadValue where it names
    a file, or nobody's home.
    """
    chosen = os.environ.get("CLBENCH_DATA")
    if not chosen:
        return cache() / "data"
    try:
        named = Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise BadValue(f"CLBENCH_DATA is '{chosen}', and there is no such home; set it to a folder.") from error
    if named.is_file():
        raise BadValue(f"CLBENCH_DATA is '{chosen}', which is a file; set it to a folder.")
    return named


def cache() -> Path:
    """Our folder in the user's cache: `clbench` in `$XDG_CACHE_HOME`, or in `~/.cache`. Nothing is created."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (folder if folder.is_absolute() else Path("~/.cache")).expanduser() / "clbench"


def folder(name: str, at: Path | None) -> Path:
    """The folder of one data set: `at` where the user said so, else the one of that name in `root`."""
    return at.expanduser().absolute() if at else root() / name
