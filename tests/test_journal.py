"""Who is told of a comparison: the journal, the trackers, the forecast; programs are stubs."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from clbench import live, runner
from clbench.cli import app
from clbench.errors import NotAvailable, StoreError, UnknownName
from clbench.executors import Quiet, Watcher
from clbench.journal import Journal
from clbench.live import Forecast, Several
from clbench.pace import Laps, Pace
from clbench.record import Record
from clbench.stream import Union
from clbench.tiny import stream
from clbench.trackers import TRACKERS, watchers

CELL: Any = SimpleNamespace(
    key="k0",
    name="mine seed 3",
    variant="",
    seed=3,
    device_kind="cpu",
    suite=SimpleNamespace(name="digits"),
    method=SimpleNamespace(name="mine", schedule="sequential", model_dump=lambda mode: {"rank": 4}),
    protocol=SimpleNamespace(tasks=2, model_dump=lambda mode: {"epochs": 5}),
)
PACE = Pace(500, "images", 2.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tell_all(told: Any) -> None:
    told.cell_started(CELL)
    told.epoch(0, 2, 1, 5, 0.5, PACE)
    told.task(0, 2)
    told.message("a word")
    told.cell_finished(CELL, Record.example())


# pace


def test_a_lap_is_a_pass_over_the_examples() -> None:
    clock = iter((10.0, 12.0, 17.0))
    train = stream().tasks[0].train
    laps = Laps(train, lambda: next(clock))
    first, second = laps.lap(), laps.lap()
    assert (first.amount, first.unit, first.seconds, second.seconds) == (len(train), "images", 2.0, 5.0)
    assert first.per_second == len(train) / 2
    assert Pace(1, "images", 0.0).per_second == 0.0


def test_text_goes_by_tokens_also_where_all_tasks_are_taught_at_once() -> None:
    class Rows:
        tokens, targets = 30, stream().tasks[0].train.targets

        def __len__(self) -> int:
            return 2

    rows: Any = Rows()
    assert Laps(rows).lap().amount == 30
    both = Laps(Union([rows, rows])).lap()
    assert (both.amount, both.unit) == (60, "tokens")


# journal


def test_every_event_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tell_all(Journal(path))
    started, epoch, task, message, finished = lines(path)
    mine = {"suite": "digits", "method": "mine", "variant": "", "seed": 3, "key": "k0"}
    assert started.items() >= {"event": "cell_started", "tasks": 2, "device": "cpu", **mine}.items()
    place = {"task": 1, "tasks": 2, "epoch": 1, "epochs": 5, "loss": 0.5, "images_per_second": 250.0, "seconds": 2.0}
    assert epoch.items() >= {"event": "epoch", **place, **mine}.items()
    assert task.items() >= {"event": "task", "task": 1, **mine}.items()
    assert (message["event"], message["text"]) == ("message", "a word")
    ending = {"status": "done", "reason": None, "score": "accuracy", "average": 70.0}
    assert finished.items() >= {"event": "cell_finished", **ending, **mine}.items()
    assert {datetime.fromisoformat(line["time"]).utcoffset() for line in (started, finished)} == {
        datetime.fromisoformat("2026-01-01T00:00:00+00:00").utcoffset()
    }


def test_a_journal_grows_and_mends_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "old"}\n{"event": "to', encoding="utf-8")
    journal = Journal(path)
    journal.message("new")
    old, torn, new = path.read_text(encoding="utf-8").splitlines()
    assert (old, torn) == ('{"event": "old"}', '{"event": "to')
    assert json.loads(new)["text"] == "new"


def test_a_journal_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "log.jsonl"):
        with pytest.raises(StoreError, match=re.escape(f"'{path}' could not be written")):
            watchers(path, (), tmp_path)


# several, and the bars


class Breaking(Quiet):
    """A watcher that has lost its connection."""

    def task(self, task: int, tasks: int) -> None:
        raise ConnectionError("gone")

    def close(self) -> None:
        raise AssertionError("told after it broke")


def test_a_watcher_that_breaks_is_named_and_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    person = Quiet()
    person.message = said.append  # type: ignore[method-assign]
    told = Several(person, [Breaking(), Journal(tmp_path / "log.jsonl")])
    tell_all(told)
    told.close()
    assert said == ["Breaking is told no more: gone", "a word"]
    assert [line["event"] for line in lines(tmp_path / "log.jsonl")][-1] == "cell_finished"


@pytest.mark.parametrize("terminal", [True, False])
def test_pace_and_failures_are_shown(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_terminal=terminal, width=160, legacy_windows=False)
    with live.reporter(console, 2, {"k0": 60.0, "k1": 60.0}) as told:
        told.cell_started(CELL)
        person: Any = told.person  # type: ignore[attr-defined]
        if not terminal:
            person.spoken = -1e9
        told.epoch(0, 2, 1, 5, 0.5, PACE)
        told.cell_finished(CELL, Record.example(status="failed", reason="no luck", scores=()))
        told.cell_started(CELL)
        if terminal:
            assert "1 failed" in str(person.progress.tasks[0].fields["note"])
            assert person.progress.tasks[1].description == "mine seed 3"
            told.epoch(0, 2, 1, 5, 0.5, PACE)
            assert person.progress.tasks[1].fields["note"].endswith("loss 0.5, 250 images/s")
    if not terminal:
        shown = capsys.readouterr().err
        assert "task 1 of 2, epoch 1 of 5, loss 0.5, 250 images/s" in shown
        assert "[2/2] mine seed 3, 1 failed, about " in shown


def test_the_forecast_is_scaled_by_what_this_machine_took() -> None:
    now = [0.0]
    forecast = Forecast({"a": 10.0, "b": 20.0, "c": 40.0}, now=lambda: now[0])
    assert forecast.left() == 70.0
    forecast.start("a")
    now[0] = 10.0
    assert forecast.left(0.5) == 10.0 + 2 * (20.0 + 40.0)
    now[0] = 30.0
    forecast.finish("a")
    assert forecast.left() == 3 * (20.0 + 40.0)
    forecast.start("b")
    now[0] = 40.0
    assert forecast.left() == 50.0 + 120.0


# trackers


class Library:
    """A stub of a tracking program that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.summary = self.config = dict[str, Any]()

    def SummaryWriter(self, folder: str) -> Library:  # noqa: N802
        self.told.append(("writer", Path(folder).name))
        return self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((name, value, step))

    def init(self, **named: Any) -> Library:
        self.told.append(("init", named["group"], named["name"], named["config"]["params"]))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((values, step))

    def close(self) -> None:
        self.told.append("closed")

    def finish(self, exit_code: int) -> None:
        self.told.append(("finished", exit_code))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stub = Library()
    for kind in TRACKERS.values():
        monkeypatch.setitem(sys.modules, kind.module, stub)  # type: ignore[arg-type]
    return stub


def tracker(name: str, root: Path) -> Watcher:
    (made,) = watchers(None, [name], root)
    return made


def test_tensorboard_gets_scalars(library: Library, tmp_path: Path) -> None:
    tell_all(tracker("tensorboard", tmp_path))
    assert library.told == [
        ("writer", "mine-seed3-k0"),
        ("loss", 0.5, 1),
        ("task", 1.0, 1),
        ("images per second", 250.0, 1),
        ("average after tasks", 100.0, 1),
        ("average after tasks", 70.0, 2),
        "closed",
    ]


def test_wandb_gets_a_run_a_cell(library: Library, tmp_path: Path) -> None:
    made = tracker("wandb", tmp_path)
    tell_all(made)
    assert library.told == [
        ("init", "digits", "mine seed 3", {"rank": 4}),
        ({"loss": 0.5, "task": 1.0, "images per second": 250.0}, 1),
        ("finished", 0),
    ]
    assert library.summary == {"average after 1 tasks": 100.0, "average after 2 tasks": 70.0, "status": "done"}
    made.close()
    made.cell_finished(CELL, Record.example())
    assert len(library.told) == 3


def test_an_interrupted_run_is_closed(library: Library, tmp_path: Path) -> None:
    made, console = tracker("wandb", tmp_path), Console(stderr=True)

    def stopped() -> None:
        with live.reporter(console, 1, {}, [made, Journal(tmp_path / "l")]) as told:
            told.cell_started(CELL)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert library.told[-1] == ("finished", 1)
    assert lines(tmp_path / "l")[-1]["text"] == "interrupted"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    with pytest.raises(NotAvailable, match=re.escape(f"pip install 'clbench[{name}]', or leave it out")):
        tracker(name, tmp_path)


def test_a_tracker_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no tracker called 'mlflow'"):
        tracker("mlflow", tmp_path)


def test_everybody_is_told_the_same() -> None:
    names = {name for name in dir(Quiet) if not name.startswith("_")}
    for kind in (live.Plain, live.Bars, Several, Journal, *TRACKERS.values()):
        assert names <= set(dir(kind))


# the command


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in (*words, "--device", "cpu")])


def test_a_run_writes_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = ask("run", "tiny", "--method", "seqlora", "--threads", "1", "--log", path, "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    told = lines(path)
    assert [told[0]["event"], told[-1]["event"]] == ["cell_started", "cell_finished"]
    epochs = [line for line in told if line["event"] == "epoch"]
    assert [line["task"] for line in told if line["event"] == "task"] == sorted({line["task"] for line in epochs})
    assert all(line["images_per_second"] > 0 for line in epochs)


def test_ctrl_c_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    path = tmp_path / "log.jsonl"
    assert ask("run", "tiny", "--method", "ncm", "--log", path, "--store", tmp_path / "store").exit_code == 130
    assert [line["event"] for line in lines(path)] == ["cell_started", "message"]


def test_asking_wrongly_or_only_looking_writes_nothing(tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "log.jsonl"
    assert ask("run", "tiny", "--track", "mlflow", "--store", store).exit_code == 2
    assert ask("run", "tiny", "--method", "ncm", "--dry-run", "--log", path, "--store", store / "new").exit_code == 0
    assert not path.exists()
