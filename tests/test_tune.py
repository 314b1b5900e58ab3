"""Tuning: random search on validation data alone, recorded and repeatable."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from clbench import catalog, tune
from clbench.errors import BadValue, ClbenchError, Unsupported
from clbench.executors import Quiet
from clbench.method import Search
from clbench.methods import CONTENTS
from clbench.plan import Cell
from clbench.recipe import Recipe
from clbench.store import Store
from clbench.stream import Stream
from clbench.tiny import stream as tiny_stream
from clbench.tiny import tiny

CPU = torch.device("cpu")
ONE_EPOCH = tiny.recipe.model_copy(update={"epochs": 1})
SHORT = replace(tiny, recipe=ONE_EPOCH, make_stream=lambda seed: tiny_stream(seed, 2))


class Forbidden:
    """Examples that must not be touched in any way."""

    def _raise(self, *args: object) -> NoReturn:
        raise AssertionError("test data was read")

    __len__ = __getitem__ = batch = sha256 = _raise
    targets = property(_raise)


def without_readable_test(order_seed: int) -> Stream:
    stream = tiny_stream(order_seed, tasks=2)
    return Stream(tuple(replace(task, test=Forbidden()) for task in stream))


class Started(Quiet):
    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def cell_started(self, cell: Cell) -> None:
        self.cells.append(cell)


def search(root: Path, method: str = "seqlora", trials: int = 3, seed: int = 0, suite: object = SHORT) -> tune.Result:
    kind = catalog.method_type(method)
    return tune.tune(suite, kind, trials=trials, seed=seed, device=CPU, store=Store(root))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tune.Result]:
    root = tmp_path_factory.mktemp("store")
    return root, search(root)


def test_no_test_data_is_touched(tmp_path: Path) -> None:
    suite = replace(SHORT, make_stream=without_readable_test)
    with pytest.raises(AssertionError, match="test data was read"):
        suite.protocol(suite.stream(), 0)
    result = search(tmp_path, trials=1, suite=suite)
    assert result.trials[0].score is not None


def test_trials_are_scored_on_validation_and_kept_apart_from_the_table(done: tuple[Path, tune.Result]) -> None:
    root, result = done
    assert Store(root).load().records == []
    records = Store(root / "tuning").load().records
    assert {record.key for record in records} == {trial.key for trial in result.trials}
    for record in records:
        assert record.protocol["scored_on"] == "validation"
        assert record.test_sizes == tuple(len(task.validation) for task in tiny_stream(tasks=2))


def test_the_first_trial_is_the_settings_as_they_are_and_the_best_has_the_highest_score(
    done: tuple[Path, tune.Result],
) -> None:
    _, result = done
    assert len(result.trials) == 3
    assert result.trials[0].values == {}
    assert all(set(trial.values) == {"learning_rate"} for trial in result.trials[1:])
    assert result.best.score == max(trial.score or 0.0 for trial in result.trials)


def test_the_line_repeats_the_best_trial(done: tuple[Path, tune.Result]) -> None:
    _, result = done
    chosen = replace(result, best=result.trials[1])
    flag, word = chosen.line.split()
    assert flag == "--set"
    name, _, value = word.partition("=")
    method, _, field = name.partition(".")
    row = catalog.rows(SHORT, [method], {method: {field: value}})[0]
    assert row.method.learning_rate == result.trials[1].values["learning_rate"]
    assert replace(result, best=result.trials[0]).line == ""


def test_the_summary_tells_budget_ranges_and_trials(done: tuple[Path, tune.Result]) -> None:
    _, result = done
    summary = json.loads(result.summary_path.read_text())
    assert summary["budget_trials"] == 3
    assert summary["scored_on"] == "validation"
    assert summary["ranges"] == {"learning_rate": [1e-3, 1e-1, True]}
    assert [trial["score"] for trial in summary["trials"]] == [trial.score for trial in result.trials]
    assert summary["best"] == result.best.number


def test_a_repeated_search_runs_nothing_and_a_longer_one_only_what_is_new(done: tuple[Path, tune.Result]) -> None:
    root, result = done
    reporter = Started()
    kind = catalog.method_type("seqlora")
    again = tune.tune(SHORT, kind, trials=3, seed=0, device=CPU, store=Store(root), reporter=reporter)
    assert reporter.cells == []
    assert again == result
    longer = tune.tune(SHORT, kind, trials=4, seed=0, device=CPU, store=Store(root), reporter=reporter)
    assert longer.trials[:3] == result.trials
    assert len(reporter.cells) == 1


def test_suggestions_lie_in_their_ranges_and_depend_on_the_seed() -> None:
    where = {"a": Search(1e-4, 1e-1), "b": Search(2, 5, log=False)}
    drawn = tune.suggestions(where, 200, 7)
    assert drawn == [*tune.suggestions(where, 100, 7), *drawn[100:]]
    assert drawn != tune.suggestions(where, 200, 8)
    assert all(mark.low <= trial[name] <= mark.high for trial in drawn for name, mark in where.items())
    below = sum(trial["a"] < 10**-2.5 for trial in drawn) / 200
    assert 0.4 < below < 0.6
    assert 0.4 < sum(trial["b"] < 3.5 for trial in drawn) / 200 < 0.6


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_declared_ranges_are_values_that_the_method_takes(name: str) -> None:
    cls = catalog.method_type(name).cls
    found = tune.ranges(cls(), learning_rate=1e-3)
    for field, mark in found.items():
        assert mark.low < mark.high
        for value in (mark.low, mark.high):
            assert getattr(cls(**{field: value}), field) == value
    assert ("learning_rate" in found) == (cls.schedule != "none")


def test_the_step_size_is_searched_around_the_methods_own_or_the_recipes() -> None:
    cls = catalog.method_type("seqlora").cls
    assert tune.ranges(cls(), 1e-3)["learning_rate"] == Search(1e-4, 1e-2)
    assert tune.ranges(cls(learning_rate=2.0), 1e-3)["learning_rate"] == Search(0.2, 20)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda root: search(root, "ncm"), Unsupported, "ncm trains nothing and declares no range to search"),
        (lambda root: search(root, trials=0), BadValue, "--trials is 0; it must be 1 or more"),
        (
            lambda root: search(root, suite=replace(SHORT, recipe=Recipe(learning_rate=1e30))),
            ClbenchError,
            "all 3 trials of seqlora failed; the first: the loss became",
        ),
    ],
)
def test_what_cannot_be_tuned_is_told(
    call: Callable[[Path], object], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        call(tmp_path)
