"""Reports: who is told how far a comparison has come."""

from __future__ import annotations

from typing import Protocol

from clbench.pace import Pace
from clbench.plan import Cell
from clbench.record import Record


class Reporter(Protocol):
    """Who is told how far a comparison has come; includes what `clbench.runner.Progress` asks for."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """An epoch of the cell at hand has ended; tasks count from 0, epochs from 1."""
        ...

    def task(self, task: int, tasks: int) -> None:
        """A task of the cell at hand has been learned and scored."""
        ...

    def cell_started(self, cell: Cell) -> None:
        """A cell begins, or goes on after its last finished task; it is at hand from now on."""
        ...

    def at_hand(self, cell: Cell) -> None:
        """Of the cells that were started and are not finished, this one is at hand from now on."""
        ...

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """A cell has its record."""
        ...

    def message(self, text: str) -> None:
        """A sentence for the person who waits."""
        ...


class Watcher(Reporter, Protocol):
    """Someone who is told beside the person who waits."""

    def close(self) -> None:
        """Nobody will be told any more."""
        ...


class Quiet:
    """Tells nobody."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """Nothing."""

    def task(self, task: int, tasks: int) -> None:
        """Nothing."""

    def cell_started(self, cell: Cell) -> None:
        """Nothing."""

    def at_hand(self, cell: Cell) -> None:
        """Nothing."""

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""
