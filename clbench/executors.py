"""Executors: run the missing cells of a plan and put their records into a store."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from clbench.errors import NotAvailable, UnknownName
from clbench.featurecache import FeatureCache
from clbench.lease import LeaseLost
from clbench.pace import Pace
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.stream import Stream

DEVICES = ("auto", "cpu", "cuda")


class Reporter(Protocol):
    """Who is told how far a comparison has come; includes what `clbench.runner.Progress` asks for."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """An epoch of the cell at hand has ended; tasks count from 0, epochs from 1."""
        ...

    def task(self, task: int, tasks: int) -> None:
        """A task of the cell at hand has been learned and scored."""
        ...

    def cell_started(self, cell: Cell) -> None:
        """A cell begins, or goes on after its last finished task."""
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

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""


@dataclass
class Summary:
    """What became of the cells."""

    kept: list[Record] = field(default_factory=list)
    """Records that were already there."""
    made: list[Record] = field(default_factory=list)
    elsewhere: list[Record] = field(default_factory=list)
    """Records that another process made meanwhile."""

    @property
    def failed(self) -> list[Record]:
        """Records of failures, old and new."""
        return [record for record in (*self.kept, *self.made, *self.elsewhere) if record.status == "failed"]


def choose_device(name: str) -> torch.device:
    """The device that a name of DEVICES stands for.

    Raises UnknownName, and NotAvailable where CUDA is asked for and absent.
    """
    if name not in DEVICES:
        raise UnknownName("device", name, DEVICES)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotAvailable("device cuda was asked for and PyTorch sees no CUDA device here; use --device cpu or auto.")
    return torch.device("cuda")


def missing(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """The cells without a finished record; failed ones count as missing."""
    return [cell for cell in cells if not _finished(_folder(store, cell).read()[0])]


def inline(
    cells: Sequence[Cell], stream: Stream, store: Store, device: torch.device, reporter: Reporter | None = None
) -> Summary:
    """Run the missing cells one after another in this process.

    A cell that another process holds is left to it; once nothing else is to do, its record is waited for.
    """
    told, summary, waiting, old = reporter or Quiet(), Summary(), list[Cell](), dict[str, Record | None]()
    for cell in cells:
        record, _ = _folder(store, cell).read()
        if record is not None and _finished(record):
            summary.kept.append(record)
        else:
            waiting.append(cell)
            old[cell.key] = record
    while waiting:
        held = [cell for cell in waiting if not _attempt(cell, old[cell.key], stream, store, device, told, summary)]
        if len(held) == len(waiting):
            time.sleep(0.5)
        waiting = held
    return summary


def _attempt(
    cell: Cell,
    old: Record | None,
    stream: Stream,
    store: Store,
    device: torch.device,
    told: Reporter,
    summary: Summary,
) -> bool:
    """Do one cell, or find it done since its `old` record was read; False where another process holds it."""
    folder = _folder(store, cell)
    with folder.lock() as mine:
        if not mine:
            return False
        record, problem = folder.read()
        if record is not None and (_finished(record) or record != old):
            summary.elsewhere.append(record)
            told.cell_finished(cell, record)
            return True
        if problem is not None:
            told.message(f"{problem} It was set aside as '{folder.set_aside().name}' and the cell is done anew.")
        try:
            summary.made.append(_do(cell, stream, store, folder, device, told))
        except LeaseLost as lost:
            told.message(str(lost))
            return False
    return True


def _do(cell: Cell, stream: Stream, store: Store, folder: CellFolder, device: torch.device, told: Reporter) -> Record:
    from clbench import runner  # and with it Avalanche, which takes seconds

    kept = FeatureCache.wanted()
    told.cell_started(cell)
    folder.log("started", pid=os.getpid(), threads=torch.get_num_threads())
    with store.running(cell.key, str(device)):
        record, outcomes = runner.run(
            cell,
            stream,
            device=device,
            folder=folder,
            progress=told,
            contended=lambda: store.others_running(cell.key, str(device)),
            kept=kept,
        )
    for sentence in record.notes.get("features", {}).get("ignored", ()):
        told.message(sentence)
    folder.save(record, outcomes)
    folder.log(record.status, reason=record.reason)
    told.cell_finished(cell, record)
    return record


def _folder(store: Store, cell: Cell) -> CellFolder:
    return store.cell(cell.suite.name, cell.method.name, cell.key)


def _finished(record: Record | None) -> bool:
    return record is not None and record.status != "failed"
