"""The command for what is kept of frozen backbones' features."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer


def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False) -> None:
    """See, or clear, features of frozen backbones that runs keep; $CLBENCH_CACHE_GIB limits them, CLBENCH_CACHE=off."""
    from clbench import views
    from clbench.featurecache import FeatureCache

    kept = FeatureCache.usual()
    if clear:
        typer.echo(f"{_mib(kept.clear())} removed from '{kept.folder}'")
        return
    entries = kept.entries()
    lines = [
        (entry.path.stem, _mib(entry.bytes), f"{datetime.fromtimestamp(entry.used, UTC):%Y-%m-%d %H:%M} UTC")
        for entry in entries
    ]
    if lines:
        typer.echo(views.columns(lines))
    total = sum(entry.bytes for entry in entries)
    typer.echo(f"{_mib(total)} of {_mib(kept.limit_bytes)} in '{kept.folder}'")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
