"""Journal: what happens while cells are run, as JSON lines in a file."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench.errors import StoreError
from clbench.files import explain
from clbench.metrics import Undefined, average_accuracy

if TYPE_CHECKING:
    from clbench.pace import Pace
    from clbench.plan import Cell
    from clbench.record import Record


class Journal:
    """Appends one JSON object a line: `time` (UTC, ISO 8601), `event`, and what belongs to it.

    Events are cell_started, epoch, task, cell_finished and message; tasks and epochs count from 1, and what is of a
    cell carries its suite, method, variant, seed and key. The file is opened for each line, so that all lines written
    are there whatever ends the process; a line that a killed process left torn is ended first. Raises StoreError where
    the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.cell = path, dict[str, Any]()
        self._append("\n" if self._torn() else "")

    def cell_started(self, cell: Cell) -> None:
        """With the tasks there are."""
        self.cell = _facts(cell)
        self._write("cell_started", **self.cell, tasks=cell.protocol.tasks, device=cell.device_kind)

    def at_hand(self, cell: Cell) -> None:
        """What follows is of this cell."""
        self.cell = _facts(cell)

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """With the mean loss and how fast it went."""
        place = {"task": task + 1, "tasks": tasks, "epoch": epoch, "epochs": epochs}
        speed = {"seconds": round(pace.seconds, 3), f"{pace.unit}_per_second": round(pace.per_second, 1)}
        self._write("epoch", **self.cell, **place, loss=loss, **speed)

    def task(self, task: int, tasks: int) -> None:
        """A task was learned and scored."""
        self._write("task", **self.cell, task=task + 1, tasks=tasks)

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """With the average in percent after the last task, and the reason where there is none."""
        average = average_accuracy(record.scores)
        score = None if isinstance(average, Undefined) else round(100 * average, 4)
        facts = {"status": record.status, "reason": record.reason, "score": record.score_name, "average": score}
        self._write("cell_finished", **_facts(cell), **facts)

    def message(self, text: str) -> None:
        """A sentence for the person who waits."""
        self._write("message", text=text)

    def close(self) -> None:
        """Nothing: every line is already there."""

    def _write(self, event: str, **facts: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        self._append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise StoreError(explain(error, self.path)) from error

    def _torn(self) -> bool:
        try:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() != b"\n"
        except OSError:  # absent or empty
            return False


def _facts(cell: Cell) -> dict[str, Any]:
    names = {"suite": cell.suite.name, "method": cell.method.name, "variant": cell.variant}
    return {**names, "seed": cell.seed, "key": cell.key}
