"""Grid: a table as the cells a reader sees, before any markup."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from clbench.metrics import Undefined
from clbench.row import Number, Row, columns
from clbench.table import Table

DASH = "–"
_BETTER = {column.attribute: column.better for column in columns("")}


@dataclass(frozen=True)
class Cell:
    """One cell: plain text, to be escaped by whoever marks it up."""

    text: str
    best: bool = False
    tied: bool = False
    """A paired test cannot tell it from the best."""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """What every format shows: a caption, a heading per column, the lines, and (mark, words) footnotes."""

    caption: str
    headings: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    footnotes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Column:
    heading: str
    attribute: str
    show: Callable[[float], str]
    of_device: bool = False
    """Seconds and memory: the best is told only among rows of one device."""


def grid(table: Table) -> Grid:
    """Lay the main columns of a table out; the leaderboard has all of them."""
    shown = _columns(table)
    bests = {column.attribute: _best(table, column) for column in shown}
    several = len(table.devices) > 1
    leader = _leader(table)
    lines = []
    for row in table.rows:
        method = Cell(f"{row.label}, on {row.device}" if several and row.device else row.label, marks=row.marks)
        numbers = [_number(row, column, bests[column.attribute]) for column in shown]
        rank = Cell(str(row.rank) if isinstance(row.rank, int) else "")
        lines.append((rank, method, _accuracy(row, leader), *numbers))
    headings = ("#", "Method", f"Average {table.score_name} % ± std (n)", *(column.heading for column in shown))
    return Grid(_caption(table), tuple(clean(text) for text in headings), tuple(lines), _footnotes(table, shown))


def clean(text: str) -> str:
    """The text on one line without control characters, which could move a terminal's cursor.

    >>> clean("a\\nb\\x1b[31m")
    'a b [31m'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def printable(text: str) -> str:
    """The text, lines and all, with a space for whatever else could move a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def as_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    r"""Readable JSON of what has no NaN, whose strings cannot move a terminal's cursor.

    >>> as_json(["\x9b1m é"])
    '[\n  "\\u009b1m é"\n]\n'
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=default)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"


def brief(number: float) -> str:
    """Three digits, without an exponent where that is readable.

    >>> [brief(x) for x in (0, 0.01234, 1.5, 12.345, 1234.5, 0.0000012)]
    ['0', '0.0123', '1.50', '12.3', '1,234', '1.2e-06']
    """
    size = abs(number)
    if number == 0 or size < 1e-3:
        return f"{number:.2g}"
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{number:,.{places}f}"


def _count(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _columns(table: Table) -> tuple[_Column, ...]:
    percent = "{:.2f}".format
    router = _Column("Router", "router_accuracy_mean", percent)
    inferring = any(not isinstance(row.router_accuracy_mean, Undefined) for row in table.rows)
    return (
        _Column("Forgetting", "forgetting_mean", percent),
        _Column("BWT", "bwt_mean", percent),
        *((router,) if inferring else ()),
        _Column("Train s", "train_seconds_mean", brief, of_device=True),
        _Column("ms/ sample", "train_seconds_per_sample", lambda s: brief(1000 * s), of_device=True),
        _Column(f"× {table.reference}", "overhead", "{:.2f}".format),
        _Column("Peak MiB", "peak_memory_mib", brief, of_device=True),
        _Column("Trained", "trainable_parameters", _count),
        _Column("Stored MiB", "stored_mib", brief),
    )


def _value(row: Row, attribute: str) -> Number:
    value: Number = getattr(row, attribute)
    return value


def _best(table: Table, column: _Column) -> float | None:
    if column.of_device and len(table.devices) > 1:
        return None
    values = [_value(row, column.attribute) for row in table.rows if row.status == "done"]
    numbers = [value for value in values if not isinstance(value, Undefined)]
    if len(set(numbers)) < 2:
        return None
    return max(numbers) if _BETTER[column.attribute] == "high" else min(numbers)


def _number(row: Row, column: _Column, best: float | None) -> Cell:
    value = _value(row, column.attribute)
    if isinstance(value, Undefined):
        return Cell(DASH)
    return Cell(column.show(value), best=row.status == "done" and value == best)


def _leader(table: Table) -> Row | None:
    """The ranked row with the highest average."""
    ranked = [row for row in table.rows if isinstance(row.rank, int)]
    # those that have a rank have an average
    return max(ranked, key=lambda row: cast(float, row.avg_accuracy_mean), default=None)


def _accuracy(row: Row, leader: Row | None) -> Cell:
    if isinstance(row.avg_accuracy_mean, Undefined):
        return Cell(DASH if row.status == "done" else row.status)
    std = DASH if isinstance(row.avg_accuracy_std, Undefined) else f"{row.avg_accuracy_std:.2f}"
    text = f"{row.avg_accuracy_mean:.2f} ± {std} ({row.n_seeds})"
    if leader is None or row.rank != leader.rank:
        return Cell(text)
    best = row.avg_accuracy_mean == leader.avg_accuracy_mean
    return Cell(text, best=best, tied=not best)


def _caption(table: Table) -> str:
    tasks = f"{table.tasks} task{'s' if table.tasks != 1 else ''}"
    parts = [table.suite, f"protocol {table.suite_hash}", table.differs, tasks, *table.devices]
    return clean(" · ".join(part for part in parts if part))


def _footnotes(table: Table, shown: Sequence[_Column]) -> tuple[tuple[str, str], ...]:
    """The table's own footnotes, then why cells are empty, then which rows were not tested."""
    notes = [(mark, clean(words)) for mark, words in table.footnotes]
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    named = [("Average", "avg_accuracy_mean"), ("±", "avg_accuracy_std")]
    finished = [row for row in table.rows if row.n_seeds]
    for heading, attribute in [*named, *((column.heading, column.attribute) for column in shown)]:
        for row in finished:
            value = _value(row, attribute)
            if isinstance(value, Undefined):
                where[value.reason, heading].append(row.label)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (reason, heading), labels in where.items():
        together[reason, tuple(labels)].append(heading)
    for (reason, rows), headings in together.items():
        whose = "every row" if len(rows) == len(finished) else ", ".join(rows)
        notes.append((DASH, clean(f"{', '.join(headings)} of {whose}: {reason}")))
    notes += [("!", clean(words)) for words in table.notices]
    if table.seeds_missing:
        notes.append(("n", clean(f"seeds that other rows have and these lack: {table.seeds_missing}")))
    if table.untested:
        notes.append(("#", clean(f"ties not tested for {table.untested}")))
    return tuple(notes)
