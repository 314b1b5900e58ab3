"""The commands for data sets on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clbench.data.cache import Report

app = typer.Typer(help="See and prepare data sets.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="See 'clbench data list'.")]


@app.callback()
def _data() -> None:
    """See and prepare data sets; $CLBENCH_DATA is where they lie, else the user's cache."""


@app.command("list")
def list_() -> None:
    """List the data sets: what is here of them, how large it is, under which licence."""
    from clbench import views
    from clbench.data.contents import CONTENTS
    from clbench.data.prepare import state

    lines = []
    for data in CONTENTS.values():
        here = state(data)
        lines.append((data.name, here.state, _size(here.bytes), data.title, data.licence))
    typer.echo(views.columns(lines))


@app.command()
def path(name: Name) -> None:
    """Print the folder of a data set, where its archive is looked for and its images lie once prepared."""
    from clbench import datafolder
    from clbench.data.contents import data_set

    typer.echo(datafolder.folder(data_set(name).name, None))


@app.command()
def prepare(
    name: Name,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="An archive or an unpacked folder; downloaded when not given."),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Shrink larger images to N pixels, for --set suite.short_side=N."),
    ] = None,
) -> None:
    """Fetch, check and decode a data set once. Stop it with Ctrl-C; a download goes on where it stopped."""
    from clbench.data import cache
    from clbench.data.prepare import prepare

    with _reporter() as report:
        prepare(name, from_, report, short_side=short_side)
    ready = cache.open(name, short_side=short_side)
    train = int(ready.is_train.sum())
    typer.echo(
        f"{name}: {train:,} training and {len(ready) - train:,} test images of {len(ready.class_names)} classes "
        f"in '{ready.folder}'; split: {ready.split}; sha256 {ready.sha256}"
    )


@contextmanager
def _reporter() -> Iterator[Report]:
    """Tell stderr how far it is: bars on a terminal, one line for each thing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    said: dict[str, object] = {}
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def report(what: str, done: int, total: int | None) -> None:
            if what not in said:
                said[what] = progress.add_task(what, total=total)
                if not console.is_terminal:
                    typer.echo(f"{what} …", err=True)
            progress.update(said[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def _size(count: int) -> str:
    """Bytes as a person says them.

    >>> _size(0), _size(169_001_437), _size(2_191_079_936)
    ('', '169 MB', '2.2 GB')
    """
    if not count:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
