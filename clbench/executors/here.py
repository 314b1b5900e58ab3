"""Here: cells done in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from clbench.errors import NotAvailable, Parted, UnknownName
from clbench.executors.reports import Quiet, Reporter
from clbench.executors.wire import mark
from clbench.featurecache import FeatureCache
from clbench.lease import LeaseLost
from clbench.origin import identity
from clbench.peers import ALONE, Peers
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.stream import Stream

DEVICES = ("auto", "cpu", "cuda")


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
    return [cell for cell in cells if not finished(folder_of(store, cell).read()[0])]


def looked_up(cells: Sequence[Cell], store: Store) -> tuple[Summary, list[tuple[Cell, Record | None]]]:
    """What is there already, and the missing cells, each with the record of its last failure, if any."""
    summary, waiting = Summary(), list[tuple[Cell, Record | None]]()
    for cell in cells:
        record, _ = folder_of(store, cell).read()
        if record is not None and finished(record):
            summary.kept.append(record)
        else:
            waiting.append((cell, record))
    return summary, waiting


def inline(
    cells: Sequence[Cell],
    stream: Stream,
    store: Store,
    device: torch.device,
    reporter: Reporter | None = None,
    peers: Peers = ALONE,
) -> Summary:
    """Run the missing cells one after another in this process, and in those of `peers`, which `follow`.

    A cell that another process holds is left to it; once nothing else is to do, its record is waited for.
    """
    summary, waiting = looked_up(cells, store)
    told = reporter or Quiet()
    while waiting:
        held = []
        for cell, old in waiting:
            done = attempt(cell, mark(old), stream, store, device, told, peers)
            if done is None:
                held.append((cell, old))
            else:
                (summary.made if done.ours else summary.elsewhere).append(done.record)
        if len(held) == len(waiting):
            time.sleep(0.5)
        waiting = held
    return summary


def follow(cells: Sequence[Cell], stream: Stream, device: torch.device, peers: Peers) -> None:
    """Do with the one that leads whatever cells it announces, and keep nothing; raises Parted where it has ended."""
    from clbench import runner

    known = {cell.key: cell for cell in cells}
    while (told := peers.next()) is not None:
        if told["key"] not in known:
            raise Parted("processes that learn together plan other cells from the same words: their files differ.")
        torch.set_num_threads(told["threads"])
        runner.run(known[told["key"]], stream, device=device, peers=peers)


@dataclass(frozen=True)
class Done:
    """A cell's record, and whether this process made it."""

    record: Record
    ours: bool


def attempt(
    cell: Cell,
    old: str,
    stream: Stream,
    store: Store,
    device: torch.device,
    told: Reporter,
    peers: Peers = ALONE,
) -> Done | None:
    """Do one cell, or find it done since its record had the mark `old`; None where another process holds it."""
    folder = folder_of(store, cell)
    with folder.lock() as mine:
        if not mine:
            return None
        record, problem = folder.read()
        if record is not None and (finished(record) or mark(record) != old):
            told.cell_finished(cell, record)
            return Done(record, ours=False)
        if problem is not None:
            told.message(f"{problem} It was set aside as '{folder.set_aside().name}' and the cell is done anew.")
        try:
            return Done(_do(cell, stream, store, folder, device, told, peers), ours=True)
        except LeaseLost as lost:
            if peers.size > 1:  # the others are in the midst of it
                raise
            told.message(str(lost))
            return None


def _do(
    cell: Cell,
    stream: Stream,
    store: Store,
    folder: CellFolder,
    device: torch.device,
    told: Reporter,
    peers: Peers,
) -> Record:
    from clbench import runner  # and with it Avalanche, which takes seconds

    kept, where = FeatureCache.wanted(), identity(device)
    told.cell_started(cell)
    folder.log("started", pid=os.getpid(), threads=torch.get_num_threads())
    peers.announce({"key": cell.key, "threads": torch.get_num_threads()})
    with store.running(cell.key, where):
        record, outcomes = runner.run(
            cell,
            stream,
            device=device,
            folder=folder,
            progress=told,
            contended=lambda: store.others_running(cell.key, where),
            kept=kept,
            peers=peers,
        )
    for sentence in record.notes.get("features_ignored", ()):
        told.message(sentence)
    folder.save(record, outcomes)
    folder.log(record.status, reason=record.reason)
    told.cell_finished(cell, record)
    return record


def folder_of(store: Store, cell: Cell) -> CellFolder:
    """The cell's place in the store."""
    return store.cell(cell.suite.name, cell.method.name, cell.key)


def finished(record: Record | None) -> bool:
    """Whether there is a record and none of a failure."""
    return record is not None and record.status != "failed"
