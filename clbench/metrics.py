"""Metrics of continual learning: pure functions of the score matrix, each with its formula.

`scores[t][j]` in [0, 1] is the score on task j (0 … T−1) after learning t tasks (t = 0 … T), so there are T+1 rows
and row 0 is before learning; `None` is a cell that was not measured. In the formulas R[t,i] counts both from one:
the score on the i-th task after t tasks. Results are fractions, not percent. Where a metric has no value the
functions return `Undefined` with the reason, never 0 and never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

Scores = Sequence[Sequence[float | None]]
"""The score matrix, [T+1][T]."""


@dataclass(frozen=True)
class Undefined:
    """A number that does not exist, and why.

    >>> learning_accuracy(((None, None), (None, None), (0.9, 0.8)))
    Undefined(reason='not measured after every task')
    """

    reason: str


class _MissingError(Exception):
    """Carries the reason out of a metric; never leaves this module."""


def _metric(scores: Scores, formula: Callable[[int], float]) -> float | Undefined:
    """Evaluate `formula` of the number of tasks T, and turn a missing cell into the reason."""
    if not scores:
        return Undefined("no scores")
    tasks = len(scores) - 1
    if tasks < 1 or any(len(row) != tasks for row in scores):
        raise ValueError(f"scores must have one row more than columns, not rows of {[len(row) for row in scores]}")
    try:
        return formula(tasks)
    except _MissingError as missing:
        return Undefined(str(missing))


def _cell(scores: Scores, after: int, task: int, reason: str) -> float:
    value = scores[after][task]
    if value is None:
        raise _MissingError(reason)
    return value


def _learned(scores: Scores, task: int) -> float:
    """R[i,i]: the score on a task straight after learning it."""
    return _cell(scores, task + 1, task, "not measured after every task")


def _final(scores: Scores, task: int) -> float:
    """R[T,i]."""
    return _cell(scores, len(scores) - 1, task, "not measured after the last task")


def _change(scores: Scores, task: int) -> float:
    """R[T,i] − R[i,i]."""
    return _final(scores, task) - _learned(scores, task)


def _past(tasks: int) -> range:
    """The tasks before the last, of which there must be one."""
    if tasks < 2:
        raise _MissingError("needs two tasks or more")
    return range(tasks - 1)


def average_accuracy(scores: Scores) -> float | Undefined:
    """Mean over tasks of the score after the last one: (1/T) Σ_i R[T,i]; OP in TRACE, ACC in Lopez-Paz (2017).

    >>> average_accuracy(((None, None), (1.0, None), (0.5, 0.9)))
    0.7
    """
    return _metric(scores, lambda tasks: fmean(_final(scores, i) for i in range(tasks)))


def average_accuracy_pooled(scores: Scores, test_sizes: Sequence[int]) -> float | Undefined:
    """Share of all test samples that are right after the last task: Σ_i n_i R[T,i] / Σ_i n_i; () are unknown sizes.

    >>> average_accuracy_pooled(((None, None), (1.0, None), (0.5, 0.9)), (10, 30))
    0.8
    """
    if scores and not test_sizes:
        return Undefined("the numbers of test samples are unknown")
    if scores and len(test_sizes) != len(scores) - 1:
        raise ValueError(f"{len(test_sizes)} test sizes for {len(scores) - 1} tasks")

    def pooled(tasks: int) -> float:
        if not sum(test_sizes):
            raise _MissingError("no test samples")
        return sum(n * _final(scores, i) for i, n in enumerate(test_sizes)) / sum(test_sizes)

    return _metric(scores, pooled)


def average_incremental_accuracy(scores: Scores) -> float | Undefined:
    """Mean over rounds of the average over the tasks seen: (1/T) Σ_t (1/t) Σ_{i≤t} R[t,i] (Rebuffi et al., 2017).

    >>> average_incremental_accuracy(((None, None), (1.0, None), (0.5, 0.9)))
    0.85
    """
    reason = "not measured after every task"
    return _metric(
        scores,
        lambda tasks: fmean(fmean(_cell(scores, t, i, reason) for i in range(t)) for t in range(1, tasks + 1)),
    )


def learning_accuracy(scores: Scores) -> float | Undefined:
    """Mean score on a task straight after learning it: (1/T) Σ_i R[i,i] (Riemer et al., 2019).

    >>> learning_accuracy(((None, None), (1.0, None), (0.5, 0.9)))
    0.95
    """
    return _metric(scores, lambda tasks: fmean(_learned(scores, i) for i in range(tasks)))


def forgetting(scores: Scores) -> float | Undefined:
    """Loss against the best past score: (1/(T−1)) Σ_{i<T} (max_{i≤t<T} R[t,i] − R[T,i]) (Chaudhry et al., 2018).

    Lower is better; negative where tasks got better after their best. The maximum begins with the task's own round,
    so that the value does not depend on whether scores before learning a task were measured too.

    >>> forgetting(((None, None, None), (0.5, None, None), (1.0, 1.0, None), (0.25, 0.5, 1.0)))
    0.625
    """

    def drop(tasks: int, i: int) -> float:
        rounds = range(i + 1, tasks)
        return max(_cell(scores, t, i, "not measured after every task") for t in rounds) - _final(scores, i)

    return _metric(scores, lambda tasks: fmean(drop(tasks, i) for i in _past(tasks)))


def bwt(scores: Scores) -> float | Undefined:
    """Backward transfer: (1/(T−1)) Σ_{i<T} (R[T,i] − R[i,i]); negative is forgetting (Lopez-Paz & Ranzato, 2017).

    >>> bwt(((None, None), (1.0, None), (0.5, 0.9)))
    -0.5
    """
    return _metric(scores, lambda tasks: fmean(_change(scores, i) for i in _past(tasks)))


def bwt_trace(scores: Scores) -> float | Undefined:
    """Backward transfer divided by T: (1/T) Σ_{i≤T} (R[T,i] − R[i,i]); negative is forgetting (TRACE).

    >>> bwt_trace(((None, None), (1.0, None), (0.5, 0.9)))
    -0.25
    """
    return _metric(scores, lambda tasks: sum(_change(scores, i) for i in _past(tasks)) / tasks)


def bwt_treelora(scores: Scores) -> float | Undefined:
    """Clipped backward transfer of TreeLoRA's code: (1/T) Σ_{i≤T} min(R[T,i] − R[i,i], 0).

    Never positive; negative is forgetting, as in `bwt`. The paper's tables print its size without the sign.

    >>> bwt_treelora(((None, None, None), (0.5, None, None), (0.5, 1.0, None), (0.75, 0.25, 1.0)))
    -0.25
    """
    return _metric(scores, lambda tasks: sum(min(_change(scores, i), 0.0) for i in _past(tasks)) / tasks)


def forward_transfer(scores: Scores) -> float | Undefined:
    """Gain on a task before learning it: (1/(T−1)) Σ_{i>1} (R[i−1,i] − R[0,i]) (Lopez-Paz & Ranzato, 2017).

    Needs row 0 and the first diagonal above the main one.

    >>> forward_transfer(((0.5, 0.25), (1.0, 0.75), (0.5, 1.0)))
    0.5
    """
    before = "not measured before learning"

    def gain(i: int) -> float:
        return _cell(scores, i, i, "tasks were not measured before they were learned") - _cell(scores, 0, i, before)

    return _metric(scores, lambda tasks: fmean(gain(i + 1) for i in _past(tasks)))
