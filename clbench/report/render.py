"""Render: tables in the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from clbench.errors import ClbenchError, UnknownName
from clbench.files import write_atomically
from clbench.report.leaderboard import csv, to_json
from clbench.report.markup import latex, markdown
from clbench.report.text import text
from clbench.table import Table

_WHOLE: dict[str, Callable[[Sequence[Table]], str]] = {"csv": csv, "json": to_json}
_EACH: dict[str, Callable[[Table], str]] = {"text": text, "markdown": markdown, "latex": latex}

FORMATS = ("text", "csv", "markdown", "latex", "json")
SUFFIXES = {".txt": "text", ".csv": "csv", ".md": "markdown", ".tex": "latex", ".json": "json"}


def render(tables: Sequence[Table], format: str) -> str:
    """The tables as one string; UnknownName for a format that is not in FORMATS.

    Text is plain, 120 columns wide; `text.print_text` prints it on a console with colours and its width.
    """
    if format in _WHOLE:
        return _WHOLE[format](tables)
    if format in _EACH:
        return "\n".join(_EACH[format](table) for table in tables)
    raise UnknownName("format", format, FORMATS)


def format_of(path: Path) -> str:
    """The format that a file's name asks for; ClbenchError where it asks for none."""
    if path.suffix not in SUFFIXES:
        raise ClbenchError(
            f"'{path}' does not say in which format; end its name in {', '.join(SUFFIXES)}, or pass --format."
        )
    return SUFFIXES[path.suffix]


def write(content: str, path: Path) -> None:
    """Write `content` to `path`, all of it or nothing.

    Raises ClbenchError naming the path where its folder is absent or it cannot be written.
    """
    if not path.parent.is_dir():
        state = "is not a folder" if path.parent.exists() else "does not exist"
        raise ClbenchError(f"cannot write '{path}': '{path.parent}' {state}; create the folder or choose another.")
    if path.is_dir():
        raise ClbenchError(
            f"cannot write '{path}': it is a folder; name a file in it, for example '{path / 'all.csv'}'."
        )
    write_atomically(path, content.encode())
