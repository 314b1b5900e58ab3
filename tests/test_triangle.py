"""The triangle of one run: what stands where, and how wide the intervals are."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from clbench.errors import ClbenchError, UnknownName
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


MARKED = TEXT.model_copy(
    update={
        "other_scores": {"lenient": ((None, None), (1.0, None), (0.75, 0.95)), **TEXT.other_scores},
        "other_floors": {"lenient": (0.5, 0.3)},
    }
)


def test_other_marks_of_the_last_round_stand_below_the_floor() -> None:
    lines = triangle.text(MARKED).splitlines()
    assert [line.split() for line in lines[4:7]] == [
        ["floor", "40.0", "25.0"],
        ["lenient,", "at", "the", "end", "75.0", "95.0"],
        ["invalid,", "just", "learned", "5.0", "10.0"],
    ]
    assert "lenient: other marks of the same answers" in lines[-2]
    assert triangle.facts(MARKED, None)["other_floors"] == {"lenient": (0.5, 0.3)}


def test_a_run_by_another_of_its_marks() -> None:
    nothing = float("nan")
    outcomes = {
        "tasks": np.array([0] * 10 + [1] * 30),
        **{f"score_{i}": np.zeros(40) for i in (1, 2)},
        "lenient_1": np.array([1.0] * 4 + [nothing] * 36),
        "lenient_2": np.ones(40),
    }
    record, seen = triangle.marked(MARKED, outcomes, "lenient")
    lines = triangle.text(record, seen).splitlines()
    assert lines[0].endswith("lenient in %")
    assert [line.split() for line in lines[2:6]] == [
        ["1", "a", "100.0±24.5"],
        ["2", "b", "75.0", "95.0"],
        ["floor", "50.0", "30.0"],
        ["strict,", "at", "the", "end", "50.0", "90.0"],
    ]
    assert lines[-1] == "average 85.00, forgetting 25.00, BWT -25.00"
    assert triangle.marked(MARKED, outcomes, "strict") == (MARKED, outcomes)
    assert triangle.marked(MARKED, None, "lenient")[1] is None
    for unknown in ("invalid", "trace"):
        with pytest.raises(UnknownName, match="Known: lenient, strict"):
            triangle.marked(MARKED, outcomes, unknown)


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
