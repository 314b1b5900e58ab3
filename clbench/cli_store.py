"""The commands for a store as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from clbench.options import StorePath, existing

app = typer.Typer(help="Check, merge and prune stores.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _store() -> None:
    """Check, merge and prune stores; a store is the folder of all records."""


@app.command()
def check(store: StorePath = None) -> None:
    """Compare every file with the hash that was written beside it; exit code 1 if one differs."""
    from clbench import upkeep

    found = upkeep.check(existing(store))
    _warn(found.wrong)
    typer.echo(f"{_counted(found.cells, 'record')}, {_counted(found.files, 'file')} as their manifests say.")
    if found.unlisted:
        typer.echo(f"{found.unlisted} without a manifest, published or of an older clbench: only read.")
    if found.unfinished:
        typer.echo(f"{_counted(found.unfinished, 'cell')} without a record yet.")
    typer.echo(f"{len(found.wrong)} wrong." if found.wrong else "Nothing is wrong.")
    raise typer.Exit(int(bool(found.wrong)))


@app.command()
def merge(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A store; it is left as it is.")],
    target: Annotated[Path, typer.Argument(metavar="INTO", help="The store that takes what it lacks of the first.")],
) -> None:
    """Copy what one store has and another lacks; nothing is overwritten, and exit code 1 if two records differ."""
    from clbench import upkeep
    from clbench.store import Store

    done = upkeep.merge(existing(source), Store.create(target))
    _warn(done.wrong)
    typer.echo(f"{_counted(len(done.copied), 'record')} copied, {done.same} already there, {len(done.wrong)} not.")
    if done.unfinished:
        typer.echo(f"{_counted(done.unfinished, 'cell')} without a record stay in '{source}'.")
    raise typer.Exit(int(bool(done.wrong)))


@app.command()
def prune(
    store: StorePath = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove checkpoints; what was not finished begins anew.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove what a store can do without; exit code 1 if a process is at some of it."""
    from clbench import upkeep
    from clbench.errors import BadValue

    if not checkpoints:
        raise BadValue("nothing to prune was named; pass --checkpoints.")
    done = upkeep.prune_checkpoints(existing(store), dry_run)
    _warn(f"a process is at '{path}'; its checkpoint stays." for path in done.held)
    verb = "would go" if dry_run else "removed"
    typer.echo(f"{_counted(done.checkpoints, 'checkpoint')}, {done.bytes / 2**20:.1f} MiB {verb}.")
    raise typer.Exit(int(bool(done.held)))


def _warn(sentences: Iterable[str]) -> None:
    from clbench import views

    for sentence in sentences:
        views.warn(sentence)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
