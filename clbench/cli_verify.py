"""The verify command: our figures against published ones."""

from __future__ import annotations

from typing import Annotated

import typer

from clbench.errors import ClbenchError, UnknownName
from clbench.options import Published, StorePath, SuiteName, existing


def verify(
    suite: SuiteName,
    format: Annotated[
        str, typer.Option("--format", metavar="text|csv|json|markdown", help="How to print it.")
    ] = "text",
    method: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="Only figures of it; again for more.")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option("--backbone", metavar="NAME", help="Only figures of it; again for more.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also figures of backbones that were not run here.")
    ] = False,
    store: StorePath = None,
    published: Published = False,
) -> None:
    """Hold a suite's runs against published figures: ours, theirs, the difference, and what the protocols differ in.

    A figure that is not reached is a finding, not an error: the exit code is 0 unless the command is wrongly asked.
    """
    from clbench import catalog, views
    from clbench.report import verdicts
    from clbench.verify import checks, only

    if format not in verdicts.FORMATS:
        raise UnknownName("format", format, verdicts.FORMATS)
    references = catalog.suite(suite).references
    if not references:
        having = ", ".join(sorted(name for name in catalog.suites() if catalog.suite(name).references))
        raise ClbenchError(f"no published figure is listed for '{suite}'; there are some for {having}.")
    held = existing(store)
    loaded = held.load(suite, published)
    if loaded.records:
        (shelf,) = views.shelves(held, [suite], published)
        records, stale = shelf.records, shelf.stale
    else:
        views.problems(loaded)
        records, stale = (), frozenset()
    found = checks(suite, references, records, stale=stale, everything=everything or bool(backbone))
    left_out = len({id(reference) for reference in references} - {id(check.reference) for check in found})
    asked = only(found, method or (), backbone or ())
    if not asked:
        raise ClbenchError(
            "none of these methods has a published figure with these backbones; leave one of the two out."
        )
    typer.echo(verdicts.render(asked, format), nl=False)
    if left_out:
        typer.echo(f"{left_out} figures of backbones that were not run here are left out; see --all.", err=True)
