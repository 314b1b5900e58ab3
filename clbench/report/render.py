"""Render: tables in the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clbench.errors import UnknownName
from clbench.report.leaderboard import csv, to_json
from clbench.report.markup import latex, markdown
from clbench.report.text import text
from clbench.table import Table

_WHOLE: dict[str, Callable[[Sequence[Table]], str]] = {"csv": csv, "json": to_json}
_EACH: dict[str, Callable[[Table], str]] = {"text": text, "markdown": markdown, "latex": latex}

FORMATS = ("text", "csv", "markdown", "latex", "json")


def render(tables: Sequence[Table], format: str) -> str:
    """The tables as one string; UnknownName for a format that is not in FORMATS.

    Text is plain, 120 columns wide; `text.print_text` prints it on a console with colours and its width.
    """
    if format in _WHOLE:
        return _WHOLE[format](tables)
    if format in _EACH:
        return "\n".join(_EACH[format](table) for table in tables)
    raise UnknownName("format", format, FORMATS)
