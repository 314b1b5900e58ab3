"""Forecast: what the missing cells of a comparison will take, and what of them was left out for want of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from clbench import views
from clbench.budget import Budget, Limits
from clbench.errors import BadValue
from clbench.live import duration
from clbench.report.grid import clean

if TYPE_CHECKING:
    from clbench.means import Means
    from clbench.plan import Cell
    from clbench.stream import Stream

LEFT_OUT = 3
"""The exit code where the budget ended before all cells were done."""


def refuse(limits: Limits, dry_run: bool, processes: int) -> None:
    """Raise BadValue for what does not go together."""
    if limits.measure and not dry_run:
        raise BadValue("--measure forecasts and runs nothing; add --dry-run, or leave --measure out.")
    if limits.seconds is not None and processes > 1:
        raise BadValue("--budget goes with one process a cell; leave out --data-parallel.")


def filled(
    todo: Sequence[Cell], expected: Mapping[str, float | None], stream: Stream, device_kind: str, limits: Limits
) -> dict[str, float | None]:
    """`expected` with the seconds of cells that were never timed, where a forecast was asked for or a budget needs it.

    The table of hours, memory and disk goes to stdout where it was asked for.
    """
    tried = [cell for cell in todo if limits.measure or (limits.forecasts and expected[cell.key] is None)]
    if not tried:
        return dict(expected)
    from clbench import measure
    from clbench.executors import choose_device

    names = {cell.key: cell.name.rpartition(" seed ")[0] for cell in tried}
    _say(f"Trying a few steps of {', '.join(dict.fromkeys(names.values()))}.")
    found = measure.rows(tried, stream, choose_device(device_kind))
    for name, reason in {names[key]: one.reason for key, one in found.items() if one.seconds is None}.items():
        _say(f"{name} could not be tried, so that its time is unknown: {reason}")
    known = {key: found[key].seconds if seconds is None else seconds for key, seconds in expected.items()}
    if limits.measure:
        typer.echo("\n".join([measure.TITLE, views.columns(measure.told(todo, found, known)), ""]))
    return known


def batches(
    cells: Sequence[Cell],
    todo: Sequence[Cell],
    expected: Mapping[str, float | None],
    limits: Limits,
    means: Means,
) -> tuple[Iterator[list[Cell]], list[Cell]]:
    """What to run at once, one batch after another, and the cells left out so far, whose list grows meanwhile.

    Without a budget one batch of all cells, those that are finished among them.
    """
    if limits.seconds is None:
        return iter([list(cells)]), []
    budget = Budget(limits.seconds, 1 if means.executor == "inline" else means.workers or 1)
    return budget.batches(todo, expected), budget.left_out


def foretell(todo: Sequence[Cell], expected: Mapping[str, float | None], limits: Limits, means: Means) -> None:
    """A sentence on what the budget will not suffice for, if every cell takes what is expected."""
    if limits.seconds is None:
        return
    passed = [0.0]
    workers = 1 if means.executor == "inline" else means.workers or 1
    budget = Budget(limits.seconds, workers, now=lambda: passed[0])
    for batch in budget.batches(todo, expected):
        passed[0] += budget.together(expected[cell.key] or 0.0 for cell in batch)
    if budget.left_out:
        tell_left_out(budget.left_out, expected, limits)


def tell_left_out(left: Sequence[Cell], expected: Mapping[str, float | None], limits: Limits) -> None:
    """A sentence on what the budget does not suffice for."""
    needed = sum(expected[cell.key] or 0.0 for cell in left)
    names = ", ".join(cell.name for cell in left[:5]) + (f" and {len(left) - 5} more" if left[5:] else "")
    _say(
        f"{len(left)} cell{'s' if len(left) != 1 else ''} left out, which would take about {duration(needed)} and "
        f"would not end within {duration(limits.seconds or 0.0)}: {names}; the same command goes on with them."
    )


def _say(text: str) -> None:
    typer.echo(clean(text), err=True)
