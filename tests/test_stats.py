from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clbench import stats
from clbench.metrics import Undefined
from clbench.stats import Difference, Spread, bootstrap, outcome_scores, paired_test, paired_tests, rank, spread, tied

TASKS, SIZE = 4, 60


def outcomes(correct: NDArray[np.bool_], tasks: int = TASKS, last: int = TASKS) -> dict[str, NDArray[Any]]:
    """Outcomes of one run whose last round answers `correct` [n]."""
    labels = np.arange(len(correct)) % 7
    return {
        "labels": labels,
        "tasks": np.repeat(np.arange(tasks), len(correct) // tasks),
        "round_1": np.full(len(correct), -1),
        f"round_{last}": np.where(correct, labels, (labels + 1) % 7),
    }


def simulate(
    rng: np.random.Generator, *, seeds: int, gap: float = 0.0, seed_noise: float = 0.0
) -> list[dict[int, dict[str, NDArray[Any]]]]:
    """Two methods on one exam of examples of varied difficulty; the second is `gap` logits better."""
    difficulty = rng.normal(0.8, 1.0, TASKS * SIZE)
    methods = []
    for shift in (0.0, gap):
        taste = rng.normal(0.0, 0.3, len(difficulty))
        noise = [rng.normal(0.0, seed_noise) + rng.normal(0.0, 0.5, len(difficulty)) for _ in range(seeds)]
        methods.append({s: outcomes(difficulty + taste + shift + noise[s] > 0) for s in range(seeds)})
    return methods


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([2.0, 4.0]) == Spread(3.0, pytest.approx(2**0.5), 2)
    assert spread([2.0]) == Spread(2.0, Undefined("one run only"), 1)
    assert spread([]) == Spread(Undefined("no run"), Undefined("no run"), 0)
    assert spread([2.0, Undefined("why")]) == Spread(Undefined("why"), Undefined("why"), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_noise"), [(1, 0.0), (2, 0.2), (3, 0.0), (3, 0.2), (5, 0.4)])
def test_false_positives_are_near_the_level(seeds: int, seed_noise: float) -> None:
    rng = np.random.default_rng(0)
    trials = [paired_test(*simulate(rng, seeds=seeds, seed_noise=seed_noise), draws=400) for _ in range(500)]
    assert 5 <= sum(not tied(p) for p in trials) <= 35  # 25 expected


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    differences = [bootstrap(simulate(rng, seeds=2, seed_noise=0.2), draws=200)[0, 1] for _ in range(200)]
    held = sum(isinstance(d, Difference) and d.low <= 0 <= d.high for d in differences)
    assert 182 <= held <= 199  # 190 expected


def test_few_seeds_give_wide_intervals() -> None:
    def width(seeds: int) -> float:
        rng = np.random.default_rng(3)
        found = [bootstrap(simulate(rng, seeds=seeds, seed_noise=0.3), draws=200)[0, 1] for _ in range(20)]
        return float(np.mean([d.high - d.low for d in found if isinstance(d, Difference) and d.n == seeds]))

    assert width(2) > 2 * width(3) > 4 * width(12)


def test_scores_between_right_and_wrong_are_compared_as_answers_are() -> None:
    first, second = simulate(np.random.default_rng(2), seeds=2, gap=0.3)

    def graded(runs: dict[int, dict[str, NDArray[Any]]]) -> dict[int, dict[str, NDArray[Any]]]:
        return {s: {"tasks": run["tasks"], "score_2": outcome_scores(run)} for s, run in runs.items()}

    assert paired_test(graded(first), graded(second)) == paired_test(first, second)
    halved = {s: {**run, "score_2": run["score_2"] / 2} for s, run in graded(first).items()}
    found = bootstrap([graded(first), halved])[0, 1]
    assert isinstance(found, Difference)
    right = np.mean([outcome_scores(run).mean() for run in first.values()])
    assert found.mean == pytest.approx(float(right) / 2, abs=1e-6)
    assert found.low < found.mean < found.high
    assert paired_test(graded(first), second) == Undefined("not the same test examples, or not all of them scored")


def test_an_unasked_example_has_no_score() -> None:
    labels = np.asarray([3, 1, 2])
    answered = {"labels": labels, "tasks": labels, "round_1": labels, "round_10": np.asarray([3, 0, -1])}
    assert outcome_scores(answered).tolist()[:2] == [1.0, 0.0]
    assert np.isnan(outcome_scores(answered)[2])
    scored = {"tasks": labels, "score_1": np.ones(3), "score_2": np.asarray([0.5, np.nan, 1.0], dtype=np.float32)}
    assert np.isnan(outcome_scores(scored)).tolist() == [False, True, False]
    for lacking in ({"tasks": labels}, {"tasks": labels, "round_1": labels}):
        with pytest.raises(ValueError, match="without a round, or without labels"):
            outcome_scores(lacking)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_true_difference_is_found(seeds: int) -> None:
    rng = np.random.default_rng(1)
    found = sum(not tied(paired_test(*simulate(rng, seeds=seeds, gap=0.8), draws=400)) for _ in range(30))
    assert found >= 27


def test_pairing_sees_what_unpaired_numbers_hide() -> None:
    first = np.arange(400) % 2 == 0
    second = first.copy()
    second[1:40:2] = True  # right wherever the first is, and on 20 more
    p = paired_test({0: outcomes(first)}, {0: outcomes(second)})
    assert isinstance(p, float)
    assert p < 0.01


def test_p_is_symmetric_repeatable_and_one_for_equal_methods() -> None:
    first, second = simulate(np.random.default_rng(2), seeds=3, gap=0.3)
    assert paired_test(first, second) == paired_test(first, second)
    assert paired_test(second, first) == pytest.approx(paired_test(first, second), abs=0.08)
    assert paired_test(first, first) == 1.0


def test_the_task_mean_is_compared_not_the_pooled_share() -> None:
    labels = np.zeros(1000, dtype=int)
    tasks = np.repeat([0, 1], [950, 50])
    big, small = np.where(tasks == 0, 0, 1), np.where(tasks == 1, 0, 1)  # each is right on one whole task
    exam = {"labels": labels, "tasks": tasks}
    assert paired_test({0: {**exam, "round_2": big}}, {0: {**exam, "round_2": small}}) == 1.0


def test_only_common_seeds_count() -> None:
    first, second = simulate(np.random.default_rng(3), seeds=3, gap=0.5)
    common = paired_test({0: first[0]}, {0: second[0]})
    assert paired_test({0: first[0], 1: first[1]}, {0: second[0], 2: second[2]}) == pytest.approx(common, abs=0.08)
    assert paired_test({0: first[0]}, {1: second[1]}) == Undefined("no seed in common")
    assert paired_test({}, second) == Undefined("no outcomes per example")
    assert paired_test({}, {}) == Undefined("no outcomes per example")


def test_a_run_that_learns_at_once_has_only_the_last_round() -> None:
    first, second = simulate(np.random.default_rng(4), seeds=1, gap=2.0)
    del second[0]["round_1"]
    assert not tied(paired_test(first, second))


def test_inferred_tasks_are_no_answers() -> None:
    first, second = simulate(np.random.default_rng(4), seeds=1, gap=2.0)
    inferred = {f"inferred_{TASKS + 1}": np.zeros(TASKS * SIZE, dtype=int)}
    assert paired_test(first, {0: {**second[0], **inferred}}) == paired_test(first, second)


def test_different_exams_are_not_compared() -> None:
    first, second = simulate(np.random.default_rng(5), seeds=1)
    shorter = {name: values[:120] for name, values in second[0].items()}
    reason = "not the same test examples, or not all of them scored"
    assert paired_test(first, {0: shorter}) == Undefined(reason)
    unscored = {**second[0], f"round_{TASKS}": np.full(TASKS * SIZE, -1)}
    assert paired_test(first, {0: unscored}) == Undefined(reason)
    assert paired_test({0: unscored}, {0: unscored}) == Undefined("not every example was scored in the last round")
    with pytest.raises(ValueError, match="without a round"):
        paired_test(first, {0: {name: first[0][name] for name in ("labels", "tasks")}})


def test_all_pairs_at_once_agree_with_each_pair() -> None:
    rng = np.random.default_rng(6)
    methods = simulate(rng, seeds=2, gap=0.3) + simulate(rng, seeds=2, gap=1.0)
    together = paired_tests(methods)
    assert list(together) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for (i, j), p in together.items():
        assert p == pytest.approx(paired_test(methods[i], methods[j]), abs=0.08)


def test_rank_shares_the_better_place_among_ties() -> None:
    assert rank([3.0, 1.0, 2.0], {}) == [1, 3, 2]
    assert rank([3.0, 1.0, 2.0], {(0, 2): True}) == [1, 3, 1]
    assert rank([1.0, 1.0], {(0, 1): False}) == [1, 1]
    chain = {(0, 1): True, (1, 2): True, (0, 2): False}
    assert rank([3.0, 2.0, 1.0], chain) == [1, 1, 2]  # the last is tied with the second, but the first beats it
    assert rank([], {}) == []


def test_tied_is_p_of_at_least_the_level() -> None:
    assert tied(0.05)
    assert not tied(0.0499)
    assert not tied(Undefined("no test"))


def test_doctests() -> None:
    outcome = doctest.testmod(stats)
    assert outcome.attempted >= 3
    assert outcome.failed == 0
