"""Statistics of repeated runs: spread over seeds, and which methods a paired test can tell apart.

The outcomes of one run are arrays over the test examples of all tasks, in one order for every run of a suite: `tasks`
[n] (index of the example's task), and of each round t, which follows the learning of t tasks, one of two sorts:

* `round_t` [n] integers: the class that was answered, -1 where that round did not ask; right where it equals `labels`;
* `score_t` [n] floats in [0, 1]: the score of the answer, NaN where that round did not ask.

Runs that learn everything at once have only the last round. A method that infers tasks adds `inferred_t` [n], the task
it inferred; no test looks at that.
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
"""`tasks`, with `labels` and `round_1` … `round_T`, or with `score_1` … `score_T`; each [n]."""
Runs = Mapping[Any, Outcomes]
"""The runs of one method: what pairs them with another's (order seed and seed) -> outcomes."""

LEVEL = 0.05
"""Two methods are tied where the paired test's p is this or more."""
DRAWS = 1000
"""Of the bootstrap: no p is smaller than 2 / (draws + 1)."""
CHUNK = 1000
"""Draws that are in memory together."""
SEED = 20260101
"""Of the resampling, so that a table made twice is the same table."""
_ROUNDS = ("round", "score")


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


def outcome_scores(outcomes: Outcomes) -> NDArray[np.float32]:
    """Score of each example after the last task, [n] in [0, 1]: right or wrong is 1 or 0; NaN where it was not asked.

    ValueError where there is no round at all, or answers without the labels they are held against.
    """
    rounds = [int(number) for sort, _, number in (name.partition("_") for name in outcomes) if sort in _ROUNDS]
    last = max(rounds, default=0)
    if f"score_{last}" in outcomes:
        return np.asarray(outcomes[f"score_{last}"], dtype=np.float32)
    if not rounds or "labels" not in outcomes:
        raise ValueError(f"outcomes without a round, or without labels: {sorted(outcomes)}")
    answers = outcomes[f"round_{last}"]
    return np.where(answers < 0, np.float32(np.nan), (answers == outcomes["labels"]).astype(np.float32))


@dataclass(frozen=True)
class Answers:
    """What the runs of several methods scored on the examples of one exam."""

    tasks: NDArray[Any]
    """[n], index of each example's task."""
    scores: NDArray[np.float32]
    """[runs, n] in [0, 1], after the last task."""
    lines: Mapping[tuple[int, Any], int]
    """(method, key of the run) -> its line of `scores`."""
    keys: tuple[tuple[Any, ...], ...]
    """Of each method, the keys of all runs, also of those without a line."""

    def common(self, i: int, j: int) -> tuple[list[int], list[int]] | Undefined:
        """The lines of the runs that methods i and j have in common, in one order."""
        keys = [key for key in self.keys[i] if (i, key) in self.lines and (j, key) in self.lines]
        if keys:
            return [self.lines[i, key] for key in keys], [self.lines[j, key] for key in keys]
        if not self.keys[i] or not self.keys[j]:
            return Undefined("no outcomes per example")
        if not set(self.keys[i]) & set(self.keys[j]):
            return Undefined("no seed in common")
        return Undefined("not the same test examples, or not all of them scored")


def answers(methods: Sequence[Runs]) -> Answers | Undefined:
    """The scores of all runs on the first run's exam; runs of another, or with unasked examples, are left out."""
    exam: Outcomes | None = None
    lines: dict[tuple[int, Any], int] = {}
    scores: list[NDArray[np.float32]] = []
    for i, method in enumerate(methods):
        for key, outcomes in method.items():
            exam = exam if exam is not None else outcomes
            mine = outcome_scores(outcomes)
            if _same_exam(outcomes, exam) and not np.isnan(mine).any():
                lines[i, key] = len(scores)
                scores.append(mine)
    if exam is None:
        return Undefined("no outcomes per example")
    if not scores:
        return Undefined("not every example was scored in the last round")
    return Answers(exam["tasks"], np.stack(scores), lines, tuple(tuple(method) for method in methods))


def _same_exam(first: Outcomes, second: Outcomes) -> bool:
    names = [name for name in ("tasks", "labels") if name in first or name in second]
    return all(name in first and name in second and np.array_equal(first[name], second[name]) for name in names)


@dataclass(frozen=True)
class Difference:
    """How far the first of two methods lies above the second, as fractions, and how sure that is."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    p: float
    """Two-sided, of no difference."""
    n: int
    """How many units were compared."""


def bootstrap(methods: Sequence[Runs], draws: int = DRAWS) -> dict[tuple[int, int], Difference | Undefined]:
    """Compare average accuracies (task mean, last round) of all pairs i < j of methods; n counts their common seeds.

    Runs are paired by key (the seed). Test examples are resampled within their tasks, the same for all methods and
    seeds (hierarchical bootstrap; interval of percentiles). Two or three seeds are too few to resample, which would
    call seed noise a difference too often; so the mean over seeds is drawn from Student's t with one degree of freedom
    less than seeds, on top of what the examples do to all seeds alike: few seeds give wide intervals. With one common
    seed the test speaks of that seed only.
    """
    pairs = list(combinations(range(len(methods)), 2))
    given = answers(methods)
    if isinstance(given, Undefined):
        return dict.fromkeys(pairs, given)
    rng = np.random.default_rng(SEED)
    observed, resampled = _accuracies(given.scores, given.tasks, draws, rng)
    found: dict[tuple[int, int], Difference | Undefined] = {}
    for i, j in pairs:
        common = given.common(i, j)
        if isinstance(common, Undefined):
            found[i, j] = common
            continue
        mine, theirs = common
        found[i, j] = _difference(observed[mine] - observed[theirs], resampled[:, mine] - resampled[:, theirs], rng)
    return found


def paired_tests(methods: Sequence[Runs], draws: int = DRAWS) -> dict[tuple[int, int], float | Undefined]:
    """The p of `bootstrap` for all pairs i < j of methods."""
    return {pair: d if isinstance(d, Undefined) else d.p for pair, d in bootstrap(methods, draws).items()}


def paired_test(first: Runs, second: Runs, draws: int = DRAWS) -> float | Undefined:
    """The p of `bootstrap` for two methods."""
    return paired_tests([first, second], draws)[0, 1]


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


def _accuracies(
    scores: NDArray[np.float32], tasks: NDArray[Any], draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Task-mean score of each run, observed [runs] and with examples resampled within tasks [draws, runs]."""
    members = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    observed: NDArray[np.float64] = np.stack([scores[:, these].mean(axis=1) for these in members]).mean(
        axis=0, dtype=np.float64
    )
    resampled = np.zeros((draws, len(scores)))
    for start in range(0, draws, CHUNK):
        chunk = resampled[start : start + CHUNK]
        for these in members:
            n = len(these)
            picks = rng.integers(0, n, (len(chunk), n)) + n * np.arange(len(chunk))[:, None]
            weights = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape).astype(np.float32)
            chunk += weights @ scores[:, these].T / (n * len(members))
    return observed, resampled


def _difference(observed: NDArray[np.float64], resampled: NDArray[np.float64], rng: np.random.Generator) -> Difference:
    """Of the mean of `observed` [seeds] from 0, given its `resampled` values [draws, seeds]."""
    draws, seeds = len(resampled), len(observed)
    means = resampled.mean(axis=1)
    if seeds > 1:
        deviations = resampled - resampled.mean(axis=0)
        shared, own = deviations.mean(axis=1), deviations - deviations.mean(axis=1, keepdims=True)
        # What the examples do to single seeds is part of the spread between seeds: counted there, and taken out here.
        counted = own.var(axis=0).sum() / (seeds - 1) / seeds
        shared *= max(0.0, 1 - counted / max(shared.var(), counted, 1e-12)) ** 0.5
        means = observed.mean() + shared + rng.standard_t(seeds - 1, draws) * observed.std(ddof=1) / seeds**0.5
    # rounding errors of the float32 sums must not decide the side of an exact zero
    below, above = np.count_nonzero(means <= 1e-6) + 1, np.count_nonzero(means >= -1e-6) + 1
    p = min(1.0, 2.0 * float(min(below, above)) / (draws + 1.0))
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return Difference(float(observed.mean()), float(low), float(high), p, seeds)
