"""The commands about runs one by one: compare, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clbench.imports import SYSTEMS
from clbench.options import Format, Published, StorePath, existing, root

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="SUITE, METHOD, seedN or the start of a key; several joined by '/'.")
]


def compare(
    first: Run,
    second: Run,
    format: Format = "text",
    store: StorePath = None,
    published: Published = False,
) -> None:
    """Explain two runs: what differs, who wins each task and whether by chance, what they cost."""
    from clbench import views
    from clbench.differences import explain
    from clbench.errors import ClbenchError, UnknownName
    from clbench.report import explained

    if format not in explained.FORMATS:
        raise UnknownName("format of a comparison", format, explained.FORMATS)
    held = existing(store)
    loaded = held.load(published=published)
    views.problems(loaded)
    one, other = (views.pick(loaded, held, run) for run in (first, second))
    if one.key == other.key:
        raise ClbenchError(f"'{first}' and '{second}' are the same run, {views.run_name(one)}; name another.")
    typer.echo(explained.render(explain(one, other, loaded.outcomes), format), nl=False)


def import_(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=f"One of {', '.join(SYSTEMS)}.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or folder in which it wrote its results.")],
    suite: Annotated[
        str, typer.Option(metavar="NAME", help="Beside which suite's tables to show them; the data set if not given.")
    ] = "",
    method: Annotated[str, typer.Option(metavar="NAME", help="What the method was, where the files do not tell.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="What the seed was, where the files do not tell.")] = None,
    store: StorePath = None,
) -> None:
    """Take results of another system into the store, marked as imported; what is unknown of them stays unknown.

    They stand in tables of their own, METHOD@SYSTEM, never among our rows.
    """
    from clbench import views
    from clbench.imports.records import imported
    from clbench.store import Store

    records = imported(system, path, suite=suite, method=method, seed=seed)
    held = Store.create(root(store))
    for record in records:
        held.cell(record.suite, record.method, record.key).save(record, {})
        typer.echo(f"{views.run_name(record)}, from {record.notes['imported']['from']}")
    suites = ", ".join(f"'clbench table {name}'" for name in dict.fromkeys(record.suite for record in records))
    typer.echo(f"{len(records)} run{'s' if len(records) != 1 else ''} imported; see {suites}.", err=True)
