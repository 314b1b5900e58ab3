"""Repetition: whether a run that was made again came to the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clbench.differences import Explanation, explain
from clbench.outcomes import Outcomes
from clbench.record import Record
from clbench.significance import holm
from clbench.stats import LEVEL, Difference
from clbench.table import ReadOutcomes

Sameness = Literal["identical", "scores", "statistics", "different"]
"""Bit by bit; in all scores and answers, but not in weights as far as known; by a paired test; or not at all."""


@dataclass(frozen=True)
class Repetition:
    """A run, the same made again, and what the second is to the first."""

    explanation: Explanation
    sameness: Sameness
    reason: str
    """Half a sentence: what was held against what."""


def judge(first: Record, second: Record, outcomes: ReadOutcomes) -> Repetition:
    """How much of `first` its repetition `second` gave again; `outcomes` reads those of either.

    Identical: every score of every round, every answer that was kept and the hash of what was learned are equal bit by
    bit. Where answers differ, the paired tests of `clbench.differences` decide, p adjusted over the tasks and their
    mean together (Holm): different is what chance over the test examples explains in fewer than 5 % of cases.
    """
    found = explain(first, second, outcomes)
    if second.status != "done":
        return Repetition(found, "different", f"it ended as {second.status}: {second.reason}")
    answers = _equal(outcomes(first), outcomes(second))
    weights = first.weights_sha256 == second.weights_sha256 if first.weights_sha256 and second.weights_sha256 else None
    if _scores(first) == _scores(second) and answers is not False:
        if answers and weights:
            return Repetition(found, "identical", "equal scores, equal answers to every example, equal weights")
        return Repetition(found, "scores", f"equal scores; {_known(answers, 'answers')}; {_known(weights, 'weights')}")
    return _tested(found)


def _tested(found: Explanation) -> Repetition:
    if found.untested:
        return Repetition(found, "different", f"other scores, and no paired test is possible: {found.untested}")
    verdicts = [v for v in (*found.tasks, found.overall) if isinstance(v.difference, Difference)]
    adjusted = holm([v.difference.p for v in verdicts if isinstance(v.difference, Difference)])
    p, verdict = min(zip(adjusted, verdicts, strict=True), key=lambda pair: pair[0])
    place = "on the average" if verdict is found.overall else f"on task '{verdict.task}'"
    said = f"the smallest p of {len(adjusted)} paired tests, after Holm's correction, is {p:.3g}, {place}"
    return Repetition(found, "statistics" if p >= LEVEL else "different", f"other scores or answers; {said}")


def _scores(record: Record) -> tuple[object, ...]:
    return record.scores, record.other_scores, record.router_accuracy


def _equal(first: Outcomes | None, second: Outcomes | None) -> bool | None:
    """Whether all arrays are equal bit by bit; None where one run's were not kept."""
    if not first or not second:
        return None
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].tobytes()) == (second[name].dtype, second[name].tobytes()) for name in first
    )


def _known(equal: bool | None, what: str) -> str:
    return f"the {what} of one were not kept" if equal is None else f"{'equal' if equal else 'other'} {what}"
