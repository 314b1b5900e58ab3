"""Page: tables, figures and facts of suites as one HTML file that opens without a network."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from markupsafe import Markup

from clbench import metrics
from clbench.errors import ClbenchError
from clbench.files import write_atomically
from clbench.metrics import Undefined
from clbench.protocol import METHOD_TERMS
from clbench.record import Record
from clbench.report import charts, tree_notes, trees, verdicts
from clbench.report.figures import Figure, figures
from clbench.report.grid import DASH, Cell, Grid, brief, clean, grid
from clbench.report.palette import Style, styles
from clbench.report.series import Series, series, told_apart
from clbench.row import Row
from clbench.table import Group, Table
from clbench.verify import Check

METHOD = 1
"""The column of a grid that names the row."""
LARGEST = 500_000
"""Characters of a figure that the page still holds; a larger one would make it slow to open."""
ERRORS = 1
"""Vega's level of logging errors alone: it would warn of each figure that a filter leaves empty."""
NAMED = 3
"""How many tied rows a sentence names."""
SHOWN = "shown"
"""The parameter of a chart that holds the labels of the rows to show, or false for all."""
_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}
_TREES = {
    "tree": (
        "The tree of past tasks",
        "Tasks that the method found alike share a branch. At a joint stand the layer that split the group and how far "
        "its tasks lie from their mean there.",
    ),
    "growth": ("How the tree grew", "The tree before each task was learned, in the order of learning."),
    "pulls": (
        "Past tasks chosen while learning",
        "In what share of the steps a task was compared with each past task: a row of panels a layer, a column a "
        "learned task, in it epoch by epoch. White: there was no such past task yet.",
    ),
}


@dataclass(frozen=True)
class Section:
    """What the page tells of one table."""

    table: Table
    groups: tuple[Group, ...]
    """The runs behind its rows."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Key → address of the record's file, relative to the page; a record without one is named by its key."""
    checks: tuple[Check, ...] = ()
    """Published figures beside the rows."""

    @property
    def slug(self) -> str:
        """For file names."""
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', self.table.suite)}-{self.table.suite_hash}"

    @cached_property
    def grid(self) -> Grid:
        """The table as it is shown."""
        return grid(self.table)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Of the table's rows, no two the same; those of `series` are among them."""
        return tuple(told_apart([clean(cells[METHOD].text) for cells in self.grid.lines]))

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """The rows that have finished runs."""
        return series(self.groups)

    @property
    def records(self) -> list[Record]:
        """All runs of its rows."""
        return [record for group in self.groups for record in group.records]


def page(sections: Sequence[Section], order: Sequence[str] = ()) -> str:
    """The whole page. `order` are the listed methods in their order, which gives them their colours."""
    look = _styles(sections, order)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("page.html.j2")).render(
        sections=[_facts(section, look) for section in sections],
        method_column=METHOD,
        css=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
        library=Markup(charts.library()),
        options=Markup(json.dumps({**charts.EMBED, "renderer": "svg", "logLevel": ERRORS})),
    )


def write(sections: Sequence[Section], folder: Path, order: Sequence[str] = (), static: bool = False) -> list[Path]:
    """Write `index.html`, and with `static` a PNG and an SVG of every figure below `figures/`; returns the paths.

    Raises ClbenchError naming the path where it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ClbenchError(f"cannot write the page into '{folder}': it is a file; name a folder.")
    contents = {"index.html": page(sections, order).encode()}
    if static:
        look = _styles(sections, order)
        for section in sections:
            for figure in [*figures(section.series, look), *_tree_figures(section)[0]]:
                path = f"figures/{section.slug}-{figure.name}"
                contents[f"{path}.png"], contents[f"{path}.svg"] = charts.png(figure.chart), charts.svg(figure.chart)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _text(name: str) -> str:
    return files("clbench.report").joinpath(name).read_text(encoding="utf-8")


def _styles(sections: Sequence[Section], order: Sequence[str]) -> dict[str, Style]:
    return styles({row.label: row.name for section in sections for row in section.series}, order)


def _facts(section: Section, look: Mapping[str, Style]) -> dict[str, Any]:
    """What the template needs of one section, in words."""
    table, shown = section.table, section.grid
    drawn, unread = _tree_figures(section)
    return {
        "suite": clean(table.suite),
        "differs": clean(table.differs),
        "caption": shown.caption,
        "score": clean(table.score_name),
        "headline": _headline(section),
        "notices": [clean(str(words)) for words in section.records[0].suite_protocol.get("marks", ())],
        "headings": shown.headings,
        "lines": [
            {
                "label": label,
                "method": row.method,
                "style": look.get(label),
                "status": row.status,
                "cells": [{**vars(cell), "text": clean(cell.text), "value": value(cell)} for cell in cells],
                "marks": ",".join(row.marks),
            }
            for label, row, cells in zip(section.labels, table.rows, shown.lines, strict=True)
        ],
        "methods": sorted({row.method for row in table.rows}),
        "footnotes": shown.footnotes,
        "marks": _marks(section),
        "verdicts": _verdicts(section),
        "figures": [_figure(figure) for figure in figures(section.series, look)],
        "trees": [_figure(figure) for figure in drawn],
        "unread": unread,
        "protocol": _protocol(section),
        "environments": _environments(section.records),
        "runs": [_run(section, group, record) for group in section.groups for record in group.records],
    }


def _marks(section: Section) -> dict[str, Any]:
    """The further scores of written answers after the last task, mean over tasks and seeds, and the suite's floor."""
    rows = [(row.label, [run for run in row.runs if run.other_scores]) for row in section.series]
    rows = [(label, runs) for label, runs in rows if runs]
    if not rows:
        return {}
    first = rows[0][1][0]
    names = sorted(first.other_scores)
    return {
        "names": [_term(name) for name in names],
        "floor": f"{100 * fmean(first.floors):.2f}" if first.floors else "",
        "rows": [
            (label, [_after_last([run.other_scores.get(name, ()) for run in runs]) for name in names])
            for label, runs in rows
        ],
    }


def _after_last(matrices: Sequence[Sequence[Sequence[float | None]]]) -> str:
    """The mean of the last rounds, in percent."""
    values = [score for matrix in matrices if matrix for score in matrix[-1] if score is not None]
    return f"{100 * fmean(values):.2f}" if values else DASH


def _verdicts(section: Section) -> dict[str, Any]:
    """Published figures beside ours."""
    if not section.checks:
        return {}
    lines, notes = verdicts.grid(section.checks)
    return {
        "headings": verdicts.HEADINGS,
        "lines": lines,
        "notes": notes,
        "summary": verdicts.summary(section.checks),
    }


def value(cell: Cell) -> float | None:
    """The number a cell begins with, to sort by; None where it has none.

    >>> [value(Cell(text)) for text in ("96.81 ± 0.56 (3)", "1,234", "25.87k", "-3.05", "1.2e-06", "–", "failed")]
    [96.81, 1234.0, 25870.0, -3.05, 1.2e-06, None, None]
    """
    found = re.match(r"(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)([kMG]?)", cell.text)
    return float(found[1].replace(",", "")) * _SUFFIXES.get(found[2], 1.0) if found else None


def _headline(section: Section) -> list[str]:
    """Which row is first, and which is among those that keep the suite's protocol."""
    rows = zip(section.labels, section.table.rows, strict=True)
    scored = [(label, row) for label, row in rows if isinstance(row.rank, int)]
    departing = {row.label for row in section.series if row.departs}
    strict = [pair for pair in scored if pair[0] not in departing]
    sentences = [f"First: {_praise(section.table, *scored[0])}"] if scored else []
    if strict and strict[0] is not scored[0]:
        sentences.append(f"First of those that keep to the suite's protocol: {_praise(section.table, *strict[0])}")
    return sentences


def _praise(table: Table, label: str, row: Row) -> str:
    spread = "" if isinstance(row.avg_accuracy_std, Undefined) else f" ± {row.avg_accuracy_std:.2f}"
    seeds = f"{row.n_seeds} seed{'s' if row.n_seeds != 1 else ''}"
    words = f"{label}, with {row.avg_accuracy_mean:.2f}{spread} % average {clean(table.score_name)} over {seeds}"
    if not isinstance(row.train_seconds_mean, Undefined):
        words += f" in {brief(row.train_seconds_mean)} s of training"
    if not isinstance(row.overhead, Undefined):
        words += f", per sample {row.overhead:.2f} times as long as {clean(table.reference)}"
    equals = ", ".join(clean(other) for other in row.tied_with[:NAMED])
    equals += f" and {more} more" if (more := len(row.tied_with) - NAMED) > 0 else ""
    return f"{words}. A paired test cannot tell it from {equals}." if equals else f"{words}."


def _figure(figure: Figure) -> dict[str, Any]:
    """A figure whose chart's title stands in the page's own words, and whose rows can be filtered."""
    spec = figure.chart.to_dict()
    spec.pop("title", None)
    if figure.by_row:
        spec["params"] = [{"name": SHOWN, "value": False}, *spec.get("params", [])]
        spec["transform"] = [{"filter": f"!{SHOWN} || indexof({SHOWN}, datum.row) >= 0"}, *spec.get("transform", [])]
    if figure.fluid:
        spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    fits = len(text) <= LARGEST
    return {"title": figure.title, "caption": figure.caption, "spec": Markup(text) if fits else ""}


def _tree_figures(section: Section) -> tuple[list[Figure], list[str]]:
    """The tree of the best row of each method that recorded one, of its first seed; and which could not be read."""
    drawn: list[Figure] = []
    unread: list[str] = []
    holders = [row for row in section.series if tree_notes.NOTE in row.runs[0].notes]
    best = {row.method: row for row in reversed(holders)}
    for row in (row for row in holders if row is best[row.method]):
        run = row.runs[0]
        try:
            found = trees.charts(run)
        except ClbenchError as error:
            unread.append(str(error))
            continue
        for name, chart in found.items():
            title, caption = _TREES[name]
            heading = f"{title}: {row.label}, seed {run.seed}"
            drawn.append(Figure(f"{name}-{run.key}", heading, caption, chart, fluid=False, by_row=False))
    return drawn, unread


def _protocol(section: Section) -> dict[str, Any]:
    """The suite's card, and the terms that methods may change, row by row."""
    card = section.records[0].suite_protocol
    terms = [term for term in METHOD_TERMS if term in card]
    return {
        "fixed": [(_term(term), _word(card[term])) for term in card if term not in METHOD_TERMS],
        "terms": [_term(term) for term in terms],
        "suite": [_word(card[term]) for term in terms],
        "rows": [
            (row.label, [(_word(run.get(term)), run.get(term) != card[term]) for term in terms])
            for row in section.series
            for run in [row.runs[0].protocol]
        ],
    }


def _environments(records: Sequence[Record]) -> list[dict[str, str]]:
    """The places that the runs were made in, each with the number of its runs."""
    places = Counter(tuple(_environment(record).items()) for record in records)
    return [{"runs": str(count), **dict(place)} for place, count in places.items()]


def _environment(record: Record) -> dict[str, str]:
    origin = record.origin
    commit = f"{(origin.commit or 'unknown')[:12]}{', changed' if origin.dirty else ''}"
    place = {"device": origin.device, "precision": origin.precision, "threads": str(origin.threads)}
    software = {"clbench": origin.clbench, "commit": commit, **dict(sorted(origin.versions.items()))}
    return {name: clean(words) for name, words in {**place, **software}.items()}


def _run(section: Section, group: Group, record: Record) -> dict[str, Any]:
    score = metrics.average_accuracy(record.scores)
    return {
        "label": clean(group.label),
        "seed": record.seed,
        "status": "stale" if group.stale else record.status,
        "score": "" if isinstance(score, Undefined) else f"{100 * score:.2f}",
        "seconds": brief(sum(cost.train_seconds for cost in record.costs)) if record.costs else "",
        "started": clean(record.origin.started[:16].replace("T", " ")),
        "key": clean(record.key),
        "link": section.links.get(record.key),
    }


def _term(name: str) -> str:
    return clean(name.replace("_", " "))


def _word(value: Any) -> str:
    """A value of a protocol card, as a person says it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, list | tuple):
        return clean(str(value))
    words = [str(word) for word in value]
    return clean((" " if all(word.endswith(".") for word in words) else ", ").join(words) or "none")
