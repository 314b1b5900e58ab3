"""The driver: every cell gets its record, whatever becomes of the workers; they are scripted here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from clbench import catalog, executors, plan
from clbench.executors import driver, wire
from clbench.executors.driver import HELD_SECONDS, LOSSES, RETRY_SECONDS, UNSEEN_SECONDS, Driver
from clbench.executors.here import folder_of
from clbench.executors.process import Processes
from clbench.pace import Pace
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import Store

SUITE = catalog.suite("tiny")
STREAM = SUITE.stream()
CELLS = plan.cells(SUITE, STREAM, catalog.rows(SUITE, ["ncm", "seqlora"], {}), [0], 0, "cpu")
FIRST, SECOND = CELLS

Script = Callable[["Room", "Scripted"], None]


@dataclass
class Scripted:
    """A worker that says what a script gives it, then ends or stays."""

    cell: Cell
    order: str
    lines: list[str] = field(default_factory=list)
    how: str | None = None
    released: bool = False
    stopped: bool = False

    def say(self, event: str, **facts: Any) -> None:
        self.lines.append(json.dumps({"event": event, "cell": self.cell.key, **facts}))

    def said(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def ended(self) -> str | None:
        return self.how

    def release(self) -> None:
        self.released = True

    def stop(self) -> None:
        self.stopped = True


@dataclass
class Room:
    """A place with room for `seats` workers, each of whom acts by the next script of its cell."""

    store: Store
    scripts: dict[str, list[Script]]
    seats: int = 9
    patience: float | None = None
    started: list[Scripted] = field(default_factory=list)
    closed: bool = False

    def start(self, cell: Cell, order: str) -> Scripted | None:
        busy = [worker for worker in self.started if not (worker.released or worker.stopped)]
        if len(busy) >= self.seats:
            return None
        worker = Scripted(cell, order)
        self.scripts[cell.method.name].pop(0)(self, worker)
        self.started.append(worker)
        return worker

    def close(self) -> None:
        self.closed = True


def record_of(cell: Cell, **facts: Any) -> Record:
    return Record.example(key=cell.key, suite=cell.suite.name, method=cell.method.name, **facts)


def done(room: Room, worker: Scripted) -> None:
    record = record_of(worker.cell)
    worker.say("taken"), worker.say("started")
    folder_of(room.store, worker.cell).save(record, {})
    worker.say("made", mark=wire.mark(record))


def lost_after(tasks: int) -> Script:
    def script(room: Room, worker: Scripted) -> None:
        worker.say("taken"), worker.say("started")
        for task in range(tasks):
            worker.say("task", told=[task, 3])
        worker.how = "was ended by SIGKILL"

    return script


def saying(event: str, **facts: Any) -> Script:
    return lambda room, worker: worker.say(event, **facts)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Diary(executors.Quiet):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def cell_started(self, cell: Cell) -> None:
        self.told.append(("started", cell.method.name))

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        self.told.append((task, tasks, epoch, epochs, loss, pace))

    def at_hand(self, cell: Cell) -> None:
        self.told.append(("at hand", cell.method.name))

    def cell_finished(self, cell: Cell, record: Record) -> None:
        self.told.append(("finished", cell.method.name))

    def message(self, text: str) -> None:
        self.told.append(text)


@dataclass
class Stage:
    """A driver and all that it talks to."""

    room: Room
    clock: Clock
    diary: Diary
    driver: Driver

    def play(self) -> executors.Summary:
        return self.driver.run(CELLS)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def made(first: list[Script], second: list[Script], timeout: float | None = None, seats: int = 9) -> Stage:
        clock, diary = Clock(), Diary()
        room = Room(Store.create(tmp_path), {"ncm": first, "seqlora": second}, seats)

        def sleep(seconds: float) -> None:
            clock.now += 1.0

        monkeypatch.setattr(driver.time, "sleep", sleep)

        def failure(cell: Cell, reason: str) -> Record:
            return record_of(cell, status="failed", reason=reason, scores=(), costs=())

        return Stage(room, clock, diary, Driver(room.store, room, diary, failure, timeout, clock))

    return made


def reasons(summary: executors.Summary) -> list[str | None]:
    return [record.reason for record in summary.failed]


def test_cells_share_the_seats(stage: Callable[..., Stage]) -> None:
    played = stage([done], [done], seats=1)
    summary = played.play()
    assert [record.method for record in summary.made] == ["ncm", "seqlora"]
    assert played.room.closed
    assert all(worker.released for worker in played.room.started)
    assert [worker.order for worker in played.room.started] == [f"{cell.key} -" for cell in CELLS]


def test_a_lost_worker_is_replaced_and_no_other_cell_is_touched(stage: Callable[..., Stage]) -> None:
    played = stage([lost_after(1), done], [done])
    summary = played.play()
    assert reasons(summary) == []
    assert len(summary.made) == 2
    assert played.diary.told.count(("started", "ncm")) == 1
    (sentence,) = [told for told in played.diary.told if isinstance(told, str)]
    assert sentence == ("ncm seed 0: a worker was ended by SIGKILL; another one goes on after the last finished task.")


def test_a_cell_that_loses_worker_after_worker_is_given_up(stage: Callable[..., Stage]) -> None:
    played = stage([lost_after(1)] * LOSSES, [done])
    (reason,) = reasons(played.play())
    assert played.clock.now >= RETRY_SECONDS * sum(range(1, LOSSES))
    assert reason == f"a worker was ended by SIGKILL; {LOSSES} were lost without finishing a task in between."
    assert folder_of(played.room.store, FIRST).read()[0] is not None


def test_losses_do_not_count_as_long_as_the_cell_comes_further(stage: Callable[..., Stage]) -> None:
    played = stage([lost_after(count) for count in (1, 1, 2, 2, 3)] + [done], [done])
    assert reasons(played.play()) == []


def test_a_cell_that_takes_too_long_is_ended(stage: Callable[..., Stage]) -> None:
    played = stage([saying("taken")], [done], timeout=20)
    (reason,) = reasons(played.play())
    assert reason == "it took longer than the 20 seconds of --timeout and was ended."
    assert played.room.started[0].stopped
    assert 20 < played.clock.now < 25


def test_a_worker_that_never_takes_its_cell_up_is_lost(stage: Callable[..., Stage]) -> None:
    def silent(room: Room, worker: Scripted) -> None:
        pass

    played = stage([silent, done], [done])
    played.room.patience = 30.0
    assert reasons(played.play()) == []
    assert played.room.started[0].stopped
    assert 30 < played.clock.now < 40
    assert any("was silent for 30 seconds" in told for told in played.diary.told if isinstance(told, str))


def test_waiting_in_a_queue_takes_no_time(stage: Callable[..., Stage]) -> None:
    def queued(room: Room, worker: Scripted) -> None:
        said = worker.said

        def late() -> list[str]:
            if played.clock.now > 100 and not worker.released:
                done(room, worker)
                worker.said = said  # type: ignore[method-assign]
            return said()

        worker.said = late  # type: ignore[method-assign]

    played = stage([queued], [done], timeout=20)
    assert reasons(played.play()) == []
    assert played.clock.now > 100


def test_a_cell_that_another_driver_holds_is_asked_for_again_later(stage: Callable[..., Stage]) -> None:
    played = stage([saying("held", mark=""), done], [done])
    assert reasons(played.play()) == []
    assert played.clock.now >= HELD_SECONDS


def test_what_a_worker_refuses_is_a_failure_with_its_reason(stage: Callable[..., Stage]) -> None:
    played = stage([saying("refused", why="no such data there.")], [done])
    assert reasons(played.play()) == ["no such data there."]


def test_a_record_may_come_late_and_one_that_never_comes_is_a_failure(stage: Callable[..., Stage]) -> None:
    played = stage([saying("made", mark="unseen")], [done])
    (reason,) = reasons(played.play())
    assert "must lie on a file system that all machines share" in str(reason)
    assert played.clock.now > UNSEEN_SECONDS


def test_a_record_of_an_earlier_failure_is_not_taken_for_the_new_one(stage: Callable[..., Stage]) -> None:
    def late(room: Room, worker: Scripted) -> None:
        done(room, worker)
        folder_of(room.store, worker.cell).save(old, {})

    old = record_of(FIRST, status="failed", reason="no luck", scores=(), costs=())
    played = stage([late], [done])
    folder_of(played.room.store, FIRST).save(old, {})
    summary = played.play()
    assert played.room.started[0].order == f"{FIRST.key} {wire.mark(old)}"
    assert played.clock.now > UNSEEN_SECONDS
    assert reasons(summary) == ["no luck"]


def test_what_is_said_is_told(stage: Callable[..., Stage]) -> None:
    def speaking(room: Room, worker: Scripted) -> None:
        speaker = wire.Speaker(worker.lines.append)
        speaker.key = worker.cell.key
        speaker.cell_started(worker.cell)
        speaker.epoch(0, 3, 1, 5, float("nan"), Pace(10, "tokens", 2.0))
        speaker.message("a word")
        speaker.key = "another cell"
        speaker.message("of another cell")
        worker.lines += ["no JSON", "[]", '{"cell": 3}']
        done(room, worker)

    played = stage([speaking], [done])
    played.play()
    told = played.diary.told[: played.diary.told.index(("finished", "ncm"))]
    assert told[:2] == [("started", "ncm"), ("at hand", "ncm")]
    assert told[2][:4] == (0, 3, 1, 5)
    assert told[2][5] == Pace(10, "tokens", 2.0)
    assert "a word" in told
    assert "of another cell" not in told


def test_a_failure_is_a_record_like_another(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    room = Room(store, {"ncm": [saying("refused", why="not there.")], "seqlora": [done]})
    summary = executors.drive(CELLS, STREAM, store, room)
    (record,) = summary.failed
    assert (record.key, record.reason, record.origin.device_kind) == (FIRST.key, "not there.", "cpu")
    assert record.tasks == tuple(task.name for task in STREAM)
    assert folder_of(store, FIRST).read() == (record, None)
    again = executors.inline([FIRST], STREAM, store, torch.device("cpu"))
    assert [made.status for made in again.made] == ["done"]


def test_a_process_that_never_answers_is_ended_and_the_next_cell_gets_another(tmp_path: Path) -> None:
    silent = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'event': 'taken', 'cell': line.split()[0]}), flush=True)\n"
    )
    store, place = Store.create(tmp_path), Processes([sys.executable, "-c", silent], 1)
    summary = executors.drive(CELLS, STREAM, store, place, timeout=0.2)
    assert reasons(summary) == ["it took longer than the 0.2 seconds of --timeout and was ended."] * 2
    assert [seat.child for seat in place.seats] == [None]
