"""Triangle: what one run scored on each task after each, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench import metrics
from clbench.errors import ClbenchError, UnknownName
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.report.grid import DASH, clean
from clbench.report.tree_text import caption

Outcomes = Mapping[str, NDArray[Any]]
Line = tuple[str, tuple[str, ...]]
"""What it is of, and one cell a task."""
INVALID = "invalid"
Z = 1.96
PSEUDO = (0.0, 0.0, 1.0, 1.0)


def half_width(scores: NDArray[Any], whole: int) -> float:
    """Half of the 95 % interval for the mean score of `whole` examples of which `scores`, in [0, 1], were drawn.

    Two lowest and two highest scores are added (Agresti and Coull 1998), so that few equal ones do not pass for
    certainty; drawing without replacement narrows it, to 0 where all were asked.

    >>> round(half_width(np.array([1.0] * 6 + [0.0] * 10), 10_000), 3), half_width(np.ones(5), 5)
    (0.215, 0.0)
    """
    if len(scores) >= whole:
        return 0.0
    spread = float(np.std([*scores, *PSEUDO])) / math.sqrt(len(scores) + len(PSEUDO))
    return Z * spread * math.sqrt((whole - len(scores)) / (whole - 1))


def half_widths(record: Record, outcomes: Outcomes | None) -> dict[int, list[float]]:
    """Round -> the half-width for each task seen, in [0, 1]; of the rounds that asked a sample only."""
    found: dict[int, list[float]] = {}
    for number, scores in enumerate(record.scores):
        asked = _scores(outcomes, number) if outcomes is not None and any(s is not None for s in scores) else None
        if asked is None or outcomes is None or "tasks" not in outcomes:
            continue
        mine = [asked[outcomes["tasks"] == task] for task, score in enumerate(scores) if score is not None]
        if any(np.isnan(part).any() for part in mine):
            found[number] = [half_width(part[~np.isnan(part)], len(part)) for part in mine]
    return found


def _scores(outcomes: Outcomes, number: int) -> NDArray[Any] | None:
    """The score of each example in a round, NaN where not asked; None where it was not kept."""
    if f"score_{number}" in outcomes:
        return np.asarray(outcomes[f"score_{number}"], dtype=np.float64)
    answers, labels = outcomes.get(f"round_{number}"), outcomes.get("labels")
    if answers is None or labels is None:
        return None
    return np.where(answers < 0, np.nan, (answers == labels).astype(np.float64))


def marked(record: Record, outcomes: Outcomes | None, score: str) -> tuple[Record, Outcomes | None]:
    """The same run and answers with `score`, another mark of them, in the place of the suite's own.

    Raises UnknownName where the answers were not marked so.
    """
    marks = {record.score_name: record.scores, **record.other_scores}
    known = [name for name in marks if name != INVALID]
    if score not in known:
        raise UnknownName(f"score of {caption(record)}", score, known)
    if score == record.score_name:
        return record, outcomes
    chosen, floors = marks.pop(score), record.other_floors.get(score, ())
    changed = {"score_name": score, "scores": chosen, "other_scores": marks, "floors": floors, "other_floors": {}}
    if outcomes is not None:
        names = {"tasks": "tasks", **{f"{score}_{number}": f"score_{number}" for number in range(len(chosen))}}
        outcomes = {new: outcomes[name] for name, new in names.items() if name in outcomes}
    return record.model_copy(update=changed), outcomes


def facts(record: Record, outcomes: Outcomes | None) -> dict[str, Any]:
    """Everything that `text` shows, as fractions, for JSON. Raises ClbenchError where the run has no scores."""
    _refuse_without_scores(record)
    plain = {name: getattr(record, name) for name in ("suite", "method", "variant", "seed", "key", "score_name")}
    further = {name: getattr(record, name) for name in ("tasks", "scores", "floors", "other_scores", "other_floors")}
    return {**plain, **further, "half_widths": half_widths(record, outcomes), **_summary(record)}


def text(record: Record, outcomes: Outcomes | None = None, width: int = 120) -> str:
    """Scores in percent: a line for each task learned, a column for each task asked; at most `width` wide.

    ± is half of a 95 % interval, where a round asked a sample. Below the triangle stand what the most frequent answer
    scores, what the answers score at the end by their other marks, and how many have not the form of one, where that
    was measured. Raises ClbenchError where the run has no scores.
    """
    _refuse_without_scores(record)
    names = [clean(name) for name in record.tasks]
    head: Line = ("", tuple(str(number) for number in range(1, len(names) + 1)))
    blocks = _folded([head, *_lines(record, names, half_widths(record, outcomes))], width)
    explained = ["a line: after the task was learned; a column: the task asked"]
    if record.floors:
        explained.append(
            "floor: a constant answer, the most frequent of training (of long texts, none if that scores more)"
        )
    others = [name for name in record.other_scores if name != INVALID]
    if others:
        explained.append(f"{', '.join(map(clean, others))}: other marks of the same answers (--score shows each round)")
    if INVALID in record.other_scores:
        explained.append("invalid: answers that have not the form of one")
    summary = ", ".join(f"{name} {_said(value)}" for name, value in _summary(record).items())
    title = f"{caption(record)} · {clean(record.score_name)} in %"
    return "\n".join([title, *blocks, "; ".join(explained), summary])


def _refuse_without_scores(record: Record) -> None:
    if not any(score is not None for row in record.scores for score in row):
        raise ClbenchError(f"{caption(record)} has no scores: it {record.status} ({record.reason}).")


def _summary(record: Record) -> dict[str, float | Undefined]:
    return {
        "average": metrics.average_accuracy(record.scores),
        "forgetting": metrics.forgetting(record.scores),
        "BWT": metrics.bwt(record.scores),
    }


def _said(value: float | Undefined) -> str:
    return f"{DASH} ({value.reason})" if isinstance(value, Undefined) else f"{100 * value:.2f}"


def _lines(record: Record, names: Sequence[str], widths: Mapping[int, Sequence[float]]) -> Iterator[Line]:
    """The rounds that were scored, then floors, other marks and invalid answers."""
    for number, scores in enumerate(record.scores):
        if any(score is not None for score in scores):
            yield _after(record, names, number), _cells(scores, widths.get(number, ()))
    if record.floors:
        yield "floor", _cells(record.floors)
    for name, matrix in record.other_scores.items():
        if name != INVALID:
            yield f"{clean(name)}, at the end", _cells(matrix[-1])
    invalid = record.other_scores.get(INVALID)
    if invalid:
        learned = [invalid[number + 1][number] for number in range(len(names))]
        if any(share is not None for share in learned[:-1]):
            yield "invalid, just learned", _cells(learned)
        yield "invalid, at the end", _cells(invalid[-1])


def _after(record: Record, names: Sequence[str], number: int) -> str:
    if not number:
        return "before learning"
    together = record.protocol.get("schedule") == "joint"
    return "all tasks" if together else f"{number} {names[number - 1]}"


def _cells(values: Sequence[float | None], widths: Sequence[float] = ()) -> tuple[str, ...]:
    signs = [f"±{100 * width:.1f}" for width in widths] + [""] * (len(values) - len(widths))
    shown = zip(values, signs, strict=True)
    return tuple("" if value is None else f"{100 * value:.1f}{sign}" for value, sign in shown)


def _folded(lines: Sequence[Line], width: int) -> Iterator[str]:
    """The lines in columns two spaces apart; columns that do not fit go below, behind the lines' names again."""
    label = max(len(name) for name, _ in lines)
    sizes = [max(len(cells[task]) for _, cells in lines) for task in range(len(lines[0][1]))]
    first = 0
    while first < len(sizes):
        last, used = first + 1, label + 2 + sizes[first]
        while last < len(sizes) and used + 2 + sizes[last] <= width:
            used += 2 + sizes[last]
            last += 1
        if first:
            yield ""
        for name, cells in lines:
            shown = (f"  {cells[task]:>{sizes[task]}}" for task in range(first, last))
            yield f"{name:{label}}{''.join(shown)}".rstrip()
        first = last
