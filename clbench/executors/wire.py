"""Wire: what a worker and whoever started it say to each other, one JSON object or a few words a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

from clbench.executors.reports import Quiet, Reporter
from clbench.pace import Pace
from clbench.plan import Cell
from clbench.record import Record

Answer = Literal["made", "elsewhere", "held", "refused"]
"""What becomes of a cell that a worker was given: it made the record; found it; another process holds the cell; it
cannot be done there."""


def mark(record: Record | None) -> str:
    """Tells a record from another of the same cell; '-' for none."""
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:16] if record is not None else "-"


def order(key: str, old: Record | None) -> str:
    """Tells a worker to do a cell whose record, if any, is to be replaced."""
    return f"{key} {mark(old)}"


LAST = ""
"""Tells a worker that it may leave when it has done what it was given."""


def heard(line: str, key: str) -> dict[str, Any]:
    """What a line says of the cell; {} where it is none of a worker's, or of another cell."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and said.get("cell") == key and "event" in said else {}


class Speaker(Quiet):
    """Says what a cell reports as lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self.key = say, ""

    def say(self, event: str, **facts: Any) -> None:
        """One line about the cell at hand."""
        self._say(json.dumps({"event": event, "cell": self.key, **facts}))

    def cell_started(self, cell: Cell) -> None:
        """Its work begins."""
        self.say("started")

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """As it was told."""
        self.say("epoch", told=[task, tasks, epoch, epochs, loss], pace=[pace.amount, pace.unit, pace.seconds])

    def task(self, task: int, tasks: int) -> None:
        """As it was told."""
        self.say("task", told=[task, tasks])

    def message(self, text: str) -> None:
        """As it was told."""
        self.say("message", text=text)


def relay(said: dict[str, Any], cell: Cell, told: Reporter) -> None:
    """Tell what a `Speaker` said."""
    if said["event"] == "epoch":
        told.at_hand(cell)
        task, tasks, epoch, epochs, loss = said["told"]
        told.epoch(task, tasks, epoch, epochs, loss, Pace(*said["pace"]))
    elif said["event"] == "task":
        told.at_hand(cell)
        told.task(*said["told"])
    elif said["event"] == "message":
        told.message(said["text"])
