"""Leaderboard: all columns of all rows as a data frame, CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clbench.metrics import Undefined
from clbench.report.grid import as_json, printable
from clbench.row import Column, Row, columns
from clbench.table import REFERENCE_METHOD, Table

if TYPE_CHECKING:
    import pandas

_DTYPES = {"Number": "float64", "Count": "Int64", "int": "Int64", "bool": "bool"}


def lines(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """One object a row: column → value; undefined is None, numbers have six significant digits.

    `marks` holds the footnotes' words, so that a line can be read alone.
    """
    names = _columns(tables)
    return [{c.name: _plain(row, c, table) for c in names} for table in tables for row in table.rows]


def frame(tables: Sequence[Table]) -> pandas.DataFrame:
    """`lines` as a data frame with the leaderboard's columns; missing where undefined."""
    import pandas  # half a second, which the other formats need not pay

    values = lines(tables)
    return pandas.DataFrame(
        {
            c.name: pandas.Series([line[c.name] for line in values], dtype=_DTYPES.get(c.kind, "str"))
            for c in _columns(tables)
        }
    )


def csv(tables: Sequence[Table]) -> str:
    """The leaderboard as CSV, empty where undefined."""
    text: str = frame(tables).to_csv(index=False, lineterminator="\n")
    return printable(text)


def to_json(tables: Sequence[Table]) -> str:
    """The leaderboard as a JSON list of objects, null where undefined."""
    return as_json(lines(tables))


def _columns(tables: Sequence[Table]) -> tuple[Column, ...]:
    return columns(tables[0].reference if tables else REFERENCE_METHOD)


def _plain(row: Row, column: Column, table: Table) -> Any:
    value = getattr(row, column.attribute)
    if isinstance(value, Undefined):
        return None
    if column.attribute == "marks":
        words = dict(table.footnotes)
        return " | ".join(f"{mark}: {words[mark]}" for mark in value)
    if isinstance(value, tuple):
        return "; ".join(value)
    return float(f"{value:.6g}") if isinstance(value, float) else value
