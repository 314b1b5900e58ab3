"""Explained: what tells two runs apart, as text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.differences import Absent, Change, Explanation, Side, Verdict
from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.report.grid import DASH, as_json, brief, clean
from clbench.report.pairs import chance, set_in_columns, six
from clbench.row import Number

FORMATS = ("text", "json")
LONGEST = 60
"""Letters of a value that text shows."""


def render(found: Explanation, format: str) -> str:
    """An explanation in one of FORMATS; UnknownName for another."""
    if format not in FORMATS:
        raise UnknownName("format of a comparison", format, FORMATS)
    return text(found) if format == "text" else to_json(found)


# text


def text(found: Explanation) -> str:
    """Who the two are, what differs, who wins each task, and what they cost, for a terminal."""
    blocks = [_names(found), *changed(found), tasks(found), _sides(found)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _names(found: Explanation) -> list[str]:
    return [f"{number}  {clean(_name(record))}" for number, record in ((1, found.first), (2, found.second))]


def _name(record: Record) -> str:
    variant = f" ({record.variant})" if record.variant else ""
    system = f", imported from {record.system}" if record.system else ""
    return f"{record.suite}/{record.method}/seed{record.seed}/{record.key}{variant}{system}"


def changed(found: Explanation) -> list[list[str]]:
    """A block of lines for each group of facts in which the two differ, or one that says that they do not."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for change in found.changes:
        words = (_word(change.name, change.old), "→ " + _word(change.name, change.new))
        groups.setdefault(change.group, []).append((clean(change.name), *words))
    if not groups:
        return [["Nothing differs but the time at which they ran."]]
    return [[f"{group}, 1 → 2", *set_in_columns(lines, left=(0, 1, 2))] for group, lines in groups.items()]


def _word(name: str, value: Any) -> str:
    if value is Absent.ABSENT:
        return DASH
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    whole = clean(", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value))
    longest = 12 if name.endswith("sha256") else LONGEST
    return whole if len(whole) <= longest else f"{whole[:longest]}…"


def tasks(found: Explanation) -> list[str]:
    """Who wins each task, line by line."""
    head = f"{clean(found.first.score_name)} % after the last task"
    verdicts = (*found.tasks, found.overall)
    if found.untested:
        plain = [(clean(v.task), _percent(v.first), _percent(v.second), _apart(v)) for v in verdicts]
        body = set_in_columns([("", "1", "2", "2 − 1"), *plain])
        return [f"{head}: not tested, because {clean(found.untested)}", *body]
    headings = ("", "1", "2", "2 − 1", "95 % interval", "p", "Holm p", "test", "winner")
    notes = [
        f"Paired over examples, Holm over {len(found.tasks)} tasks; the last line is the mean over tasks, p its own.",
        "All p and intervals speak of these two trained models: other seeds are not in them.",
    ]
    return [head, *set_in_columns([headings, *map(_tested, verdicts)], left=(0, 7, 8)), *notes]


def _tested(verdict: Verdict) -> tuple[str, ...]:
    shown = (clean(verdict.task), _percent(verdict.first), _percent(verdict.second), _apart(verdict))
    found = verdict.difference
    if isinstance(found, Undefined):
        return (*shown, DASH, DASH, DASH, clean(found.reason), "")
    ends = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    winner = str(verdict.winner) if verdict.winner else "not told apart"
    return (*shown, ends, chance(found.p), chance(verdict.p_holm), verdict.test, winner)


def _percent(score: float | None) -> str:
    return DASH if score is None else f"{100 * score:.2f}"


def _apart(verdict: Verdict) -> str:
    if verdict.first is None or verdict.second is None:
        return DASH
    return f"{100 * (verdict.second - verdict.first):+.2f}"


def _sides(found: Explanation) -> list[str]:
    told = [
        side for side in found.sides if not (isinstance(side.first, Undefined) and isinstance(side.second, Undefined))
    ]
    lines = [("", "1", "2", "2 / 1"), *map(_side, told)]
    return ["side by side", *set_in_columns(lines), *(f"! {clean(warning)}" for warning in found.warnings)]


def _side(side: Side) -> tuple[str, ...]:
    unit = " %" if side.column.unit == "%" else ""
    name = side.column.name.removesuffix("_mean").replace("_", " ")
    ratio = DASH
    if side.column.unit != "%" and not isinstance(side.first, Undefined) and not isinstance(side.second, Undefined):
        ratio = f"{side.second / side.first:.2f}" if side.first else DASH
    return f"{name}{unit}", _number(side.first, unit), _number(side.second, unit), ratio


def _number(value: Number, unit: str) -> str:
    return DASH if isinstance(value, Undefined) else f"{value:.2f}" if unit else brief(value)


# JSON


def to_json(found: Explanation) -> str:
    """The explanation as an object; scores, differences and intervals in points, null with a reason where undefined."""
    facts = {
        **compared(found),
        "sides": {side.column.name: {"unit": side.column.unit, **_both(side)} for side in found.sides},
        "warnings": list(found.warnings),
    }
    return as_json(facts)


def compared(found: Explanation) -> dict[str, Any]:
    """The two, what differs, and who wins each task, as JSON has it."""
    return {
        "first": _identity(found.first),
        "second": _identity(found.second),
        "changes": [_change(change) for change in found.changes],
        "tasks": [_verdict(verdict) for verdict in found.tasks],
        "overall": _verdict(found.overall),
        "untested": found.untested,
    }


def _identity(record: Record) -> dict[str, Any]:
    names = ("suite", "method", "variant", "seed", "order_seed", "key", "status", "system")
    return {name: getattr(record, name) for name in names}


def _change(change: Change) -> dict[str, Any]:
    """Without 'old' or 'new' where that run lacks the fact."""
    values = {"old": change.old, "new": change.new}
    present = {name: value for name, value in values.items() if value is not Absent.ABSENT}
    return {"group": change.group, "name": change.name, **present}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    shown = {
        "task": verdict.task,
        "first": None if verdict.first is None else six(100 * verdict.first),
        "second": None if verdict.second is None else six(100 * verdict.second),
        "test": verdict.test,
    }
    found, p_holm = verdict.difference, verdict.p_holm
    if isinstance(found, Undefined) or isinstance(p_holm, Undefined):
        reason = found.reason if isinstance(found, Undefined) else ""
        return {**shown, "difference": None, "low": None, "high": None, "p": None, "p_holm": None, "reason": reason}
    points = {name: six(100 * getattr(found, field)) for name, field in _POINTS.items()}
    return {**shown, **points, "p": six(found.p), "p_holm": six(p_holm), "n": found.n, "winner": verdict.winner or None}


_POINTS: Mapping[str, str] = {"difference": "mean", "low": "low", "high": "high"}


def _both(side: Side) -> dict[str, float | None]:
    numbers = {"first": side.first, "second": side.second}
    return {name: None if isinstance(value, Undefined) else six(value) for name, value in numbers.items()}
