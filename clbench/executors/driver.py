"""Driver: gives cells to workers elsewhere, listens to them, and sees to it that every cell gets its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clbench.executors.here import Summary, folder_of, looked_up
from clbench.executors.reports import Quiet, Reporter
from clbench.executors.wire import heard, mark, order, relay
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import Store
from clbench.stream import Stream

LOOK_SECONDS = 0.1
HELD_SECONDS = 5.0
"""A cell that another driver's process holds is given out again after so long."""
UNSEEN_SECONDS = 60.0
"""So long a record may take from where it was written to here, on a shared file system."""
RETRY_SECONDS = 2.0
"""So long, times the losses so far, a cell waits for another worker: what took one may still be there."""
LOSSES = 3
"""A cell is given up when it lost so many workers without finishing a task in between."""


class Worker(Protocol):
    """Whoever was given a cell."""

    def said(self) -> list[str]:
        """The lines that it said since last asked."""
        ...

    def ended(self) -> str | None:
        """None while it may say more; else how it ended, in words or ''."""
        ...

    def release(self) -> None:
        """It has answered and is not needed for this cell any more."""
        ...

    def stop(self) -> None:
        """End it, whatever it does."""
        ...


class Place(Protocol):
    """Where workers are."""

    patience: float | None
    """Seconds within which a worker must take up a cell; None where it may wait in a queue."""

    def start(self, cell: Cell, order: str) -> Worker | None:
        """Give a cell to a worker; None where there is no room for it now."""
        ...

    def close(self) -> None:
        """End all workers that are left."""
        ...


@dataclass
class Given:
    """A cell that has no record yet."""

    cell: Cell
    old: Record | None
    worker: Worker | None = None
    given: float = 0.0
    """When it was given to the worker."""
    began: float | None = None
    """When a worker took it up; waiting in a queue does not count."""
    seen: bool = False
    """Whether its start was told."""
    not_before: float = 0.0
    losses: int = 0
    furthest: int = -1
    """The last task that it finished, to tell whether it comes further from one loss to the next."""
    answer: dict[str, Any] | None = None
    answered: float = 0.0
    reason: str = ""
    """Why it is given up."""


class Driver:
    """Use `drive`."""

    def __init__(
        self,
        store: Store,
        place: Place,
        told: Reporter,
        failure: Callable[[Cell, str], Record],
        timeout: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.place, self.told = store, place, told
        self.failure, self.timeout, self.now = failure, timeout, now
        self.open = list[Given]()
        self.summary = Summary()

    def run(self, cells: Sequence[Cell]) -> Summary:
        """See `drive`."""
        self.summary, waiting = looked_up(cells, self.store)
        self.open = [Given(cell, old) for cell, old in waiting]
        try:
            while self.open:
                self.step()
                time.sleep(LOOK_SECONDS)
        finally:
            self.place.close()
        return self.summary

    def step(self) -> None:
        """Look after every cell once."""
        for given in tuple(self.open):
            if given.reason:
                self._give_up(given)
            elif given.answer is not None:
                self._settle(given, given.answer)
            elif given.worker is not None:
                self._follow(given, given.worker)
            elif given.not_before <= self.now():
                given.worker = self.place.start(given.cell, order(given.cell.key, given.old))
                given.given = self.now()

    def _follow(self, given: Given, worker: Worker) -> None:
        for line in worker.said():
            if said := heard(line, given.cell.key):
                self._hear(given, said)
        patience = math.inf if self.place.patience is None else self.place.patience
        if given.worker is None:
            worker.release()
        elif (how := worker.ended()) is not None:
            given.worker = given.began = None
            worker.stop()
            self._lost(given, how or "left without an answer")
        elif given.began is None and self.now() - given.given > patience:
            given.worker = None
            worker.stop()
            self._lost(given, f"was silent for {patience:g} seconds")
        elif self.timeout is not None and given.began is not None and self.now() - given.began > self.timeout:
            given.worker = None
            worker.stop()
            given.reason = f"it took longer than the {self.timeout:g} seconds of --timeout and was ended."

    def _hear(self, given: Given, said: dict[str, Any]) -> None:
        event = said["event"]
        if event == "taken":
            given.began = self.now()
        elif event == "started" and not given.seen:
            given.seen = True
            self.told.cell_started(given.cell)
        elif event == "task" and said["told"][0] > given.furthest:
            given.furthest, given.losses = said["told"][0], 0
        elif event in ("made", "elsewhere"):
            given.worker, given.answer, given.answered = None, said, self.now()
        elif event == "held":
            given.worker, given.began = None, None
            given.not_before = self.now() + HELD_SECONDS
        elif event == "refused":
            given.worker, given.reason = None, said["why"]
        relay(said, given.cell, self.told)

    def _lost(self, given: Given, how: str) -> None:
        given.losses += 1
        words = f"a worker {how}"
        folder_of(self.store, given.cell).log("worker_lost", how=how)
        if given.losses >= LOSSES:
            given.reason = f"{words}; {given.losses} were lost without finishing a task in between."
        else:
            given.not_before = self.now() + RETRY_SECONDS * given.losses
            self.told.message(f"{given.cell.name}: {words}; another one goes on after the last finished task.")

    def _settle(self, given: Given, answer: dict[str, Any]) -> None:
        record, _ = folder_of(self.store, given.cell).read()
        late = self.now() - given.answered > UNSEEN_SECONDS
        if record is not None and (late or mark(record) == answer["mark"]):
            (self.summary.made if answer["event"] == "made" else self.summary.elsewhere).append(record)
            self._close(given, record)
        elif late:
            given.reason = (
                f"its worker says that it is done, and the store '{self.store.root}' holds no record; "
                "the store must lie on a file system that all machines share."
            )

    def _give_up(self, given: Given) -> None:
        """Write the record of the failure, as soon as nobody holds the cell any more."""
        folder = folder_of(self.store, given.cell)
        with folder.lock() as mine:
            if not mine:
                return
            record = self.failure(given.cell, given.reason)
            folder.save(record, {})
            folder.log(record.status, reason=record.reason)
        self.summary.made.append(record)
        self._close(given, record)

    def _close(self, given: Given, record: Record) -> None:
        self.open.remove(given)
        self.told.cell_finished(given.cell, record)


def drive(
    cells: Sequence[Cell],
    stream: Stream,
    store: Store,
    place: Place,
    reporter: Reporter | None = None,
    timeout: float | None = None,
) -> Summary:
    """Run the missing cells by workers of `place`; no cell's failure takes down another.

    A worker that is lost is replaced, and the cell goes on after its last finished task. One that is lost LOSSES times
    without finishing a task in between, or that took longer than `timeout` seconds, gets a record of that failure.
    """

    def failure(cell: Cell, reason: str) -> Record:
        from clbench import runner  # and with it Avalanche, which takes seconds

        shown, state = runner.examined(stream, cell.protocol.scored_on), runner.State.new(len(stream))
        here = cell.device_kind == "cpu" or torch.cuda.is_available()
        device = torch.device(cell.device_kind if here else "cpu")
        record = runner.record_of(cell, shown, device, state, status="failed", reason=reason)
        elsewhere = record.origin.model_copy(update={"device_kind": cell.device_kind})
        return record.model_copy(update={"origin": elsewhere})

    return Driver(store, place, reporter or Quiet(), failure, timeout).run(cells)
