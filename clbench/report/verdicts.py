"""Verdicts: our figures beside published ones as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.report.grid import DASH, as_json, brief, clean, printable
from clbench.row import Number
from clbench.verify import Check

UNVERIFIED = "?"
HEADINGS = ("Method", "Figure", "Ours (n)", "Published", "Difference", "Verdict", "Protocols", "Source")
_NUMBERS = (2, 3, 4)
"""Columns that are set to the right."""


def lines(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """One object a figure beside a row of ours; None where there is no number."""
    return [_line(check) for check in checks]


def _line(check: Check) -> dict[str, Any]:
    reference = check.reference
    return {
        "suite": check.suite,
        "protocol": check.suite_hash,
        "order_seed": check.order_seed,
        "method": reference.method,
        "variant": reference.variant,
        "metric": reference.metric,
        "unit": check.unit,
        "score": reference.score,
        "ours_mean": _plain(check.ours),
        "ours_std": _plain(check.std),
        "n": check.n,
        "published": reference.value,
        "difference": _plain(check.difference),
        "tolerance": reference.tolerance,
        "within": check.within,
        "status": check.status,
        "reason": check.ours.reason if isinstance(check.ours, Undefined) else "",
        "protocols": check.protocols,
        "differences": "; ".join(check.differences),
        "unstated": ", ".join(check.unstated),
        "published_backbone": str(reference.protocol.get("backbone", "")),
        "verified": reference.verified,
        "source": reference.source,
        "note": reference.note,
        "device": check.device,
    }


def _plain(number: Number) -> float | None:
    return None if isinstance(number, Undefined) else float(f"{number:.6g}")


def csv(checks: Sequence[Check]) -> str:
    """`lines` as CSV, empty where there is no number."""
    file = io.StringIO()
    writer = csv_format.DictWriter(file, list(_line(checks[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(checks))
    return printable(file.getvalue())


def to_json(checks: Sequence[Check]) -> str:
    """`lines` as JSON."""
    return as_json(lines(checks))


def grid(checks: Sequence[Check]) -> tuple[list[tuple[str, ...]], list[tuple[str, str]]]:
    """What a reader sees: the cells under `HEADINGS`, a line a figure, and (mark, words) footnotes."""
    marks: dict[str, str] = {}
    body = []
    for check in checks:
        words = "; ".join(filter(None, (_protocol_words(check), check.reference.note)))
        mark = marks.setdefault(words, str(len(marks) + 1)) if words else ""
        protocols = f"{check.protocols} [{mark}]" if mark else check.protocols
        row = f"{check.row} (order {check.order_seed})" if check.order_seed else check.row
        cells = (row, check.reference.metric, _ours(check), _theirs(check), _difference(check), verdict(check))
        body.append(tuple(clean(cell) for cell in (*cells, protocols, check.reference.source)))
    notes = [(mark, clean(words)) for words, mark in marks.items()]
    if any(not check.reference.verified for check in checks):
        notes.append((UNVERIFIED, "unverified: recalled, and never read in its source"))
    return body, notes


def _protocol_words(check: Check) -> str:
    parts = ["; ".join(check.differences)] if check.differences else []
    return "; ".join([*parts, f"not stated: {', '.join(check.unstated)}"] if check.unstated else parts)


def _number(value: float, check: Check) -> str:
    return f"{value:.2f}" if check.unit == "%" else f"{brief(value)} {check.unit}"


def _ours(check: Check) -> str:
    if isinstance(check.ours, Undefined):
        return DASH
    std = DASH if isinstance(check.std, Undefined) else _number(check.std, check)
    return f"{_number(check.ours, check)} ± {std} ({check.n})"


def _theirs(check: Check) -> str:
    mark = "" if check.reference.verified else f" {UNVERIFIED}"
    return _number(check.reference.value, check) + mark


def _difference(check: Check) -> str:
    return DASH if isinstance(check.difference, Undefined) else f"{check.difference:+.2f}"


def verdict(check: Check) -> str:
    """Within or outside its tolerance, or why that is not said."""
    if isinstance(check.ours, Undefined):
        return check.ours.reason if check.status == "done" else check.status
    if check.within is None:
        return "not judged"
    words = f"{'within' if check.within else 'OUTSIDE'} ±{check.reference.tolerance:g}"
    return f"{words}, stale" if check.status == "stale" else words


def summary(checks: Sequence[Check]) -> str:
    """How many of the figures were reached, in one sentence."""
    judged = [check for check in checks if check.within is not None]
    alike = [check for check in judged if check.protocols != "differ"]
    missing = sum(check.status == "missing" for check in checks)
    reached = sum(bool(check.within) for check in judged)
    reached_alike = sum(bool(check.within) for check in alike)
    return (
        f"{reached} of {len(judged)} judged figures lie within their tolerance, {reached_alike} of {len(alike)} where "
        f"no difference of protocols is known; {missing} have no run of ours."
    )


def text(checks: Sequence[Check]) -> str:
    """For a terminal; wide, and never broken within a line."""
    body, notes = grid(checks)
    table = [HEADINGS, *body]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = [
        "  ".join(
            f"{w:>{n}}" if i in _NUMBERS else f"{w:{n}}" for i, (w, n) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    words = [f"{mark}: {words}" for mark, words in notes]
    head = f"{clean(checks[0].suite)} against published figures"
    return "\n".join([head, "", *(line.rstrip() for line in shown), "", *words, summary(checks)]) + "\n"


def markdown(checks: Sequence[Check]) -> str:
    """As a Markdown table with its footnotes."""
    body, notes = grid(checks)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"

    rule = line(["---:" if i in _NUMBERS else "---" for i in range(len(HEADINGS))])
    words = [f"* {mark}: {words}" for mark, words in notes]
    return "\n".join([line(HEADINGS), rule, *map(line, body), "", *words, "", summary(checks)]) + "\n"


FORMATS = ("text", "csv", "json", "markdown")
_FORMS: Mapping[str, Callable[[Sequence[Check]], str]] = {
    "text": text,
    "csv": csv,
    "json": to_json,
    "markdown": markdown,
}


def render(checks: Sequence[Check], format: str) -> str:
    """The figures, one or more, in one of FORMATS; UnknownName for another."""
    if format not in _FORMS:
        raise UnknownName("format", format, FORMATS)
    return _FORMS[format](checks)
