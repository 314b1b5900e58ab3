"""Trackers: other programs that are told how far a comparison has come, where a person asks for it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clbench.errors import NotAvailable, UnknownName
from clbench.journal import Journal

if TYPE_CHECKING:
    from clbench.executors import Watcher
    from clbench.pace import Pace
    from clbench.plan import Cell
    from clbench.record import Record


class Tracker(ABC):
    """One run of the other program for each cell; `root` is the folder of the records.

    Raises NotAvailable where the program is not installed.
    """

    module: str
    """What is imported of it, and only when it is asked for."""
    extra: str
    """Of clbench, which installs it."""

    def __init__(self, root: Path) -> None:
        try:
            self.library: Any = importlib.import_module(self.module)
        except ImportError as error:
            raise NotAvailable(
                f"--track {self.extra} was asked for and is not installed here ({error}); "
                f"pip install 'clbench[{self.extra}]', or leave it out."
            ) from error
        self.root, self.key = root, ""
        self.runs, self.epochs = dict[str, Any](), dict[str, int]()

    @abstractmethod
    def begin(self, cell: Cell) -> Any:
        """Open a run; what the other functions are given of it."""

    @abstractmethod
    def log(self, run: Any, values: Mapping[str, float], epochs: int) -> None:
        """Numbers after so many epochs over all tasks."""

    @abstractmethod
    def end(self, run: Any, averages: Sequence[float | None], status: str) -> None:
        """Close the run; the average in percent after each task, None where not measured."""

    def cell_started(self, cell: Cell) -> None:
        """Open a run for it."""
        self.key = cell.key
        self.epochs[cell.key], self.runs[cell.key] = 0, self.begin(cell)

    def at_hand(self, cell: Cell) -> None:
        """What follows goes to its run."""
        self.key = cell.key

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """Log loss, task and pace."""
        self.epochs[self.key] += 1
        values = {"loss": loss, "task": task + 1.0, f"{pace.unit} per second": pace.per_second}
        self.log(self.runs[self.key], values, self.epochs[self.key])

    def task(self, task: int, tasks: int) -> None:
        """Nothing: what it scored is in the record."""
        return

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """Log the averages and close the run; nothing where another process made the record."""
        if (run := self.runs.pop(cell.key, None)) is not None:
            self.end(run, [_average(row[:seen]) for seen, row in enumerate(record.scores) if seen], record.status)

    def message(self, text: str) -> None:
        """Nothing: it is for the person who waits."""
        return

    def close(self) -> None:
        """Close runs that were interrupted."""
        while self.runs:
            self.end(self.runs.popitem()[1], [], "interrupted")


def _average(row: Sequence[float | None]) -> float | None:
    measured = [score for score in row if score is not None]
    return 100 * fmean(measured) if len(measured) == len(row) else None


class TensorBoard(Tracker):
    """Event files in the folder 'tensorboard' beside the runs."""

    module, extra = "torch.utils.tensorboard", "tensorboard"

    def begin(self, cell: Cell) -> Any:
        """A folder for the cell."""
        folder = self.root / "tensorboard" / cell.suite.name / f"{cell.method.name}-seed{cell.seed}-{cell.key}"
        return self.library.SummaryWriter(str(folder))

    def log(self, run: Any, values: Mapping[str, float], epochs: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            run.add_scalar(name, value, epochs)

    def end(self, run: Any, averages: Sequence[float | None], status: str) -> None:
        """The averages over the number of tasks."""
        for seen, average in enumerate(averages, 1):
            if average is not None:
                run.add_scalar("average after tasks", average, seen)
        run.close()


class WandB(Tracker):
    """Runs of Weights & Biases, by its own settings (WANDB_MODE, WANDB_PROJECT); grouped by suite."""

    module, extra = "wandb", "wandb"

    def begin(self, cell: Cell) -> Any:
        """A run named as the cell, with its protocol and parameters, beside others that may be open."""
        config = {"protocol": cell.protocol.model_dump(mode="json"), "params": cell.method.model_dump(mode="json")}
        self.root.mkdir(parents=True, exist_ok=True)
        named = {"group": cell.suite.name, "name": cell.name, "config": config}
        return self.library.init(dir=str(self.root), reinit="create_new", **named)

    def log(self, run: Any, values: Mapping[str, float], epochs: int) -> None:
        """At the epochs so far."""
        run.log(dict(values), step=epochs)

    def end(self, run: Any, averages: Sequence[float | None], status: str) -> None:
        """The averages go into the summary."""
        shown = {f"average after {seen} tasks": mean for seen, mean in enumerate(averages, 1) if mean is not None}
        run.summary.update({**shown, "status": status})
        run.finish(exit_code=int(status in ("failed", "interrupted")))


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def watchers(log: Path | None, track: Sequence[str], root: Path) -> list[Watcher]:
    """Who else is to be told: the journal `log`, and the trackers named; raises where one cannot be had."""
    for name in track:
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
    return [*([Journal(log)] if log else []), *(TRACKERS[name](root) for name in dict.fromkeys(track))]
