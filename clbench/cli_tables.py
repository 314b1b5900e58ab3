"""The commands that compare what was run: table, leaderboard, stats, gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clbench.errors import ClbenchError, UnknownName
from clbench.options import Published, StorePath, SuiteName, SuiteNames, existing

if TYPE_CHECKING:
    from clbench.report.gallery import Chapter
    from clbench.significance import Contest
    from clbench.table import Table
    from clbench.views import Shelf

Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="NAME", help="Only these rows: a method, or one with its variant."),
]
Backbones = Annotated[list[str] | None, typer.Option("--backbone", metavar="NAME", help="Only tables of it.")]
Protocols = Annotated[
    list[str] | None, typer.Option("--protocol", metavar="HASH", help="Only tables of it; its first letters do.")
]
Sort = Annotated[
    str | None,
    typer.Option(
        "--sort", metavar="COLUMN", help="Best first, as in '--sort forgetting'; '-forgetting' turns it round."
    ),
]
FormatName = Annotated[
    str | None, typer.Option("--format", metavar="text|csv|markdown|latex|json", help="How to print it.")
]


def table(
    suite: SuiteName,
    format: FormatName = "text",
    sort: Sort = None,
    method: Methods = None,
    backbone: Backbones = None,
    protocol: Protocols = None,
    store: StorePath = None,
    published: Published = False,
) -> None:
    """Print the comparison of a suite's methods from a store."""
    from clbench import views

    name = _known(format or "text")
    shelves = views.shelves(existing(store), [suite], published)
    made = _chosen(shelves, sort, method, backbone, protocol)
    views.print_tables(made, name)


def leaderboard(
    suite: SuiteNames = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; printed when not given.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="text|csv|markdown|latex|json", help="As FILE ends (.csv, .md, .tex, .json), else csv."
        ),
    ] = None,
    sort: Sort = None,
    method: Methods = None,
    backbone: Backbones = None,
    protocol: Protocols = None,
    store: StorePath = None,
    published: Published = False,
) -> None:
    """Make the tables of suites as one file; CSV and JSON have all columns."""
    from clbench import views
    from clbench.report import render

    name = _known(format or (render.format_of(out) if out else "csv"))
    shelves = views.shelves(existing(store), suite or (), published)
    made = _chosen(shelves, sort, method, backbone, protocol)
    if out is None:
        typer.echo(render.render(made, name), nl=False)
        return
    render.write(render.render(made, name), out)
    rows = sum(len(table.rows) for table in made)
    typer.echo(f"{rows} row{'s' if rows != 1 else ''} in '{out}'", err=True)


def _known(format: str) -> str:
    from clbench.report.render import FORMATS

    if format not in FORMATS:
        raise UnknownName("format", format, FORMATS)
    return format


def _chosen(
    shelves: Sequence[Shelf],
    sort: str | None,
    methods: list[str] | None,
    backbones: list[str] | None,
    protocols: list[str] | None,
) -> list[Table]:
    from clbench import arrange, views

    made: list[Table] = []
    for shelf in shelves:
        made += arrange.with_missing(shelf.tables, shelf.suite, views.contenders(shelf.suite), shelf.records)
    made = arrange.only(made, methods=methods or (), backbones=backbones or (), protocols=protocols or ())
    return arrange.ordered(made, sort) if sort else made


def stats(
    suite: Annotated[list[str], typer.Argument(metavar="SUITE...", help="See 'clbench list suites'.")],
    method: Methods = None,
    test: Annotated[
        str, typer.Option("--test", metavar="bootstrap|mcnemar|wilcoxon", help="Which paired test.")
    ] = "bootstrap",
    format: Annotated[str, typer.Option("--format", metavar="text|csv|json", help="How to print it.")] = "text",
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="FILE", help="Draw the mean ranks: .png or .svg.")
    ] = None,
    store: StorePath = None,
    published: Published = False,
) -> None:
    """Say which methods of a suite differ: every pair with its interval, p and Holm's p; nothing is trained.

    Several suites: wilcoxon compares over them, the others each on its own.
    """
    from clbench import significance, views
    from clbench.report import pairs

    if test not in significance.TESTS:
        raise UnknownName("test", test, significance.TESTS)
    if format not in pairs.FORMATS:
        raise UnknownName("format of statistics", format, pairs.FORMATS)
    if draw is not None and draw.suffix not in (".png", ".svg"):
        raise ClbenchError(f"'{draw}' is neither .png nor .svg; name a file that ends so.")
    shelves = views.shelves(existing(store), suite, published)
    contests = [contest for shelf in shelves for contest in _contests(shelf, method or ())]
    compared = significance.compare(contests, test)
    if not any(comparison.pairs for comparison in compared):
        raise ClbenchError("there are no two methods to compare; run another one, or name fewer with --method.")
    typer.echo(pairs.render(compared, contests, lambda: significance.rankings(contests), format), nl=False)
    if draw is not None:
        _draw(contests, draw)


def _contests(shelf: Shelf, methods: Sequence[str]) -> list[Contest]:
    from clbench import significance

    found = significance.contests(shelf.records, shelf.stale, shelf.loaded.outcomes)
    if not found:
        raise ClbenchError(f"no finished run of '{shelf.suite}' is of today's source; run the suite again.")
    known = {row for contest in found for row in contest.rows}
    for name in methods:
        if not any(_means(name, row) for row in known):
            raise UnknownName(f"method among the finished runs of '{shelf.suite}'", name, known)
    if methods:
        found = [c.only([row for row in c.rows if any(_means(name, row) for name in methods)]) for c in found]
    return [contest for contest in found if contest.rows]


def _means(name: str, row: str) -> bool:
    """Whether a name is a row's, with or without its variant and device."""
    return name == row or row.startswith((f"{name} (", f"{name} on "))


def _draw(contests: Sequence[Contest], path: Path) -> None:
    from clbench import significance
    from clbench.files import write_atomically
    from clbench.report import charts, ranks

    found = significance.rankings(contests)
    if len(found) != 1:
        reason = (
            "several suites; name one, or three and more that share methods" if found else "fewer than three methods"
        )
        raise ClbenchError(f"no mean ranks to draw in '{path}': these are {reason}.")
    chart = ranks.critical_difference(*found[0])
    write_atomically(path, charts.png(chart) if path.suffix == ".png" else charts.svg(chart))
    typer.echo(f"drawn: {path}", err=True)


def gallery(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.md", help="The page; pictures go to 'figures' beside it.")
    ],
    suite: SuiteNames = None,
    store: StorePath = None,
    published: Published = False,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Whether to draw, or leave the pictures as they are.")
    ] = True,
) -> None:
    """Write the tables and charts of suites as a Markdown page."""
    from clbench import significance, views
    from clbench.report import gallery, ranks

    shelves = views.shelves(existing(store), suite or (), published)
    contests = {
        shelf.suite: significance.contests(shelf.records, shelf.stale, shelf.loaded.outcomes) for shelf in shelves
    }
    together = significance.over_suites([contest for those in contests.values() for contest in those])
    over_all = (
        {"ranks": ranks.critical_difference("suites together", together)}
        if isinstance(together, significance.Ranking)
        else {}
    )
    chapters = [_chapter(shelf, contests[shelf.suite]) for shelf in shelves]
    drawn = gallery.write(chapters, over_all, out, pictures)
    typer.echo(f"'{out}' and {drawn} pictures", err=True)


def _chapter(shelf: Shelf, contests: Sequence[Contest]) -> Chapter:
    from clbench import catalog, significance
    from clbench.report import figures, gallery, ranks
    from clbench.table import exams

    order = list(catalog.methods())
    finished = {contest.suite_hash: contest for contest in contests}
    entries = []
    for table, groups in zip(shelf.tables, exams(shelf.records, shelf.stale).values(), strict=True):
        records = tuple(record for group in groups for record in group.records)
        drawn, captions = {}, {}
        if table.suite_hash in finished:
            for name, chart, caption in figures.gallery_figures(records, order=order, stale=shelf.stale):
                drawn[name], captions[name] = chart, caption
            ranked = significance.over_tasks(finished[table.suite_hash])
            if isinstance(ranked, significance.Ranking):
                drawn["ranks"] = ranks.critical_difference(shelf.suite, ranked)
        entries.append(gallery.Entry(table, records, drawn, captions))
    listed = catalog.suites()
    return gallery.Chapter(shelf.suite, listed[shelf.suite].line if shelf.suite in listed else "", tuple(entries))


COMMANDS = (table, leaderboard, stats, gallery)
