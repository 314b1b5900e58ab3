"""The report command: which records go on the page, and where they lie beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from clbench.options import Published, StorePath, SuiteNames, existing

if TYPE_CHECKING:
    from clbench.report.page import Section
    from clbench.views import Shelf


def report(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the page, index.html.")],
    suite: SuiteNames = None,
    store: StorePath = None,
    published: Published = False,
    static: Annotated[bool, typer.Option("--static", help="Also write every figure as PNG and SVG.")] = False,
) -> None:
    """Write tables, figures and protocols of suites as one page that opens without a network."""
    from clbench import catalog, views
    from clbench.report import page

    held = existing(store)
    shelves = views.shelves(held, suite or (), published)
    sections = [section for shelf in shelves for section in _sections(shelf, _links(shelf, held.root, out, published))]
    first, *pictures = page.write(sections, out, list(catalog.methods()), static)
    more = f" and {len(pictures)} pictures" if pictures else ""
    typer.echo(f"'{first}', {first.stat().st_size / 2**20:.1f} MiB{more}", err=True)


def _sections(shelf: Shelf, links: dict[str, str]) -> Iterator[Section]:
    """One for each table of a suite."""
    from clbench import catalog
    from clbench.report.page import Section
    from clbench.table import exams
    from clbench.verify import checks

    listed = catalog.suite(shelf.suite).references if shelf.suite in catalog.suites() else ()
    found = checks(shelf.suite, listed, shelf.records, stale=shelf.stale, everything=False) if listed else []
    behind = exams(shelf.records, shelf.stale).values()
    for table, groups in zip(shelf.tables, behind, strict=True):
        mine = tuple(check for check in found if check.suite_hash == table.suite_hash)
        yield Section(table, tuple(groups), links, mine)


def _links(shelf: Shelf, root: Path, out: Path, published: bool) -> dict[str, str]:
    """Key → address of the record relative to the page; none where the page does not lie beside or in the store."""
    if not out.resolve().is_relative_to(root.resolve().parent):
        return {}
    paths = {
        key: outcomes.with_suffix(".json") if published else outcomes.with_name("record.json")
        for key, outcomes in shelf.loaded.folders.items()
    }
    return {key: quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()) for key, path in paths.items()}
