"""Which cells a budget starts: seed by seed, none that would not end, and what a few steps foretell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clbench import catalog, forecast, means, measure, plan, tiny
from clbench.budget import Budget
from clbench.cli import app
from clbench.errors import BadValue
from clbench.plan import Cell
from clbench.record import Record, TaskCosts
from clbench.store import Store

CPU = torch.device("cpu")


@dataclass
class Clock:
    """A clock that only moves when told."""

    time: float = 100.0

    def __call__(self) -> float:
        return self.time


@dataclass(frozen=True)
class Named:
    """As much of a cell as a budget looks at."""

    method: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}{self.seed}"


Batches = list[list[str]]


def spent(
    seconds: float, times: dict[str, float], seeds: int = 3, workers: int = 1, takes: Callable[[float], float] = float
) -> tuple[Batches, list[str]]:
    """What was run of each method with each seed, and what was left out; a cell takes `takes(expected)`."""
    cells: Any = [Named(name, seed) for seed in range(seeds) for name in times]
    expected = {cell.key: times[cell.method] for cell in cells}
    clock = Clock()
    budget = Budget(seconds, workers, now=clock)
    done: Batches = []
    for batch in budget.batches(cells, expected):
        done.append([cell.key for cell in batch])
        clock.time += takes(budget.together(expected[cell.key] for cell in batch))
    return done, [cell.key for cell in budget.left_out]


def test_all_is_done_where_all_fits() -> None:
    done, left = spent(90, {"a": 10, "b": 20})
    assert done == [["a0"], ["b0"], ["a1"], ["b1"], ["a2"], ["b2"]]
    assert left == []


def test_a_seed_that_does_not_fit_whole_is_not_begun() -> None:
    done, left = spent(89, {"a": 10, "b": 20})
    assert done == [["a0"], ["b0"], ["a1"], ["b1"]]
    assert left == ["a2", "b2"]


def test_the_first_seed_is_done_as_far_as_it_fits_and_no_other_is_begun() -> None:
    done, left = spent(35, {"a": 10, "b": 50, "c": 20})
    assert done == [["a0"], ["c0"]]
    assert left == ["b0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_what_cells_take_here_scales_what_is_expected() -> None:
    assert spent(100, {"a": 10, "b": 20}, takes=lambda time: 2 * time)[0] == [["a0"], ["b0"]]
    assert len(spent(50, {"a": 10, "b": 20}, takes=lambda time: time / 2)[0]) == 6


def test_a_cell_is_left_out_where_the_ones_before_took_too_long() -> None:
    done, left = spent(36, {"a": 10, "b": 20, "c": 5}, seeds=1, takes=lambda time: 3 * time)
    assert done == [["a0"], ["c0"]]
    assert left == ["b0"]


def test_several_workers_share_a_seed() -> None:
    done, left = spent(30, {"a": 10, "b": 20, "c": 10}, workers=2)
    assert done == [["a0", "b0", "c0"]]
    assert left == ["a1", "b1", "c1", "a2", "b2", "c2"]
    assert spent(15, {"a": 10, "b": 20, "c": 10}, workers=2, seeds=1) == ([["a0", "c0"]], ["b0"])


def test_what_ends_at_once_is_done_even_where_the_time_is_unknown() -> None:
    cells: Any = [Named("a", 0), Named("b", 0)]
    budget = Budget(5.0, now=Clock())
    assert [batch[0].key for batch in budget.batches(cells, {"a0": None, "b0": 0.0})] == ["a0", "b0"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("6h", 21600), ("1d", 86400), ("2h30m", 9000), ("45", 45), ("1d 2h", 93600)]
)
def test_budgets_in_words(text: str, seconds: float) -> None:
    assert means.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "6x", "-1h", "0", "1h30", "6h!", "1e9h", "nan", "9" * 400, "٣h"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(BadValue, match="is no time"):
        means.seconds(text)


# forecasts from a few steps


def cell_of(name: str, **recipe: str) -> tuple[Cell, Any]:
    suite = catalog.suite("tiny", recipe)
    stream = suite.stream()
    return plan.cells(suite, stream, catalog.rows(suite, [name], {}), [0], 0, "cpu")[0], stream


COST = Record.example().costs[0]


def cost(samples: int, seconds: float, **fields: Any) -> TaskCosts:
    return COST.model_copy(update={"train_samples": samples, "train_seconds": seconds, "warmup_seconds": 0.0, **fields})


def tries(*pairs: tuple[TaskCosts, ...]) -> list[measure._Try]:
    return [measure._Try(n, 1.0, 0.5, costs, 1000, 5000) for n, costs in enumerate(pairs)]


def test_what_grows_with_samples_is_told_from_what_does_not() -> None:
    cell, stream = cell_of("seqlora", epochs="4")
    sizes = [len(task.train) for task in stream]
    asked = {"eval_seconds": 2.0, "eval_samples": 100}
    first = (cost(100, 3.0, **asked), cost(100, 4.0, stored_bytes=4000, **asked))
    second = (cost(300, 5.0, **asked), cost(300, 8.0, stored_bytes=4100, **asked))
    found = measure.extrapolated(cell, stream, tries(first, second))
    learning = 2 + 0.01 * 4 * sizes[0] + sum(2 + 0.02 * 4 * size for size in sizes[1:])
    tests = [len(task.test) for task in stream]
    rounds = tests[0] + sum(tests[:2]) + sum(tests)
    assert found.seconds == pytest.approx(1.0 + 0.5 + learning + 0.02 * rounds)
    assert found.checkpoint_bytes == 5000 + 100 * (len(stream) - 2)
    assert found.kept_bytes == measure.RECORD_BYTES + round(1000 * rounds / 200)


def test_noise_never_makes_a_forecast_shrink_with_the_samples() -> None:
    cell, stream = cell_of("seqlora", epochs="1")
    found = measure.extrapolated(cell, stream, tries((cost(100, 5.0),) * 2, (cost(200, 4.0),) * 2))
    assert found.seconds is not None
    assert found.seconds > 4.0 / 200 * sum(len(task.train) for task in stream)


def test_joint_learns_all_at_once_and_answers_once() -> None:
    cell, stream = cell_of("joint", epochs="2")
    assert measure._lessons(cell, stream) == [(sum(len(task.train) for task in stream), 2)]
    assert measure._asked(cell, stream) == sum(len(task.test) for task in stream)
    assert [epochs for _, epochs in measure._lessons(*cell_of("ncm"))] == [0, 0, 0]


def test_early_rounds_ask_fewer() -> None:
    cell, stream = cell_of("seqlora", eval_samples="5")
    assert measure._asked(cell, stream) == 5 + 10 + sum(len(task.test) for task in stream)


@pytest.mark.parametrize("name", ["seqlora", "replay", "joint", "ncm"])
def test_a_few_steps_are_measured_and_leave_no_trace(name: str) -> None:
    cell, stream = cell_of(name, epochs="30")
    before = stream.sha256()
    found = measure.measured(cell, stream, CPU)
    assert found.reason == ""
    assert found.seconds is not None
    assert 0.01 < found.seconds < 600
    assert found.checkpoint_bytes > 0
    assert stream.sha256() == before


def test_text_is_measured_too() -> None:
    suite = replace(tiny.tiny_text, recipe=tiny.tiny_text.recipe.model_copy(update={"eval_batch_size": 8}))
    stream = suite.stream()
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, ["seqlora"], {}), [0], 0, "cpu")
    found = measure.measured(cell, stream, CPU)
    assert (found.reason, found.kept_bytes > measure.RECORD_BYTES) == ("", True)


def test_what_fails_or_declines_says_why() -> None:
    cell, stream = cell_of("icl")
    declined = measure.measured(cell, stream, CPU)
    assert declined.seconds == 0.0
    assert declined.reason
    cell, stream = cell_of("seqlora")
    broken = replace(cell, suite=replace(cell.suite, backbone="nano-lm"))
    failed = measure.measured(broken, stream, CPU)
    assert failed.seconds is None
    assert failed.reason.startswith("BadValue: ")


# the command

FEW = " (recipe.epochs=1)"


def ask(store: Path, *words: str) -> Any:
    here = ["--device", "cpu", "--threads", "1", "--store", str(store)]
    asked = ["run", "tiny", "--method", "ncm", "--method", "seqlora", "--set", "recipe.epochs=1"]
    return CliRunner().invoke(app, [*asked, *here, *words])


def foretold(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    def rows(cells: Any, stream: Any, device: Any) -> dict[str, measure.Measured]:
        return {cell.key: measure.Measured(seconds=seconds[cell.method.name]) for cell in cells}

    monkeypatch.setattr(measure, "rows", rows)


def test_a_run_ends_with_its_budget_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foretold(monkeypatch, ncm=1.0, seqlora=5000.0)
    done = ask(tmp_path, "--budget", "1h", "--seed", "0", "--seed", "1")
    assert done.exit_code == forecast.LEFT_OUT == 3, done.output
    (sentence,) = [line.replace(FEW, "") for line in done.stderr.splitlines() if "left out" in line]
    assert "3 cells left out" in sentence
    assert "60 min: seqlora seed 0, ncm seed 1, seqlora seed 1; the same command goes on with them." in sentence
    assert [record.method for record in Store(tmp_path).load("tiny").records] == ["ncm"]
    assert "ncm" in done.stdout
    foretold(monkeypatch, ncm=1.0, seqlora=5.0)
    again = ask(tmp_path, "--budget", "1h", "--seed", "0", "--seed", "1")
    assert again.exit_code == 0, again.output
    assert "3 missing" in again.stderr
    assert len(Store(tmp_path).load("tiny").records) == 4


def test_a_budget_too_small_for_anything_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foretold(monkeypatch, ncm=100.0, seqlora=100.0)
    done = ask(tmp_path, "--budget", "10s")
    assert done.exit_code == 3
    assert "2 cells left out" in done.stderr
    assert done.stdout == ""


def test_a_dry_run_measures_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "rows", lambda *words: pytest.fail("measured"))
    assert ask(tmp_path / "absent", "--dry-run").exit_code == 0
    foretold(monkeypatch, ncm=36.0, seqlora=7200.0)
    done = ask(tmp_path / "absent", "--dry-run", "--measure", "--budget", "1h")
    assert done.exit_code == 0
    lines = [line.replace(FEW, "").split() for line in done.stdout.splitlines()]
    assert ["ncm", "1", "0.010", "0.010", "0", "0.00", "0.00"] in lines
    assert ["together", "2", "2.010", "0", "0.00", "0.00"] in lines
    assert "1 cell left out, which would take about 2 h 00 min" in done.stderr
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("words", "name"), [(["--measure"], "--dry-run"), (["--budget", "soon"], "'soon'"), (["--budget", "0h"], "'0h'")]
)
def test_what_does_not_go_together(tmp_path: Path, words: list[str], name: str) -> None:
    done = ask(tmp_path, *words)
    assert done.exit_code == 2
    assert name in done.stderr
