"""Live: how far a comparison has come, as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from clbench import metrics
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.report.grid import brief, clean

if TYPE_CHECKING:
    from clbench.executors import Reporter, Watcher
    from clbench.pace import Pace
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


def speed(pace: Pace) -> str:
    """How fast it goes, in a few words.

    >>> from clbench.pace import Pace
    >>> speed(Pace(2469, "images", 2.0))
    '1,234 images/s'
    """
    return f"{brief(pace.per_second)} {pace.unit}/s"


@dataclass
class Forecast:
    """Seconds left, from what cells took before, scaled by what those of now take on this machine."""

    expected: dict[str, float | None]
    """Key -> seconds of each cell that is not finished, None where it was never timed."""
    now: Callable[[], float] = time.monotonic
    taken: list[float] = field(default_factory=list)
    compared: list[tuple[float, float]] = field(default_factory=list)
    """Of the cells finished meanwhile that were timed before: the seconds expected, and those taken."""
    began: dict[str, float] = field(default_factory=dict)
    """Key -> when each of the cells began that are under way."""
    done: dict[str, float] = field(default_factory=dict)
    """Key -> which share of it is."""
    current: str = ""

    def start(self, key: str) -> None:
        """A cell begins."""
        self.current, self.began[key], self.done[key] = key, self.now(), 0.0

    def finish(self, key: str) -> float:
        """A cell has ended; its seconds, 0 where it was not ours."""
        expected = self.expected.pop(key, None)
        if key not in self.began:
            return 0.0
        self.taken.append(self.now() - self.began.pop(key))
        if expected:
            self.compared.append((expected, self.taken[-1]))
        return self.taken[-1]

    def left(self, done: float | None = None) -> float | None:
        """Seconds left when the share `done` of the current cell is; None while nothing is known.

        Cells that are under way together are taken to go on so, and those after them.
        """
        if done is not None:
            self.done[self.current] = done
        now, guess = self.now(), fmean(self.taken) if self.taken else None
        elapsed = {key: now - began for key, began in self.began.items()}
        compared = list(self.compared)
        compared += [(then, elapsed[key] / self.done[key]) for key in elapsed if (then := self._before(key))]
        scale = sum(taken for _, taken in compared) / sum(then for then, _ in compared) if compared else 1.0
        times = {key: guess if seconds is None else scale * seconds for key, seconds in self.expected.items()}
        for key in elapsed.keys() & times.keys():
            whole, share = times[key], self.done[key]
            if share > 0:
                times[key] = elapsed[key] * (1 - share) / share
            elif whole is not None:
                times[key] = max(0.0, whole - elapsed[key])
        known = [seconds for seconds in times.values() if seconds is not None]
        return sum(known) / max(1, len(elapsed)) if known and len(known) == len(times) else None

    def _before(self, key: str) -> float | None:
        """What a cell under way was expected to take, if a share of it is done."""
        return self.expected.get(key) if self.done[key] > 0 else None


class Plain:
    """A line when a cell begins and ends, and now and then between."""

    def __init__(self, console: Console, cells: int, forecast: Forecast) -> None:
        self.console, self.cells, self.forecast = console, cells, forecast
        self.number = self.failed = 0
        self.spoken, self.name = 0.0, ""

    def cell_started(self, cell: Cell) -> None:
        """Its number and name."""
        self.number += 1
        self.forecast.start(cell.key)
        state = _state(self.failed, self.forecast.left())
        self.message(f"[{self.number}/{self.cells}] {cell.name}{f', {state}' if state else ''}")

    def at_hand(self, cell: Cell) -> None:
        """Say which cell it is, where several are under way."""
        self.name = f"{cell.name}: " if len(self.forecast.began) > 1 else ""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """Where the cell is, if it has been silent for long."""
        if self.forecast.now() - self.spoken > QUIET_SECONDS:
            where = f"task {task + 1} of {tasks}, epoch {epoch} of {epochs}"
            self.message(f"  {self.name}{where}, loss {loss:.3g}, {speed(pace)}")

    def task(self, task: int, tasks: int) -> None:
        """Nothing: the next epoch or the end says it."""

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """What became of it and how long it took."""
        self.failed += record.status == "failed"
        name = f"{cell.name}: " if len(self.forecast.began) > 1 else ""
        seconds = self.forecast.finish(cell.key)
        self.message(f"  {name}{ending(record)} ({duration(seconds) if seconds else 'by another process'})")

    def message(self, text: str) -> None:
        """One line."""
        self.spoken = self.forecast.now()
        self.console.print(Text(clean(text) if not text.startswith("  ") else f"  {clean(text)}"), soft_wrap=True)


class Bars:
    """Bars: the cells of the comparison, the tasks and epochs of each cell that is under way."""

    def __init__(self, progress: Progress, cells: int, forecast: Forecast) -> None:
        self.progress, self.forecast = progress, forecast
        self.whole = progress.add_task("cells", total=cells, note="")
        self.parts = dict[str, TaskID]()
        """Key -> the bar of the cell."""
        self.joint, self.key = False, ""
        self.failed = 0

    def cell_started(self, cell: Cell) -> None:
        """Show its name over an empty bar."""
        self.forecast.start(cell.key)
        tasks = 1 if cell.method.schedule == "joint" else cell.protocol.tasks
        self.parts[cell.key] = self.progress.add_task(clean(cell.name), total=tasks, note="")
        self.at_hand(cell)
        self._forecast(0.0)

    def at_hand(self, cell: Cell) -> None:
        """What follows moves its bar."""
        self.key = self.forecast.current = cell.key
        self.joint = cell.method.schedule == "joint"

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """Move its bar by a part of a task."""
        lessons, lesson = (1, 0) if self.joint else (tasks, task)
        done = lesson + epoch / epochs
        where = "all tasks" if self.joint else f"task {task + 1}"
        note = f"{where}, epoch {epoch}/{epochs}, loss {loss:.3g}, {speed(pace)}"
        self.progress.update(self.parts[self.key], completed=done, note=note)
        self._forecast(done / lessons)

    def task(self, task: int, tasks: int) -> None:
        """Move its bar to the end of a task."""
        self.progress.update(self.parts[self.key], completed=1 if self.joint else task + 1)

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """Print what became of it above the bars."""
        self.failed += record.status == "failed"
        seconds = self.forecast.finish(cell.key)
        self.message(f"{cell.name}: {ending(record)} ({duration(seconds) if seconds else 'by another process'})")
        self.progress.update(self.whole, advance=1)
        if (part := self.parts.pop(cell.key, None)) is not None:
            self.progress.remove_task(part)
        self._forecast()

    def message(self, text: str) -> None:
        """One line above the bars."""
        self.progress.console.print(Text(clean(text)))

    def _forecast(self, done: float | None = None) -> None:
        self.progress.update(self.whole, note=_state(self.failed, self.forecast.left(done)))


def _state(failed: int, left: float | None) -> str:
    """How many cells failed and how long the rest may take, as far as there is something to say."""
    said = (f"{failed} failed" if failed else "", f"about {duration(left)} left" if left else "")
    return ", ".join(filter(None, said))


class Several:
    """Tells the person who waits, then the watchers; one that breaks is named and told no more."""

    def __init__(self, person: Reporter, watchers: Sequence[Watcher]) -> None:
        self.person, self.watchers = person, list(watchers)

    def cell_started(self, cell: Cell) -> None:
        """All."""
        self._tell(lambda who: who.cell_started(cell))

    def at_hand(self, cell: Cell) -> None:
        """All."""
        self._tell(lambda who: who.at_hand(cell))

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """All."""
        self._tell(lambda who: who.epoch(task, tasks, epoch, epochs, loss, pace))

    def task(self, task: int, tasks: int) -> None:
        """All."""
        self._tell(lambda who: who.task(task, tasks))

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """All."""
        self._tell(lambda who: who.cell_finished(cell, record))

    def message(self, text: str) -> None:
        """All."""
        self._tell(lambda who: who.message(text))

    def close(self) -> None:
        """The watchers."""
        for watcher in tuple(self.watchers):
            self._guarded(watcher, lambda who: who.close())

    def _tell(self, tell: Callable[[Reporter], None]) -> None:
        tell(self.person)
        for watcher in tuple(self.watchers):
            self._guarded(watcher, tell)

    def _guarded(self, watcher: Watcher, tell: Callable[[Watcher], None]) -> None:
        try:
            tell(watcher)
        except Exception as error:  # a full disk or a lost connection is no reason to stop learning
            self.watchers.remove(watcher)
            self.person.message(f"{type(watcher).__name__} is told no more: {error}")


@contextlib.contextmanager
def reporter(
    console: Console, cells: int, expected: Mapping[str, float | None], watchers: Sequence[Watcher] = ()
) -> Iterator[Reporter]:
    """Who to tell of `cells` cells, for the length of the block: the console, and `watchers` beside it.

    `expected` are the seconds of each cell that is missing, by key; nothing is forecast where it is empty.
    """
    forecast = Forecast(dict(expected))
    with contextlib.ExitStack() as open_bars:
        person: Reporter = Plain(console, cells, forecast)
        if console.is_terminal:
            bars = Progress(*_columns(), console=console, refresh_per_second=REDRAWS_PER_SECOND, transient=True)
            person = Bars(open_bars.enter_context(bars), cells, forecast)
        several = Several(person, watchers)
        try:
            yield several
        except KeyboardInterrupt:
            for watcher in several.watchers:
                watcher.message("interrupted")
            raise
        finally:
            several.close()


def _columns() -> Sequence[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
