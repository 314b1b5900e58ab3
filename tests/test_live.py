"""Several cells at once: each has its bar, its lines and its run of a tracking program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from clbench import live
from clbench.live import Forecast
from clbench.pace import Pace
from clbench.record import Record
from clbench.trackers import TRACKERS, watchers

PACE = Pace(500, "images", 2.0)


def cell(key: str) -> Any:
    return SimpleNamespace(
        key=key,
        name=f"cell {key}",
        variant="",
        seed=0,
        device_kind="cpu",
        suite=SimpleNamespace(name="digits"),
        method=SimpleNamespace(name="mine", schedule="sequential", model_dump=lambda mode: {}),
        protocol=SimpleNamespace(tasks=2, model_dump=lambda mode: {}),
    )


ONE, TWO = cell("one"), cell("two")


def tell_both(told: Any) -> None:
    """Two cells that are under way together."""
    told.cell_started(ONE)
    told.cell_started(TWO)
    told.at_hand(ONE)
    told.epoch(0, 2, 1, 5, 0.5, PACE)
    told.task(0, 2)
    told.at_hand(TWO)
    told.epoch(0, 2, 2, 5, 0.25, PACE)
    told.cell_finished(ONE, Record.example())


def test_cells_under_way_share_the_time_that_is_left() -> None:
    now = [0.0]
    forecast = Forecast({"one": 10.0, "two": 10.0, "three": 10.0}, now=lambda: now[0])
    forecast.start("one")
    forecast.start("two")
    assert forecast.left() == 30.0 / 2
    now[0] = 5.0
    forecast.current = "one"
    assert forecast.left(0.5) == (5.0 + 5.0 + 10.0) / 2
    forecast.current = "two"
    assert forecast.left(0.25) == (5.0 + 15.0 + 10.0 * 30.0 / 20.0) / 2
    now[0] = 10.0
    assert forecast.finish("one") == 10.0
    now[0] = 20.0
    assert forecast.finish("two") == 20.0


def test_each_cell_has_its_bar() -> None:
    console = Console(stderr=True, force_terminal=True, width=160, legacy_windows=False)
    with live.reporter(console, 2, {}) as told:
        tell_both(told)
        person: Any = told.person  # type: ignore[attr-defined]
        whole, two = person.progress.tasks
        assert (whole.completed, two.description, two.completed) == (1, "cell two", 2 / 5)
        told.cell_finished(cell("made by another process"), Record.example())
        told.cell_finished(TWO, Record.example())
        assert [task.description for task in person.progress.tasks] == ["cells"]


def test_lines_say_whose_they_are_while_several_are_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    with live.reporter(Console(stderr=True, width=160), 2, {}) as told:
        told.person.spoken = -1e9  # type: ignore[attr-defined]
        tell_both(told)
        told.person.spoken = -1e9  # type: ignore[attr-defined]
        told.at_hand(TWO)
        told.epoch(1, 2, 1, 5, 0.25, PACE)
        told.cell_finished(TWO, Record.example())
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["[1/2] cell one", "[2/2] cell two"]
    assert lines[2].startswith("  cell one: accuracy 70.0 %")
    assert lines[3].startswith("  task 2 of 2, epoch 1 of 5")
    assert lines[4].startswith("  accuracy 70.0 %")


def test_a_journal_says_whose_each_line_is(tmp_path: Path) -> None:
    (journal,) = watchers(tmp_path / "log.jsonl", (), tmp_path)
    tell_both(journal)
    told = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["key"]) for line in told[2:]] == [
        ("epoch", "one"),
        ("task", "one"),
        ("epoch", "two"),
        ("cell_finished", "one"),
    ]


class Program:
    """A stub of a tracking program whose runs write down what they are told."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Any]] = {}

    def SummaryWriter(self, folder: str) -> Any:  # noqa: N802
        return self.init(name=Path(folder).name)

    def init(self, *, name: str, **named: Any) -> Any:
        told: list[Any] = self.runs.setdefault(name, [])
        return SimpleNamespace(
            add_scalar=lambda name, value, step: told.append((name, value, step)),
            log=lambda values, step: told.append((values, step)),
            summary=SimpleNamespace(update=lambda values: told.append(values["status"])),
            finish=lambda exit_code: told.append(exit_code),
            close=lambda: told.append("closed"),
        )


@pytest.mark.parametrize("name", TRACKERS)
def test_each_cell_has_its_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, program)  # type: ignore[arg-type]
    (tracker,) = watchers(None, [name], tmp_path)
    tell_both(tracker)
    tracker.close()
    one, two = program.runs.values()
    if name == "wandb":
        assert one == [({"loss": 0.5, "task": 1.0, "images per second": 250.0}, 1), "done", 0]
        assert two == [({"loss": 0.25, "task": 1.0, "images per second": 250.0}, 1), "interrupted", 1]
    else:
        assert (one[0], one[-1]) == (("loss", 0.5, 1), "closed")
        assert (two[0], two[-1]) == (("loss", 0.25, 1), "closed")
