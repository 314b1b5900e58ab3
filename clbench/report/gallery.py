"""Gallery: the tables and charts of a store as one Markdown page with pictures beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from altair.typing import ChartType
from PIL import Image

from clbench.files import write_atomically
from clbench.record import Record
from clbench.report import charts
from clbench.report.markup import escape_markdown, markdown
from clbench.table import Table

FOLDER = "figures"
"""Of the pictures, beside the page."""
COLOURS = 128
MEASUREMENTS = "tables"
"""The folder beside the page whose pictures, made by benchmarks, are shown at its end."""


@dataclass(frozen=True)
class Entry:
    """One table of the page, the runs behind it, and what is drawn of them: name -> chart."""

    table: Table
    records: tuple[Record, ...]
    charts: Mapping[str, ChartType]
    captions: Mapping[str, str] = field(default_factory=dict)
    """What a chart shows, and of what to beware."""


@dataclass(frozen=True)
class Chapter:
    """One suite: what it is in one line, and its tables."""

    suite: str
    line: str
    entries: tuple[Entry, ...]


def write(chapters: Sequence[Chapter], over_all: Mapping[str, ChartType], out: Path, pictures: bool = True) -> int:
    """Write the page to `out` and, unless they are to stay as they are, the pictures; returns how many were drawn.

    `over_all` are charts of several suites by name. Equal chapters give equal bytes.
    """
    drawn = [(f"over-all-{name}", chart) for name, chart in over_all.items()]
    for chapter in chapters:
        for number, entry in enumerate(chapter.entries):
            drawn += [(_picture(chapter, number, name), chart) for name, chart in entry.charts.items()]
    if pictures:
        for name, chart in drawn:
            write_atomically(out.parent / FOLDER / f"{name}.png", _slim(charts.png(chart)))
    measured = [path.name for path in sorted((out.parent / MEASUREMENTS).glob("*.png"))]
    write_atomically(out, page(chapters, list(over_all), measured).encode())
    return len(drawn) if pictures else 0


def _slim(png: bytes) -> bytes:
    """The picture in as few colours as charts need, about an eighth of its size: it is kept in a repository."""
    slim = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(slim, "PNG", optimize=True)
    return slim.getvalue()


def page(chapters: Sequence[Chapter], over_all: Sequence[str], measured: Sequence[str]) -> str:
    """The page as Markdown: a list of the suites, then each with its tables, facts and pictures."""
    blocks = [
        "# Results",
        "Made from stored records by `clbench gallery`; edit nothing here. Numbers are means over n seeds with their "
        "standard deviation; bold: the best, underlined: not to be told from it by a paired test; letters: footnotes.",
        "\n".join(
            f"* [{escape_markdown(chapter.suite)}](#{_anchor(chapter.suite)}): {escape_markdown(chapter.line)}"
            for chapter in chapters
        ),
    ]
    for chapter in chapters:
        blocks += _chapter(chapter)
    if over_all:
        blocks += ["## Over all suites", *(_image(f"over-all-{name}", f"all suites: {name}") for name in over_all)]
    if measured:
        blocks += ["## Measurements", "Made by the programs in `benchmarks/`; their numbers lie beside them."]
        blocks += [f"![{escape_markdown(Path(name).stem)}]({MEASUREMENTS}/{name})" for name in measured]
    return "\n\n".join(blocks) + "\n"


def _chapter(chapter: Chapter) -> Iterable[str]:
    yield f"## {escape_markdown(chapter.suite)}"
    for number, entry in enumerate(chapter.entries):
        yield markdown(entry.table).rstrip("\n")
        yield f"{_facts(entry.records)} Again: `{command(entry.records)}`"
        for name in entry.charts:
            yield _image(_picture(chapter, number, name), f"{chapter.suite}: {name}")
            if name in entry.captions:
                yield escape_markdown(entry.captions[name])


def _facts(records: Sequence[Record]) -> str:
    """When, by what and where the runs were made.

    >>> _facts([Record.example()])
    'Runs of 2026-01-01, clbench 0, an unknown commit; on cpu, 1 thread.'
    """
    origins = [record.origin for record in records]
    days = sorted({origin.started[:10] for origin in origins})
    commits = sorted({_commit(origin.commit, bool(origin.dirty)) for origin in origins})
    devices = sorted({f"{o.device}, {o.threads} thread{'s' if o.threads != 1 else ''}" for o in origins})
    versions = sorted(
        {f"{name} {o.versions[name]}" for o in origins for name in ("python", "torch") if name in o.versions}
    )
    made = ", ".join(sorted({f"clbench {origin.clbench}" for origin in origins}))
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return escape_markdown(f"Runs of {when}, {', '.join([made, *versions, *commits])}; on {'; '.join(devices)}.")


def _commit(commit: str | None, dirty: bool) -> str:
    return f"commit {commit[:10]}{' with local changes' if dirty else ''}" if commit else "an unknown commit"


def command(records: Sequence[Record]) -> str:
    """The words that run the same suite, seeds and order again and publish them.

    >>> command([Record.example(seed=1), Record.example()])
    'clbench run digits --seed 0 --seed 1 --publish'
    """
    seeds = "".join(f" --seed {seed}" for seed in sorted({record.seed for record in records}))
    order = f" --order-seed {records[0].order_seed}" if records[0].order_seed else ""
    return f"clbench run {records[0].suite}{seeds}{order} --publish"


def _picture(chapter: Chapter, number: int, name: str) -> str:
    """The file's name without suffix; a suite's further tables are told apart by their protocol."""
    protocol = f"-{chapter.entries[number].table.suite_hash}" if number else ""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{chapter.suite}{protocol}-{name}")


def _image(file: str, words: str) -> str:
    return f"![{escape_markdown(words)}]({FOLDER}/{file}.png)"


def _anchor(heading: str) -> str:
    """The address that a forge gives a heading."""
    return re.sub(r"[^a-z0-9_-]", "", heading.lower().replace(" ", "-"))
