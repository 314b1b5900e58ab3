"""Statistics of repeated runs: spread over seeds, and which methods a paired test can tell apart.

The outcomes of one run are arrays over the test examples of all tasks, in one order for every run of a suite:
`labels` [n], `tasks` [n] (index of the example's task) and `round_t` [n] (the answer after learning t tasks, -1 where
that round did not score the example). Runs that learn everything at once have only the last round. A method that infers
tasks adds `inferred_t` [n], the task it inferred; no test looks at that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.metrics import Undefined

Outcomes = Mapping[str, NDArray[Any]]
"""`labels`, `tasks` and `round_1` … `round_T`, each [n] integers."""

LEVEL = 0.05
"""Two methods are tied where the paired test's p is this or more."""
DRAWS = 1000
SEED = 20260101
"""Of the resampling, so that a table made twice is the same table."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n−1) of n values."""

    mean: float | Undefined
    std: float | Undefined
    n: int


def spread(values: Sequence[float | Undefined]) -> Spread:
    """Summarise one number per run. A run without the number leaves the summary without it too.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, std=1.0, n=3)
    >>> spread([1.0]).std
    Undefined(reason='one run only')
    """
    n = len(values)
    for value in values:
        if isinstance(value, Undefined):
            return Spread(value, value, n)
    numbers = [value for value in values if not isinstance(value, Undefined)]
    if not numbers:
        return Spread(Undefined("no run"), Undefined("no run"), 0)
    return Spread(fmean(numbers), stdev(numbers) if n > 1 else Undefined("one run only"), n)


def last_round(outcomes: Outcomes) -> NDArray[Any]:
    """The answers after the last task, [n]. ValueError where there is no round at all."""
    rounds = [int(name.removeprefix("round_")) for name in outcomes if name.startswith("round_")]
    if not rounds:
        raise ValueError(f"outcomes without a round: {sorted(outcomes)}")
    return outcomes[f"round_{max(rounds)}"]


def paired_test(first: Mapping[Any, Outcomes], second: Mapping[Any, Outcomes], draws: int = DRAWS) -> float | Undefined:
    """Two-sided p of equal average accuracy (task mean, last round) of two methods, given as run → outcomes.

    Runs are paired by key (the seed). Test examples are resampled within their tasks, the same for both methods and
    all seeds (hierarchical bootstrap). Two or three seeds are too few to resample, which would call seed noise a
    difference too often; so the spread between seeds that exceeds what resampling the examples explains is drawn from
    Student's t with one degree of freedom less than seeds. With one common seed the test speaks of that seed only.
    """
    return paired_tests([first, second], draws)[0, 1]


def paired_tests(
    methods: Sequence[Mapping[Any, Outcomes]], draws: int = DRAWS
) -> dict[tuple[int, int], float | Undefined]:
    """`paired_test` for all pairs i < j, with one resampling of the examples for all of them."""
    pairs = list(combinations(range(len(methods)), 2))
    exam: tuple[NDArray[Any], NDArray[Any]] | None = None
    columns: dict[tuple[int, Any], int] = {}
    correct: list[NDArray[np.bool_]] = []
    for i, method in enumerate(methods):
        for key, outcomes in method.items():
            labels, tasks, answers = outcomes["labels"], outcomes["tasks"], last_round(outcomes)
            exam = exam or (labels, tasks)
            same = np.array_equal(labels, exam[0]) and np.array_equal(tasks, exam[1])
            if same and np.all(answers >= 0):
                columns[i, key] = len(correct)
                correct.append(answers == labels)
    if exam is None or not correct:
        reason = "not every example was scored in the last round" if exam else "no outcomes per example"
        return {pair: Undefined(reason) for pair in pairs}
    rng = np.random.default_rng(SEED)
    observed, resampled = _accuracies(np.asarray(correct, dtype=np.float32), exam[1], draws, rng)
    p_values: dict[tuple[int, int], float | Undefined] = {}
    for i, j in pairs:
        seeds = [key for key in methods[i] if (i, key) in columns and (j, key) in columns]
        if not seeds:
            p_values[i, j] = _why_no_pair(methods[i], methods[j])
            continue
        mine, theirs = [columns[i, key] for key in seeds], [columns[j, key] for key in seeds]
        p_values[i, j] = _p_value(observed[mine] - observed[theirs], resampled[:, mine] - resampled[:, theirs], rng)
    return p_values


def tied(p: float | Undefined) -> bool:
    """Whether two methods cannot be told apart; without a test they are not called tied."""
    return not isinstance(p, Undefined) and p >= LEVEL


def rank(means: Sequence[float], ties: Mapping[tuple[int, int], bool]) -> list[int]:
    """Rank of each mean (1 is the highest): one more than the number of rows that are higher and not tied with it.

    `ties` maps pairs i < j to whether they are tied; equal means always are. Tied rows share the better rank. Ties
    are not transitive, and a row with few runs is tied with many; so no row ranks below one with a lower mean.

    >>> rank([0.7, 0.9, 0.8, 0.7], {(1, 2): True})
    [3, 1, 1, 3]
    """

    def beats(i: int, j: int) -> bool:
        return means[i] > means[j] and not ties.get((min(i, j), max(i, j)), False)

    better = [sum(beats(i, j) for i in range(len(means))) for j in range(len(means))]
    return [1 + min(n for mean, n in zip(means, better, strict=True) if mean <= own) for own in means]


def _why_no_pair(first: Mapping[Any, Outcomes], second: Mapping[Any, Outcomes]) -> Undefined:
    if not first or not second:
        return Undefined("no outcomes per example")
    if not set(first) & set(second):
        return Undefined("no seed in common")
    return Undefined("not the same test examples, or not all of them scored")


def _accuracies(
    correct: NDArray[np.float32], tasks: NDArray[Any], draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Task-mean accuracy of each run, observed [runs] and with examples resampled within tasks [draws, runs]."""
    names = np.unique(tasks)
    observed = np.zeros(len(correct))
    resampled = np.zeros((draws, len(correct)))
    for task in names:
        mine = correct[:, tasks == task]  # [runs, n]
        n = mine.shape[1]
        picks = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
        weights = np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float32)
        observed += mine.mean(axis=1) / len(names)
        resampled += weights @ mine.T / (n * len(names))
    return observed, resampled


def _p_value(observed: NDArray[np.float64], resampled: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Two-sided p that the mean of `observed` [seeds] is 0, given its `resampled` values [draws, seeds]."""
    draws, seeds = len(resampled), len(observed)
    means = resampled.mean(axis=1)
    if seeds > 1:
        deviations = resampled - resampled.mean(axis=0)
        explained = (deviations - deviations.mean(axis=1, keepdims=True)).var(axis=0).sum() / (seeds - 1)
        excess = max(0.0, float(observed.var(ddof=1) - explained))
        means += rng.standard_t(seeds - 1, draws) * (excess / seeds) ** 0.5
    # rounding errors of the float32 sums must not decide the side of an exact zero
    below, above = np.count_nonzero(means <= 1e-6) + 1, np.count_nonzero(means >= -1e-6) + 1
    return min(1.0, 2.0 * float(min(below, above)) / (draws + 1.0))
