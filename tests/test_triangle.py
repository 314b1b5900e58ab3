"""The triangle of one run: what stands where, and how wide the intervals are."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from clbench.errors import ClbenchError
from clbench.record import Record
from clbench.report import triangle

TEXT = Record.example(
    score_name="strict",
    floors=(0.4, 0.25),
    other_scores={"invalid": ((None, None), (0.05, None), (0.6, 0.1))},
)


def test_examples() -> None:
    assert doctest.testmod(triangle).failed == 0


def test_every_number_stands_under_its_task() -> None:
    lines = triangle.text(TEXT).splitlines()
    assert lines[0] == "digits/plain/seed0 · 0123456789ab · strict in %"
    assert [line.split() for line in lines[1:7]] == [
        ["1", "2"],
        ["1", "a", "100.0"],
        ["2", "b", "50.0", "90.0"],
        ["floor", "40.0", "25.0"],
        ["invalid,", "just", "learned", "5.0", "10.0"],
        ["invalid,", "at", "the", "end", "60.0", "10.0"],
    ]
    assert lines[-1] == "average 70.00, forgetting 50.00, BWT -50.00"


def test_images_have_scores_alone() -> None:
    shown = triangle.text(Record.example())
    assert "floor" not in shown
    assert "invalid" not in shown
    assert len(shown.splitlines()) == 6


def test_a_joint_run_has_one_round() -> None:
    record = Record.example(scores=((None, None), (None, None), (0.5, 0.9)), protocol={"schedule": "joint"}, costs=())
    lines = triangle.text(record).splitlines()
    assert lines[2].split() == ["all", "tasks", "50.0", "90.0"]
    assert "forgetting – (" in lines[-1]


def test_columns_that_do_not_fit_go_below() -> None:
    shown = triangle.text(TEXT, width=30).splitlines()
    assert max(map(len, shown[1:-2])) <= 30
    assert sum(line.startswith("floor") for line in shown) == 2


def test_sampled_rounds_have_intervals_and_whole_ones_none() -> None:
    nothing = float("nan")
    outcomes = {
        "tasks": np.array([0] * 10 + [1] * 30),
        "score_1": np.array([1.0] * 4 + [nothing] * 36),
        "score_2": np.array([0.5] * 10 + [0.9] * 30),
    }
    widths = triangle.half_widths(TEXT, outcomes)
    # 4 of 10 asked, all right: with 0 0 1 1 added the deviation is sqrt(3)/4, of 8; (10 - 4) / 9 are left unknown
    assert widths == {1: [pytest.approx(1.96 * (3**0.5 / 4) / 8**0.5 * (6 / 9) ** 0.5)]}
    assert "100.0±24.5" in triangle.text(TEXT, outcomes)
    assert triangle.facts(TEXT, outcomes)["half_widths"] == widths


def test_classes_are_scored_by_their_labels() -> None:
    outcomes = {
        "tasks": np.array([0] * 10 + [1] * 30),
        "labels": np.arange(40),
        "round_1": np.array([0, 5, *[-1] * 38]),
        "round_2": np.arange(40),
    }
    (width,) = triangle.half_widths(Record.example(), outcomes)[1]
    assert width == pytest.approx(triangle.half_width(np.array([1.0, 0.0]), 10))


def test_the_interval_covers_as_often_as_it_says() -> None:
    draws, scores = np.random.default_rng(0), np.repeat([0.0, 1.0], [60, 140])
    hits = 0
    for _ in range(500):
        drawn = draws.choice(scores, 20, replace=False)
        hits += abs(drawn.mean() - scores.mean()) <= triangle.half_width(drawn, len(scores))
    assert hits >= 0.93 * 500


def test_a_run_without_scores_says_so() -> None:
    failed = Record.example(status="failed", reason="loss is not finite", scores=(), costs=())
    with pytest.raises(ClbenchError, match=r"has no scores: it failed \(loss is not finite\)"):
        triangle.text(failed)
