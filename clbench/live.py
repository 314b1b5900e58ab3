"""Live: how far a comparison has come, as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from clbench import metrics
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.report.grid import clean

if TYPE_CHECKING:
    from clbench.executors import Reporter
    from clbench.plan import Cell

QUIET_SECONDS = 10.0
"""Without a terminal a cell says how far it is no more often than this."""
REDRAWS_PER_SECOND = 2.0
"""Few, because drawing takes time from the cores that are being measured."""


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(7.4), duration(95), duration(7300)
    ('7 s', '2 min', '2 h 02 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def ending(record: Record) -> str:
    """What became of a cell, in a few words."""
    if record.status != "done":
        return clean(f"{'failed' if record.status == 'failed' else 'not run'}: {record.reason}")
    accuracy = metrics.average_accuracy(record.scores)
    return "done" if isinstance(accuracy, Undefined) else f"{record.score_name} {100 * accuracy:.1f} %"


@dataclass
class Forecast:
    """Seconds left, from what cells took before and from those finished meanwhile."""

    expected: dict[str, float | None]
    """Key -> seconds of each cell that is not finished, None where it was never timed."""
    now: Callable[[], float] = time.monotonic
    taken: list[float] = field(default_factory=list)
    current: str = ""
    began: float = 0.0

    def start(self, key: str) -> None:
        """A cell begins."""
        self.current, self.began = key, self.now()

    def finish(self, key: str) -> float:
        """A cell has ended; its seconds, 0 where it was not ours."""
        self.expected.pop(key, None)
        if key != self.current:
            return 0.0
        self.taken.append(self.now() - self.began)
        self.current = ""
        return self.taken[-1]

    def left(self, done: float = 0.0) -> float | None:
        """Seconds left when the share `done` of the current cell is; None while nothing is known."""
        guess = fmean(self.taken) if self.taken else None
        times = {key: guess if seconds is None else seconds for key, seconds in self.expected.items()}
        if self.current in times:
            elapsed, whole = self.now() - self.began, times[self.current]
            if done > 0:
                times[self.current] = elapsed * (1 - done) / done
            elif whole is not None:
                times[self.current] = max(0.0, whole - elapsed)
        known = [seconds for seconds in times.values() if seconds is not None]
        return sum(known) if known and len(known) == len(times) else None


class Plain:
    """A line when a cell begins and ends, and now and then between."""

    def __init__(self, console: Console, cells: int, forecast: Forecast) -> None:
        self.console, self.cells, self.forecast = console, cells, forecast
        self.number = 0
        self.spoken = 0.0

    def cell_started(self, cell: Cell) -> None:
        """Its number and name."""
        self.number += 1
        self.forecast.start(cell.key)
        left = self.forecast.left()
        self.message(f"[{self.number}/{self.cells}] {cell.name}{f', about {duration(left)} left' if left else ''}")

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Where the cell is, if it has been silent for long."""
        if self.forecast.now() - self.spoken > QUIET_SECONDS:
            self.message(f"  task {task + 1} of {tasks}, epoch {epoch} of {epochs}, loss {loss:.3g}")

    def task(self, task: int, tasks: int) -> None:
        """Nothing: the next epoch or the end says it."""

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """What became of it and how long it took."""
        seconds = self.forecast.finish(cell.key)
        self.message(f"  {ending(record)} ({duration(seconds) if seconds else 'by another process'})")

    def message(self, text: str) -> None:
        """One line."""
        self.spoken = self.forecast.now()
        self.console.print(Text(clean(text) if not text.startswith("  ") else f"  {clean(text)}"), soft_wrap=True)


class Bars:
    """Two bars: the cells of the comparison, the tasks and epochs of the cell at hand."""

    def __init__(self, progress: Progress, cells: int, forecast: Forecast) -> None:
        self.progress, self.forecast = progress, forecast
        self.whole = progress.add_task("cells", total=cells, note="")
        self.part = progress.add_task("", total=1, visible=False, note="")
        self.joint = False

    def cell_started(self, cell: Cell) -> None:
        """Show its name over an empty bar."""
        self.forecast.start(cell.key)
        self.joint = cell.method.schedule == "joint"
        tasks = 1 if self.joint else cell.protocol.tasks
        self.progress.reset(self.part, description=clean(cell.name), total=tasks, visible=True, note="")
        self._forecast(0.0)

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Move the lower bar by a part of a task."""
        lessons, lesson = (1, 0) if self.joint else (tasks, task)
        done = lesson + epoch / epochs
        where = "all tasks" if self.joint else f"task {task + 1}"
        self.progress.update(self.part, completed=done, note=f"{where}, epoch {epoch}/{epochs}, loss {loss:.3g}")
        self._forecast(done / lessons)

    def task(self, task: int, tasks: int) -> None:
        """Move the lower bar to the end of a task."""
        self.progress.update(self.part, completed=1 if self.joint else task + 1)

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """Print what became of it above the bars."""
        seconds = self.forecast.finish(cell.key)
        self.message(f"{cell.name}: {ending(record)} ({duration(seconds) if seconds else 'by another process'})")
        self.progress.update(self.whole, advance=1)
        self.progress.update(self.part, visible=False)
        self._forecast(0.0)

    def message(self, text: str) -> None:
        """One line above the bars."""
        self.progress.console.print(Text(clean(text)))

    def _forecast(self, done: float) -> None:
        left = self.forecast.left(done)
        self.progress.update(self.whole, note="" if left is None else f"about {duration(left)} left")


@contextlib.contextmanager
def reporter(console: Console, cells: int, expected: Mapping[str, float | None]) -> Iterator[Reporter]:
    """Who to tell of `cells` cells, for the length of the block.

    `expected` are the seconds of each cell that is missing, by key; nothing is forecast where it is empty.
    """
    forecast = Forecast(dict(expected))
    if not console.is_terminal:
        yield Plain(console, cells, forecast)
        return
    with Progress(*_columns(), console=console, refresh_per_second=REDRAWS_PER_SECOND, transient=True) as progress:
        yield Bars(progress, cells, forecast)


def _columns() -> Sequence[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
