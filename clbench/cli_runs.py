"""The commands about runs one by one: compare, rerun, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clbench.imports import SYSTEMS
from clbench.options import Deterministic, Format, Published, StorePath, TrustRemoteCode, existing, root

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


def rerun(
    record: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE", help="As 'clbench compare' names runs, or the JSON file of a record."),
    ],
    method: Annotated[
        str, typer.Option(metavar="FILE.py:CLASS", help="Where the method is, if it is not a listed one.")
    ] = "",
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Where the suite's files lie, if it reads any.")
    ] = None,
    backbone: Annotated[str, typer.Option(metavar="NAME@PATH", help="Where the backbone's weights lie.")] = "",
    trust_remote_code: TrustRemoteCode = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to learn; the recorded kind when not given.")
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; as many as recorded when not given.")
    ] = None,
    deterministic: Deterministic = False,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the repetition in this store; it is removed otherwise.")
    ] = None,
    store: StorePath = None,
    published: Published = False,
    format: Format = "text",
) -> None:
    """Make a run again from its record, and say what differs and whether it came to the same.

    The record itself is only read. Exit code 0: bit-identical, the same scores, or statistically the same; 1:
    different; 2: wrongly asked.
    """
    from clbench import rerun as repeating
    from clbench.errors import UnknownName
    from clbench.report import repeated

    if format not in repeated.FORMATS:
        raise UnknownName("format of a repetition", format, repeated.FORMATS)
    found, outcomes = repeating.recorded(record, root(store), published)
    terms = repeating.Terms(
        method=method,
        folder=from_,
        backbone=backbone,
        remote_code=trust_remote_code,
        device=device,
        threads=threads,
        deterministic=deterministic,
    )
    repetition = repeating.rerun(found, outcomes, terms, keep)
    typer.echo(repeated.render(repetition, format), nl=False)
    raise typer.Exit(int(repetition.sameness == "different"))


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
