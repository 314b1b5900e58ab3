"""Significance: how far the methods of a comparison lie apart, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench import stats
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.row import Number
from clbench.stats import LEVEL, Difference
from clbench.table import ReadOutcomes, Run, answers_of, exams, labels, run_of

SUITES_NEEDED = 3
"""From so many suites on, they and not the tasks of one are what methods are ranked over."""

DRAWS_PER_PAIR = 200
"""Of the bootstrap: the smallest p times the number of pairs is then 0.01."""

TaskScores = tuple[float, ...]


@dataclass(frozen=True)
class Contest:
    """The finished runs of one suite and protocol, by row: what tests compare."""

    suite: str
    suite_hash: str
    answers: Mapping[str, stats.Runs]
    """Row -> run -> outcomes; empty where none were kept."""
    scores: Mapping[str, Mapping[Run, TaskScores]]
    """Row -> run -> score of each task after the last one, as fractions."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows, the highest average first."""
        return tuple(sorted(self.scores, key=lambda row: (-fmean(map(fmean, self.scores[row].values())), row)))

    def only(self, rows: Collection[str]) -> Contest:
        """The same of some rows."""
        return replace(
            self,
            answers={row: runs for row, runs in self.answers.items() if row in rows},
            scores={row: runs for row, runs in self.scores.items() if row in rows},
        )


@dataclass(frozen=True)
class Pair:
    """Two rows of a contest; `difference` is the first's minus the second's, or why there is none."""

    first: str
    second: str
    difference: Difference | Undefined
    p_holm: Number
    """p, adjusted for the number of pairs."""


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over blocks, and how far apart they must be: Friedman's and Nemenyi's tests."""

    methods: tuple[str, ...]
    """The best first."""
    mean_ranks: tuple[float, ...]
    """1 is the best; methods that are equal in a block share the mean of their ranks."""
    critical_difference: float
    p: float
    """Friedman's, of no difference at all."""
    blocks: int
    unit: str
    """What the blocks are, in words."""

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """First and last method of each longest stretch whose ends are less than the critical difference apart."""
        found: list[tuple[int, int]] = []
        for first, rank in enumerate(self.mean_ranks):
            last = max(i for i, other in enumerate(self.mean_ranks) if other - rank < self.critical_difference)
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return tuple(found)


def contests(records: Iterable[Record], stale: Collection[str], outcomes: ReadOutcomes) -> list[Contest]:
    """What there is to compare: one contest for each table, of its finished fresh rows; none of imported runs."""
    found = []
    for (suite, _, suite_hash), groups in exams(records, stale).items():
        fresh = [group for group in groups if group.status == "done" and not group.done[0].system]
        rows = dict(zip(labels(fresh), fresh, strict=True))
        scores = {row: {run_of(r): last for r in group.done if (last := _last(r))} for row, group in rows.items()}
        known = {row: runs for row, runs in scores.items() if runs}
        if known:
            found.append(Contest(suite, suite_hash, {row: answers_of(rows[row], outcomes) for row in known}, known))
    return found


def _last(record: Record) -> TaskScores:
    """The scores of all tasks after the last one; () unless all were measured."""
    measured = tuple(score for score in record.scores[-1] if score is not None)
    return measured if len(measured) == len(record.tasks) else ()


@dataclass(frozen=True)
class Comparison:
    """All pairs of the rows of one suite, or of the rows that several suites share, by one test."""

    suite: str
    protocol: str
    """'' where it is of several suites."""
    test: str
    unit: str
    """What `Difference.n` counts."""
    pairs: tuple[Pair, ...]


def by_bootstrap(contest: Contest) -> list[Pair]:
    """All pairs by the bootstrap over examples and seeds (`stats.bootstrap`): average accuracy, interval and p.

    It draws so often that the smallest p still counts after Holm's correction.
    """
    rows = contest.rows
    pairs = list(combinations(range(len(rows)), 2))
    found = stats.bootstrap([contest.answers[row] for row in rows], max(stats.DRAWS, DRAWS_PER_PAIR * len(pairs)))
    return _with_holm(rows, [found[pair] for pair in pairs])


def by_mcnemar(contest: Contest) -> list[Pair]:
    """All pairs by McNemar's test (McNemar, 1947), exact: which of the two scores more examples better.

    An example speaks for the method that scores higher on it in the mean over the common seeds, so that it counts once
    however many seeds there are; examples of equal means are left out. With one seed and right or wrong answers this
    is the test as published; its p is the binomial one, which needs no least number of discordant examples. The
    interval is the normal one of the pooled difference over examples. Both speak of the trained models at hand: other
    seeds are not in it (Dietterich, 1998).
    """
    rows = contest.rows
    given = stats.answers([contest.answers[row] for row in rows])

    def judge(i: int, j: int) -> Difference | Undefined:
        if isinstance(given, Undefined):
            return given
        common = given.common(i, j)
        if isinstance(common, Undefined):
            return common
        return mcnemar((given.scores[common[0]].astype(float) - given.scores[common[1]]).mean(axis=0))

    return _with_holm(rows, [judge(i, j) for i, j in combinations(range(len(rows)), 2)])


def mcnemar(apart: NDArray[Any]) -> Difference:
    """The test of `by_mcnemar` on paired examples: `apart` [n] is by how much the first scores higher on each."""
    from scipy.stats import binomtest, norm

    won, lost = int((apart > 1e-9).sum()), int((apart < -1e-9).sum())
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    half = float(norm.ppf(1 - LEVEL / 2) * apart.std() / len(apart) ** 0.5)
    mean = float(apart.mean())
    return Difference(mean, mean - half, mean + half, p, len(apart))


def by_wilcoxon(several: Sequence[Contest]) -> list[Pair]:
    """All pairs by Wilcoxon's signed-rank test (Wilcoxon, 1945): over suites, or over the tasks of the only one.

    A suite's difference is that of the averages over the common seeds; of several contests, rows of equal names are
    the same method. p is exact up to 13 differences, and up to 50 without ties. The interval is Student's over the
    differences. Below six differences no p can fall under 0.05.
    """
    shared = [row for row in several[0].rows if all(row in contest.scores for contest in several)]

    def differences(first: str, second: str) -> list[float] | Undefined:
        found: list[float] = []
        for contest in several:
            mine, theirs = contest.scores[first], contest.scores[second]
            common = sorted(set(mine) & set(theirs))
            if not common:
                return Undefined("no seed in common")
            tasks = [fmean(values) for values in zip(*(_minus(mine[k], theirs[k]) for k in common), strict=True)]
            found += tasks if len(several) == 1 else [fmean(tasks)]
        return found

    return _with_holm(shared, [_signed_rank(differences(a, b)) for a, b in combinations(shared, 2)])


def _minus(first: TaskScores, second: TaskScores) -> list[float]:
    # rounded, so that equal differences are ties whatever their sums were made of
    return [round(a - b, 9) for a, b in zip(first, second, strict=True)]


def _signed_rank(differences: list[float] | Undefined) -> Difference | Undefined:
    from scipy.stats import wilcoxon

    if isinstance(differences, Undefined):
        return differences
    if len(differences) < 2:
        return Undefined("needs two tasks or suites")
    values = np.round(differences, 9)
    p = float(wilcoxon(values).pvalue) if values.any() else 1.0
    interval = t_interval(differences)
    assert not isinstance(interval, Undefined)  # there are two or more
    return Difference(fmean(differences), *interval, p, len(differences))


def t_interval(values: Sequence[float]) -> tuple[float, float] | Undefined:
    """The 95 % interval of the mean of n values by Student's t with n - 1 degrees of freedom; wide where n is small.

    >>> [round(end, 2) for end in t_interval([1.0, 2.0, 3.0])]
    [-0.48, 4.48]
    >>> t_interval([1.0]).reason
    'one run only: nothing tells how far another would lie'
    """
    from scipy.stats import t

    if len(values) < 2:
        return Undefined("one run only: nothing tells how far another would lie" if values else "no run")
    half = float(t.ppf(1 - LEVEL / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of a family of tests, adjusted so that one false finding in the whole family is as rare as 0.05 says.

    Holm (1979): the k-th smallest of m is multiplied by m - k + 1, and none is smaller than those before it.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _with_holm(rows: Sequence[str], differences: Sequence[Difference | Undefined]) -> list[Pair]:
    adjusted = iter(holm([found.p for found in differences if isinstance(found, Difference)]))
    return [
        Pair(first, second, found, next(adjusted) if isinstance(found, Difference) else found)
        for (first, second), found in zip(combinations(rows, 2), differences, strict=True)
    ]


_ONE_SUITE: Mapping[str, tuple[Callable[[Contest], list[Pair]], str]] = {
    "bootstrap": (by_bootstrap, "seeds"),
    "mcnemar": (by_mcnemar, "examples"),
    "wilcoxon": (lambda contest: by_wilcoxon([contest]), "tasks"),
}
TESTS = tuple(_ONE_SUITE)


def compare(several: Sequence[Contest], test: str) -> list[Comparison]:
    """All pairs by one of TESTS: a comparison for each contest, but of several one where the test is over suites."""
    if test == "wilcoxon" and len(several) > 1 and _distinct(several):
        suites = " + ".join(contest.suite for contest in several)
        return [Comparison(suites, "", test, "suites", tuple(by_wilcoxon(several)))]
    judge, unit = _ONE_SUITE[test]
    return [Comparison(c.suite, c.suite_hash, test, unit, tuple(judge(c))) for c in several]


def rankings(several: Sequence[Contest]) -> list[tuple[str, Ranking]]:
    """Mean ranks with the name of what they are over: suites if enough share methods, else each suite's tasks."""
    together = over_suites(several)
    if isinstance(together, Ranking):
        return [("suites together", together)]
    each = [(contest.suite, over_tasks(contest)) for contest in several]
    return [(suite, found) for suite, found in each if isinstance(found, Ranking)]


def _distinct(several: Sequence[Contest]) -> bool:
    """Whether each is of a suite of its own: protocols of one suite are not two suites."""
    return len({contest.suite for contest in several}) == len(several)


def over_suites(several: Sequence[Contest]) -> Ranking | Undefined:
    """Rank the methods that three of the suites or more share, by the average over their seeds.

    Suites are taken in the order of their number of rows; one that has less than half of the methods that those before
    it share, or less than three, is left out.
    """
    if not _distinct(several):
        return Undefined("a suite is there in several protocols")
    chosen: list[Contest] = []
    shared: set[str] = set()
    for contest in sorted(several, key=lambda contest: (-len(contest.scores), contest.suite)):
        both = shared & set(contest.scores) if chosen else set(contest.scores)
        if len(both) >= max(3, len(shared) / 2):
            chosen, shared = [*chosen, contest], both
    if len(chosen) < SUITES_NEEDED:
        return Undefined(f"fewer than {SUITES_NEEDED} suites share methods")
    blocks = [{row: fmean(map(fmean, c.scores[row].values())) for row in sorted(shared)} for c in chosen]
    names = ", ".join(sorted(contest.suite for contest in chosen))
    return ranking(blocks, f"blocks are {len(chosen)} suites: {names}")


def over_tasks(contest: Contest) -> Ranking | Undefined:
    """Rank the methods of one suite over its tasks, once for each seed that all methods have."""
    seeds = sorted(set.intersection(*(set(runs) for runs in contest.scores.values())))
    if not seeds:
        return Undefined("no seed that all methods have")
    tasks = len(contest.scores[contest.rows[0]][seeds[0]])
    blocks = [{row: contest.scores[row][seed][j] for row in contest.rows} for seed in seeds for j in range(tasks)]
    unit = (
        f"blocks are {_counted(tasks, 'task')} × {_counted(len(seeds), 'seed')} of one suite, "
        "which depend on each other: a description, not a test"
    )
    return ranking(blocks, unit)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"


def ranking(blocks: Sequence[Mapping[str, float]], unit: str) -> Ranking | Undefined:
    """Mean ranks of methods over blocks of method -> score, after Demšar (2006).

    Two methods differ where their mean ranks are q √(k (k + 1) / (6 N)) or more apart: k methods, N blocks, and q the
    studentised range of k at 0.05 over √2 (Nemenyi).
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    methods = list(blocks[0]) if blocks else []
    k, n = len(methods), len(blocks)
    if k < 3 or n < 2:
        return Undefined("needs three methods and two blocks")
    scores = np.round([[block[method] for method in methods] for block in blocks], 9)
    ranks = rankdata(-scores, axis=1)
    differ = bool((ranks != ranks[0, 0]).any())
    p = float(friedmanchisquare(*scores.T).pvalue) if differ else 1.0
    q = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / 2**0.5
    means = ranks.mean(axis=0)
    order = sorted(range(k), key=lambda i: (means[i], methods[i]))
    return Ranking(
        methods=tuple(methods[i] for i in order),
        mean_ranks=tuple(float(means[i]) for i in order),
        critical_difference=q * (k * (k + 1) / (6 * n)) ** 0.5,
        p=p,
        blocks=n,
        unit=unit,
    )
