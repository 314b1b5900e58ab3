"""Options: what several commands ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clbench.store import Store

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="See 'clbench list suites'.")]
SuiteNames = Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help="All when not given.")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Folder of the records; $CLBENCH_STORE or 'results' when not given."),
]
Published = Annotated[bool, typer.Option("--published", help="Read the published records instead of the runs.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.field=value", help="Or recipe.field=value. See 'clbench show NAME'."),
]
Log = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Append what happens to it, as JSON lines with the time.")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="tensorboard|wandb", help="Also tell this program; again for more."),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to learn.")]
Format = Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")]


def root(store: Path | None) -> Path:
    """The folder of the records."""
    return store or Path(os.environ.get("CLBENCH_STORE") or "results")


def existing(store: Path | None) -> Store:
    """The store, which must be there."""
    from clbench.store import Store

    return Store.existing(root(store))
