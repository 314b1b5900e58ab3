"""Significance: known answers, by hand, by scipy and by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, friedmanchisquare, wilcoxon

from clbench import significance
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.significance import (
    Contest,
    Pair,
    Ranking,
    by_bootstrap,
    by_mcnemar,
    by_wilcoxon,
    compare,
    contests,
    holm,
    over_suites,
    over_tasks,
    ranking,
    rankings,
    t_interval,
)
from clbench.stats import Difference


def outcomes(right: Sequence[float] | NDArray[Any]) -> dict[str, NDArray[Any]]:
    """One run of one task whose examples score so."""
    scores = np.asarray(right, dtype=np.float32)
    return {"tasks": np.zeros(len(scores), dtype=int), "score_1": scores}


def contest(runs: Mapping[str, Mapping[int, Sequence[float] | NDArray[Any]]], suite: str = "s") -> Contest:
    """Rows -> seed -> score of each example, of one task."""
    answers = {row: {(0, s): outcomes(right) for s, right in seeds.items()} for row, seeds in runs.items()}
    scores = {
        row: {(0, s): (float(np.mean(np.asarray(right))),) for s, right in seeds.items()} for row, seeds in runs.items()
    }
    return Contest(suite, "h", answers, scores)


def tasks(scores: Mapping[str, Mapping[int, Sequence[float]]], suite: str = "s") -> Contest:
    """Rows -> seed -> score of each task."""
    return Contest(suite, "h", {}, {row: {(0, s): tuple(v) for s, v in seeds.items()} for row, seeds in scores.items()})


def found(pairs: list[Pair]) -> Difference:
    (pair,) = pairs
    assert isinstance(pair.difference, Difference), pair.difference
    return pair.difference


def test_mcnemar_by_hand() -> None:
    first = [1] * 10 + [0] * 2 + [1] * 30 + [0] * 8
    second = [0] * 10 + [1] * 2 + [1] * 30 + [0] * 8
    d = found(by_mcnemar(contest({"a": {0: first}, "b": {0: second}})))
    assert d.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert d.p == pytest.approx(binomtest(10, 12).pvalue)
    assert (d.mean, d.n) == (pytest.approx(8 / 50), 50)
    # Wald's interval of two paired shares: sqrt(b + c - (b - c)^2 / n) / n on either side
    assert d.high - d.mean == pytest.approx(1.959964 * (12 - 64 / 50) ** 0.5 / 50, rel=1e-5)
    assert d.mean - d.low == pytest.approx(d.high - d.mean)


def test_an_example_counts_once_however_many_seeds_there_are() -> None:
    first, second = {s: [1, 1, 1, 1, 0] for s in range(6)}, {s: [0, 0, 0, 1, 1] for s in range(6)}
    assert found(by_mcnemar(contest({"a": first, "b": second}))).p == binomtest(3, 4).pvalue
    # an example that each wins as often speaks for neither; half right is more than a quarter right
    mixed = contest({"a": {0: [1, 0, 0.5], 1: [0, 0, 0.5]}, "b": {0: [0, 0, 0.25], 1: [1, 0, 0.5]}})
    assert found(by_mcnemar(mixed)).p == binomtest(1, 1).pvalue


def test_equal_methods_do_not_differ() -> None:
    same = contest({"a": {0: [1, 0, 1]}, "b": {0: [1, 0, 1]}})
    for test in ("bootstrap", "mcnemar"):
        (made,) = compare([same], test)
        assert (found(list(made.pairs)).mean, found(list(made.pairs)).p) == (0, 1)
    equal = tasks({"a": {0: [0.5, 0.7, 0.9]}, "b": {0: [0.5, 0.7, 0.9]}})
    assert found(by_wilcoxon([equal])).p == 1


def test_wilcoxon_over_the_tasks_of_one_suite() -> None:
    first, second = [0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.6, 0.4, 0.2, 0.0]
    d = found(by_wilcoxon([tasks({"a": {0: first}, "b": {0: second}})]))
    assert (d.p, d.n, d.mean) == (2 / 2**5, 5, pytest.approx(0.3))
    assert (d.low, d.high) == pytest.approx(t_interval([0.1, 0.2, 0.3, 0.4, 0.5]))
    # seeds are averaged first; a row lacking one is compared on the others
    d = found(by_wilcoxon([tasks({"a": {0: first, 1: second}, "b": {1: first, 2: first}})]))
    assert d.mean == pytest.approx(0.3)  # b, the better one, comes first


def test_wilcoxon_over_suites_is_scipys() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.normal(0.7, 0.1, (9, 2))
    several = [
        tasks({"a": {0: [a, a]}, "b": {0: [b, b], 1: [1, 1]}, str(i): {0: [0, 0]}}, str(i))
        for i, (a, b) in enumerate(pairs)
    ]
    d = found(by_wilcoxon(several))
    assert d.p == pytest.approx(wilcoxon(*pairs.T).pvalue)
    assert (d.n, abs(d.mean)) == (9, pytest.approx(abs((pairs[:, 0] - pairs[:, 1]).mean())))
    (made,) = compare(several, "wilcoxon")
    assert (made.suite, made.unit) == ("0 + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8", "suites")
    assert [each.unit for each in compare(several[:1] * 2, "wilcoxon")] == ["tasks", "tasks"]  # one suite, twice


def test_ties_among_differences_are_counted_exactly() -> None:
    first, second = [0.3, 0.5, 0.7, 0.2, 0.9, 0.7], [0.2, 0.3, 0.5, 0.3, 0.4, 0.4]
    d = found(by_wilcoxon([tasks({"a": {0: first}, "b": {0: second}})]))
    assert d.p == 6 / 2**6  # of the 64 ways to sign ranks 1.5, 1.5, 3.5, 3.5, 5, 6, those at least as lopsided


def test_why_there_is_no_difference() -> None:
    lonely = contest({"a": {0: [1, 0]}, "b": {1: [1, 0]}})
    none = Contest("s", "h", {"a": {}, "b": {}}, lonely.scores)
    for made in (by_bootstrap(lonely), by_mcnemar(lonely), by_wilcoxon([lonely])):
        assert (made[0].difference, made[0].p_holm) == (Undefined("no seed in common"), Undefined("no seed in common"))
    assert by_mcnemar(none)[0].difference == Undefined("no outcomes per example")
    assert by_wilcoxon([contest({"a": {0: [1]}, "b": {0: [0]}})])[0].difference == Undefined(
        "needs two tasks or suites"
    )


def test_holm() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.9, 0.001, 0.5]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([]) == []


def test_holm_leaves_out_pairs_without_a_test() -> None:
    first, second = [1] * 20, [0] * 14 + [1] * 6
    made = by_mcnemar(contest({"a": {0: first}, "b": {0: second}, "c": {1: second}}))
    p = {(pair.first, pair.second): pair.p_holm for pair in made}
    assert p["a", "b"] == binomtest(14, 14).pvalue  # a family of one
    assert isinstance(p["a", "c"], Undefined)


def test_the_interval_of_a_mean_over_seeds() -> None:
    low, high = t_interval([1.0, 3.0])  # type: ignore[misc]
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)  # t of 1 degree of freedom: 12.7062
    assert t_interval([]) == Undefined("no run")
    assert isinstance(t_interval([1.0]), Undefined)


def simulated(rng: np.random.Generator, gap: float = 0.0, seeds: int = 3, n: int = 240) -> Contest:
    """Two methods on examples of varied difficulty; the second is `gap` logits better."""
    difficulty = rng.normal(0.8, 1.0, n)
    rows = {}
    for row, shift in (("a", 0.0), ("b", gap)):
        taste = rng.normal(0.0, 0.3, n)
        rows[row] = {s: difficulty + taste + shift + rng.normal(0, 0.5, n) > 0 for s in range(seeds)}
    return contest(rows)


@pytest.mark.parametrize("seeds", [1, 3])
def test_mcnemar_finds_what_is_there_and_little_else(seeds: int) -> None:
    rng = np.random.default_rng(1)
    false = sum(found(by_mcnemar(simulated(rng, seeds=seeds))).p < 0.05 for _ in range(500))
    assert 3 <= false <= 35  # at most 25 expected: an exact test of few discordant examples is careful
    true = sum(found(by_mcnemar(simulated(rng, gap=0.8, seeds=seeds))).p < 0.05 for _ in range(50))
    assert true >= 45


def test_wilcoxon_finds_what_is_there_and_little_else() -> None:
    rng = np.random.default_rng(2)

    def trial(gap: float) -> bool:
        drawn = rng.normal(0.6, 0.1, 12)
        first, second = drawn + rng.normal(0, 0.05, 12), drawn + gap + rng.normal(0, 0.05, 12)
        return found(by_wilcoxon([tasks({"a": {0: list(first)}, "b": {0: list(second)}})])).p < 0.05

    assert 10 <= sum(trial(0.0) for _ in range(500)) <= 35  # 25 expected
    assert sum(trial(0.1) for _ in range(50)) >= 45


def test_friedman_keeps_its_level() -> None:
    rng = np.random.default_rng(3)

    def trial() -> bool:
        made = ranking([dict(zip("abcd", map(float, rng.normal(size=4)), strict=True)) for _ in range(12)], "")
        assert isinstance(made, Ranking)
        return made.p < 0.05

    assert 8 <= sum(trial() for _ in range(500)) <= 35


def test_the_critical_difference_is_the_published_one() -> None:
    # Demšar (2006), section 3.2.2: four methods on 14 data sets, CD 1.25; q in table 5(a).
    blocks = [{"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}] * 14
    made = ranking(blocks, "unit")
    assert isinstance(made, Ranking)
    assert made.critical_difference == pytest.approx(1.25, abs=0.005)
    assert made.mean_ranks == (1, 2, 3, 4)
    assert made.methods == ("d", "c", "b", "a")
    assert made.groups == ((0, 1), (1, 2), (2, 3))
    for k, q in ((3, 2.343), (5, 2.728), (10, 3.164)):
        made = ranking([{str(i): float(i) for i in range(k)}] * 6, "unit")
        assert isinstance(made, Ranking)
        assert made.critical_difference / (k * (k + 1) / 36) ** 0.5 == pytest.approx(q, abs=1e-3)


def test_ranks_share_their_mean_and_friedman_is_scipys() -> None:
    blocks = [{"a": 0.9, "b": 0.5, "c": 0.5}, {"a": 0.8, "b": 0.7, "c": 0.6}, {"a": 0.1, "b": 0.2, "c": 0.2}]
    made = ranking(blocks, "unit")
    assert isinstance(made, Ranking)
    assert dict(zip(made.methods, made.mean_ranks, strict=True)) == pytest.approx({"a": 5 / 3, "b": 6 / 3, "c": 7 / 3})
    assert made.p == pytest.approx(friedmanchisquare(*([block[m] for block in blocks] for m in "abc")).pvalue)
    assert made.groups == ((0, 2),)
    equal = ranking([{"a": 1.0, "b": 1.0, "c": 1.0}] * 3, "unit")
    assert isinstance(equal, Ranking)
    assert (equal.p, equal.mean_ranks) == (1, (2, 2, 2))
    assert isinstance(ranking([{"a": 1.0, "b": 0.0}] * 9, "unit"), Undefined)
    assert isinstance(ranking([], "unit"), Undefined)


def test_methods_are_ranked_over_suites_where_there_are_three() -> None:
    rows = {"a": {0: [0.9, 0.7]}, "b": {0: [0.5, 0.7]}, "c": {0: [0.1, 0.1], 1: [0.1, 0.1]}}
    several = [tasks({**rows, f"only{suite}": {0: [1, 1]}}, suite) for suite in "xyz"]
    ((name, made),) = rankings(several)
    assert (name, made.methods, made.blocks) == ("suites together", ("a", "b", "c"), 3)
    assert made.unit == "blocks are 3 suites: x, y, z"
    alone = tasks({"a": {0: [0.9]}, "d": {0: [0.1]}}, "w")
    assert over_suites([alone, *several]) == made
    assert [name for name, _ in rankings(several[:2])] == ["x", "y"]
    assert over_suites([*several, several[0]]) == Undefined("a suite is there in several protocols")
    assert over_suites([*several[:2], alone]) == Undefined("fewer than 3 suites share methods")
    each = over_tasks(several[0])
    assert isinstance(each, Ranking)
    assert each.unit.startswith("blocks are 2 tasks × 1 seed of one suite, which depend on each other")
    assert (each.blocks, each.methods[0]) == (2, "onlyx")
    apart = tasks({"a": {0: [1]}, "b": {1: [1]}, "c": {0: [1]}})
    assert over_tasks(apart) == Undefined("no seed that all methods have")


def test_contests_are_of_finished_fresh_runs_by_row() -> None:
    def run(method: str, seed: int, **changes: Any) -> Record:
        return Record.example(method=method, seed=seed, key=f"{method}{seed}", **changes)

    failed = run("l2p", 0, status="failed", reason="x", scores=(), costs=())
    other = run("ewc", 0, variant="w=1", params={"w": 1})
    records = [run("ewc", 0), run("ewc", 1), run("gem", 0), other, failed, run("old", 0)]
    kept = {"ewc0": outcomes([1, 0])}
    (made,) = contests(records, {"old0"}, lambda record: kept.get(record.key))
    assert made.rows == ("ewc", "ewc (w=1)", "gem")
    assert made.scores["ewc"] == {(0, 0): (0.5, 0.9), (0, 1): (0.5, 0.9)}
    assert set(made.answers["ewc"]) == {(0, 0)}
    assert made.answers["gem"] == {}
    assert made.only(["gem"]).rows == ("gem",)
    assert len(contests([*records, run("ewc", 0, suite_hash="other")], (), lambda record: None)) == 2


def test_the_smallest_p_of_the_bootstrap_counts_after_holm() -> None:
    rng = np.random.default_rng(0)
    rows = {str(i): {0: rng.random(60) < 0.05 + 0.1 * i} for i in range(10)}
    made = by_bootstrap(contest(rows))
    assert len(made) == len(list(combinations(rows, 2))) == 45
    best = {(pair.first, pair.second): pair.p_holm for pair in made}["9", "0"]
    assert isinstance(best, float)
    assert best < 0.05
    assert significance.DRAWS_PER_PAIR * 45 > 2 * 45 / 0.05
