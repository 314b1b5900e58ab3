"""Arrange: which rows of tables are shown, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.row import Column, Row, columns
from clbench.table import REFERENCE_METHOD, Table

if TYPE_CHECKING:
    from clbench.suite import Contender


def only(
    tables: Sequence[Table],
    *,
    methods: Collection[str] = (),
    backbones: Collection[str] = (),
    protocols: Collection[str] = (),
) -> list[Table]:
    """Tables of these backbones and of protocols whose hash begins so, and of them the rows of these methods.

    A method is named with its variant in brackets or, for all its variants, without. Empty means all. Ranks and ties
    stay those among all rows. UnknownName for a name that fits nothing.
    """
    chosen = list(tables)
    for name in backbones:
        _refuse(name, {table.backbone for table in tables}, "backbone in these tables")
    for prefix in protocols:
        if not any(table.suite_hash.startswith(prefix) for table in tables):
            raise UnknownName("protocol in these tables", prefix, {table.suite_hash for table in tables})
    if backbones:
        chosen = [table for table in chosen if table.backbone in backbones]
    if protocols:
        chosen = [table for table in chosen if table.suite_hash.startswith(tuple(protocols))]
    if methods:
        known = {name for table in chosen for row in table.rows for name in (row.method, row.label)}
        for name in methods:
            _refuse(name, known, "method in these tables")
        chosen = [_of_methods(table, methods) for table in chosen]
    return [table for table in chosen if table.rows]


def _refuse(name: str, known: Collection[str], kind: str) -> None:
    if name not in known:
        raise UnknownName(kind, name, known)


def _of_methods(table: Table, methods: Collection[str]) -> Table:
    rows = tuple(row for row in table.rows if row.method in methods or row.label in methods)
    marks = {mark for row in rows for mark in row.marks}
    return replace(table, rows=rows, footnotes=tuple(note for note in table.footnotes if note[0] in marks))


def ordered(tables: Sequence[Table], word: str) -> list[Table]:
    """The tables with their rows sorted by a column, the best first; words and numbers without a better end upwards.

    `word` is a column's name, of which `avg_` and `_mean` may be left out; a '-' before it turns the order round.
    Rows without a value come last either way. UnknownName for what is no column.
    """
    name, backwards = word.removeprefix("-"), word.startswith("-")
    return [replace(table, rows=_sorted(table.rows, _column(name, table.reference), backwards)) for table in tables]


def _column(name: str, reference: str = REFERENCE_METHOD) -> Column:
    known = {_short(column.name): column for column in columns(reference)}
    known |= {column.name: column for column in columns(reference)}
    if name not in known:
        raise UnknownName("column to sort by", name, {_short(column) for column in known})
    return known[name]


def _short(name: str) -> str:
    return name.removeprefix("avg_").removesuffix("_mean")


def _sorted(rows: Sequence[Row], column: Column, backwards: bool) -> tuple[Row, ...]:
    def value(row: Row) -> Any:
        return getattr(row, column.attribute)

    def empty(row: Row) -> bool:
        return isinstance(value(row), Undefined) or value(row) in ("", ())

    downwards = (column.better == "high") != backwards
    filled = sorted((row for row in rows if not empty(row)), key=value, reverse=downwards)
    return (*filled, *(row for row in rows if empty(row)))


def headed(tables: Iterable[Table], own: Mapping[str, str]) -> tuple[Table, ...]:
    """The tables, of which those of another backbone than `own` says of their suite name it in their heading."""
    return tuple(_headed(table, own.get(table.suite, "").partition("@")[0]) for table in tables)


def _headed(table: Table, own: str) -> Table:
    if (
        not own
        or table.backbone in ("", own)
        or "backbone" in {word.split(" ")[0] for word in table.differs.split(", ")}
    ):
        return table
    return replace(table, differs=", ".join(filter(None, (table.differs, f"backbone {table.backbone}"))))


def with_missing(
    tables: Sequence[Table], suite: str, contenders: Iterable[Contender], records: Iterable[Record]
) -> list[Table]:
    """Tables of which the largest of `suite` also has a row for each contender of that suite without any record."""
    mine = [record for record in records if record.suite == suite]
    absent = [contender for contender in contenders if not any(_is_run_of(record, contender) for record in mine)]
    places = [i for i, table in enumerate(tables) if table.suite == suite]
    made = list(tables)
    if places and absent:
        place = max(places, key=lambda i: len(tables[i].rows))
        rows = (_missing(tables[place], contender) for contender in absent)
        made[place] = replace(tables[place], rows=(*tables[place].rows, *rows))
    return made


def _is_run_of(record: Record, contender: Contender) -> bool:
    """Whether a record is of a contender, by the method and what was changed of it; a label says that in short."""
    if record.method != contender.method:
        return False
    if contender.label or not contender.settings:
        return record.variant == contender.label
    changed = {word.partition("=")[0] for word in record.variant.split(", ")}
    return changed == set(contender.settings) and all(
        record.params.get(field) == _plain(value) for field, value in contender.settings.items()
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing(table: Table, contender: Contender) -> Row:
    words = ", ".join(f"{field}={value}" for field, value in contender.settings.items())
    reason = Undefined("missing: no run yet")
    numbers: dict[str, Any] = {field.name: reason for field in fields(Row) if field.type in ("Number", "Count")}
    return Row(
        suite=table.suite,
        protocol=table.suite_hash,
        method=contender.method,
        variant=contender.label or words,
        n_seeds=0,
        device="",
        epochs_differ=False,
        marks=(),
        status="missing",
        reason=reason.reason,
        tied_with=(),
        **numbers,
    )
