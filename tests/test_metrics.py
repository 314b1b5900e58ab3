from __future__ import annotations

import ast
import doctest
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench import metrics
from clbench.metrics import Undefined

FULL = (
    (0.1, 0.2, 0.3),
    (0.9, 0.4, 0.2),
    (0.6, 0.8, 0.5),
    (0.7, 0.2, 1.0),
)
LOWER = tuple(tuple(v if j < t else None for j, v in enumerate(row)) for t, row in enumerate(FULL))
JOINT = ((None,) * 3, (None,) * 3, (None,) * 3, (0.7, 0.2, 1.0))
ALL = (
    metrics.average_accuracy,
    metrics.average_incremental_accuracy,
    metrics.learning_accuracy,
    metrics.forgetting,
    metrics.bwt,
    metrics.bwt_trace,
    metrics.bwt_treelora,
    metrics.forward_transfer,
)


@pytest.mark.parametrize("scores", [FULL, LOWER])
def test_by_hand(scores: metrics.Scores) -> None:
    assert metrics.average_accuracy(scores) == pytest.approx(1.9 / 3)
    assert metrics.average_accuracy_pooled(scores, (10, 20, 70)) == pytest.approx(0.07 + 0.04 + 0.7)
    assert metrics.average_incremental_accuracy(scores) == pytest.approx((0.9 + 0.7 + 1.9 / 3) / 3)
    assert metrics.learning_accuracy(scores) == pytest.approx(0.9)
    assert metrics.forgetting(scores) == pytest.approx((0.2 + 0.6) / 2)
    assert metrics.bwt(scores) == pytest.approx((-0.2 - 0.6) / 2)
    assert metrics.bwt_trace(scores) == pytest.approx(-0.8 / 3)
    assert metrics.bwt_treelora(scores) == pytest.approx(-0.8 / 3)


def test_forgetting_looks_at_the_best_round_and_bwt_at_the_first() -> None:
    scores = ((None,) * 3, (0.5, None, None), (0.9, 0.4, None), (0.7, 0.6, 1.0))
    assert metrics.forgetting(scores) == pytest.approx((0.2 - 0.2) / 2)
    assert metrics.bwt(scores) == pytest.approx((0.2 + 0.2) / 2)
    assert metrics.bwt_treelora(scores) == 0.0


def test_forward_transfer() -> None:
    assert metrics.forward_transfer(FULL) == pytest.approx(((0.4 - 0.2) + (0.5 - 0.3)) / 2)
    assert metrics.forward_transfer(LOWER) == Undefined("tasks were not measured before they were learned")
    without_row_0 = ((None,) * 3, *FULL[1:])
    assert metrics.forward_transfer(without_row_0) == Undefined("not measured before learning")


def test_a_joint_run_has_only_its_last_row() -> None:
    assert metrics.average_accuracy(JOINT) == pytest.approx(1.9 / 3)
    assert metrics.average_accuracy_pooled(JOINT, (1, 1, 2)) == pytest.approx(2.9 / 4)
    for metric in ALL[1:-1]:
        assert metric(JOINT) == Undefined("not measured after every task")


def test_one_task_forgets_nothing_and_so_has_no_forgetting() -> None:
    scores = ((0.5,), (1.0,))
    assert metrics.average_accuracy(scores) == metrics.learning_accuracy(scores) == 1.0
    for metric in ALL[3:]:
        assert metric(scores) == Undefined("needs two tasks or more")


@pytest.mark.parametrize("metric", ALL)
def test_nothing_measured(metric: Any) -> None:
    assert metric(()) == Undefined("no scores")
    assert isinstance(metric(((None, None), (1.0, None), (None, None))), Undefined)


def test_no_test_samples() -> None:
    assert metrics.average_accuracy_pooled(((None,), (0.5,)), (0,)) == Undefined("no test samples")


def test_a_wrong_shape_is_a_bug() -> None:
    with pytest.raises(ValueError, match="one row more"):
        metrics.average_accuracy(((1.0, 0.5), (1.0, 0.5)))
    with pytest.raises(ValueError, match="2 test sizes for 3 tasks"):
        metrics.average_accuracy_pooled(FULL, (1, 2))


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float | None]]:
    tasks = draw(st.integers(2, 6))
    score = st.floats(0, 1)
    return [[draw(score) if j < t else None for j in range(tasks)] for t in range(tasks + 1)]


@given(matrices())
def test_how_the_metrics_relate(scores: list[list[float | None]]) -> None:
    tasks = len(scores) - 1
    value = {metric.__name__: metric(scores) for metric in ALL[:-1]}
    assert all(isinstance(v, float) for v in value.values())
    assert value["forgetting"] >= -value["bwt"] - 1e-12
    assert value["bwt_trace"] == pytest.approx(value["bwt"] * (tasks - 1) / tasks)
    assert value["bwt_treelora"] <= min(value["bwt_trace"], 0.0) + 1e-12
    assert value["average_accuracy"] - value["learning_accuracy"] == pytest.approx(value["bwt_trace"])
    assert metrics.average_accuracy_pooled(scores, [7] * tasks) == pytest.approx(value["average_accuracy"])


@given(matrices(), st.data())
def test_one_missing_cell_never_becomes_a_number_that_needs_it(scores: list[list[float | None]], data: Any) -> None:
    task = data.draw(st.integers(0, len(scores) - 2))
    scores[task + 1][task] = None
    for metric in (metrics.learning_accuracy, metrics.average_incremental_accuracy):
        assert isinstance(metric(scores), Undefined)


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_doctests() -> None:
    outcome = doctest.testmod(metrics)
    assert outcome.attempted >= 9
    assert outcome.failed == 0
