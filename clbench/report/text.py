"""Text: a table in the terminal."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from clbench.report.grid import Cell, clean, grid
from clbench.table import Table

WIDTH = 120
ROOMY = 110
"""From this width on, two spaces stand between columns instead of one."""
METHOD = 1
"""The column that gives way where the terminal is narrow."""


def print_text(table: Table, console: Console) -> None:
    """Print one table with its footnotes on `console`; names in it are never read as markup."""
    shown = grid(table)
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1 if console.width >= ROOMY else 0, 0, 0), pad_edge=False)
    for i, heading in enumerate(shown.headings):
        if i == METHOD:
            drawn.add_column(Text(heading), overflow="fold", min_width=14)
        else:  # numbers are never broken, headings are, between words
            width = max(len(part) for part in [*heading.split(), *(line[i].text for line in shown.lines)])
            drawn.add_column(Text(heading), justify="right", width=width)
    for line in shown.lines:
        drawn.add_row(*map(_styled, line))
    console.print(Text(shown.caption, style="bold"))
    console.print(drawn)
    for mark, words in shown.footnotes:
        console.print(Text(f"{mark}: {words}", style="dim"))


def text(table: Table, width: int = WIDTH) -> str:
    """One table as plain text of `width` columns, without colour."""
    file = io.StringIO()
    print_text(table, Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _styled(cell: Cell) -> Text:
    marks = f" [{','.join(cell.marks)}]" if cell.marks else ""
    return Text(clean(cell.text) + marks, style="bold" if cell.best else "underline" if cell.tied else "")
