"""Runner: the loop of one cell, from the first task to its record."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from clbench import __version__, backbones, checkpoint, recall
from clbench.costs import check_declared, task_costs
from clbench.errors import ClbenchError, LeakError, StoreError
from clbench.exam import Exam, Outcomes, Round
from clbench.featurecache import FeatureCache
from clbench.files import explain, set_aside, write_atomically
from clbench.marking import SCORE
from clbench.meter import Meter, stopwatch, tensor_bytes
from clbench.method import Workbench
from clbench.origin import device_name, origin, versions
from clbench.pace import Laps, Pace
from clbench.plan import Cell
from clbench.record import Audit, Record, TaskCosts
from clbench.seeding import seed_everything
from clbench.store import CellFolder
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream, Task, Union

__all__ = ["Outcomes", "Progress", "Run", "Silent", "State", "run"]


class Progress(Protocol):
    """Who is told how far a cell has come."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """An epoch has ended."""
        ...

    def task(self, task: int, tasks: int) -> None:
        """A task has been learned and scored."""
        ...


class Silent:
    """Tells nobody."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        """Nothing."""

    def task(self, task: int, tasks: int) -> None:
        """Nothing."""


@dataclass
class State:
    """What has been measured so far; goes into the checkpoint."""

    scores: list[list[float | None]]
    started: str
    """UTC, ISO 8601; a resumed run keeps its first start."""
    costs: list[TaskCosts] = field(default_factory=list)
    facts: dict[str, Tensor] = field(default_factory=dict)
    """NAME_i -> what `exam.Round.facts` holds under NAME after i tasks, for the tasks seen by then."""
    other_scores: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Further scores of the same answers, each laid out like `scores`."""
    router_accuracy: dict[str, float] = field(default_factory=dict)
    """round_i -> the share of the tasks inferred rightly after i tasks; only where some were inferred."""
    contended: bool = False

    @classmethod
    def new(cls, tasks: int) -> State:
        """Nothing measured yet."""
        return cls(_unmeasured(tasks), datetime.now(UTC).isoformat(timespec="seconds"))

    def note(self, number: int, answered: Round) -> None:
        """Keep what the scoring pass of round `number` gave."""
        self.facts.update({f"{name}_{number}": values for name, values in answered.facts.items()})
        for name, found in answered.scores.items():
            matrix = self.scores
            if name != SCORE:
                matrix = self.other_scores.setdefault(name, _unmeasured(len(self.scores) - 1))
            matrix[number][: len(found)] = found
        if answered.router_accuracy is not None:
            self.router_accuracy[f"round_{number}"] = answered.router_accuracy

    def router(self) -> tuple[float | None, ...]:
        """The router accuracy of each round from the first on; () where no task was ever inferred."""
        if not self.router_accuracy:
            return ()
        return tuple(self.router_accuracy.get(f"round_{i}") for i in range(1, len(self.scores)))


def _unmeasured(tasks: int) -> list[list[float | None]]:
    """The scores of a run that has not begun, laid out as in a record."""
    return [[None] * tasks for _ in range(tasks + 1)]


class Run:
    """One cell while it is being run. Use `run`."""

    def __init__(
        self, cell: Cell, stream: Stream, device: torch.device, progress: Progress, kept: FeatureCache | None = None
    ) -> None:
        self.cell, self.device, self.progress = cell, device, progress
        seed_everything(cell.seed, "build")
        self.meter = Meter(device)
        suite, recipe = cell.suite, cell.suite.recipe
        terms = {"normalisation": suite.normalisation, "weights": suite.weights}
        self.model = backbones.build(suite.backbone, stream.classes, cell.seed, **terms).to(device)
        shown = examined(stream, cell.protocol.scored_on)
        self.stream, self.vault = self.model.read(shown, recipe).sealed()
        self.untouched = checkpoint.Untouched(self.model)
        self.recall = recall.made(cell, self.model, [task.test for task in self.stream], kept)
        self.model.freeze_body()
        self.given = recipe
        recipe = recipe.model_copy(update={"epochs": max(1, cell.protocol.epochs)})
        bench = Workbench(self.model, recipe, device, len(stream), cell.seed)
        self.plugins = list(cell.method.plugins(bench))
        self.strategy = Strategy(
            model=self.model,
            recipe=recipe,
            plugins=self.plugins,
            meter=self.meter,
            device=device,
            seed=cell.seed,
            on_epoch=self._tell,
        )
        self.strategy.head_masking = cell.method.head_masking
        self.strategy.learning_rate = cell.method.learning_rate or recipe.learning_rate
        self.exam = Exam(shown, self.stream, self.vault, self.strategy, suite.score, self.recall)
        self.state = State.new(len(stream))

    def _tell(self, epoch: int, epochs: int, loss: float) -> None:
        self.progress.epoch(self.strategy.task_index, len(self.stream), epoch, epochs, loss, self.laps.lap())

    @property
    def ours(self) -> list[Plugin]:
        """The plugins that can tell their state."""
        return [plugin for plugin in self.plugins if isinstance(plugin, Plugin)]

    @property
    def strangers(self) -> list[str]:
        """The types of the plugins that cannot tell their state: Avalanche's own."""
        return [type(plugin).__name__ for plugin in self.plugins if not isinstance(plugin, Plugin)]

    @property
    def resumable(self) -> bool:
        """Whether every plugin can tell its state."""
        return not self.strangers

    def lessons(self) -> list[tuple[int, Task]]:
        """(index of the last task covered, what is learned at once): each task, or their union."""
        if self.cell.method.schedule != "joint":
            return list(enumerate(self.stream))
        tasks = self.stream.tasks
        everything = replace(
            tasks[-1],
            name="all tasks",
            train=Union([task.train for task in tasks]),
            classes=tuple(dict.fromkeys(c for task in tasks for c in task.classes)),
        )
        return [(len(tasks) - 1, everything)]

    def learn(self, index: int, task: Task) -> None:
        """Teach one lesson and score all tasks seen. Raises LeakError where more is kept than declared."""
        seed_everything(self.cell.seed, "task", index)
        self.strategy.train_epochs = self._epochs(index)
        self.laps = Laps(task.train)
        self.strategy.learn(index, task)
        reading = self.meter.stop()
        last = index + 1 == len(self.stream)
        with stopwatch(self.device) as seconds:
            answered = self.exam.score(index, None if last else self.given.eval_samples)
        self.state.note(index + 1, answered)
        self.state.costs.append(
            task_costs(
                self.strategy,
                reading,
                train_samples=len(task.train),
                eval_seconds=seconds[0] + answered.uncounted_seconds,
                eval_samples=answered.asked,
                stored=tensor_bytes(checkpoint.tensors_of(self.learned())),
            )
        )
        check_declared(self.cell.method, sum(plugin.kept_samples() for plugin in self.ours), self.state.costs)

    def _epochs(self, index: int) -> int:
        """Passes over task `index`."""
        if self.cell.method.schedule == "first" and index:
            return 0
        return self.given.epochs_of(index) if self.cell.protocol.task_epochs else self.cell.protocol.epochs

    def learned(self) -> dict[str, Any]:
        """Everything kept for later tasks and for answering: tensors of the model, states of the plugins."""
        return {
            "model": checkpoint.learned(self.model, self.untouched),
            "plugins": [plugin.state() for plugin in self.ours],
        }

    def audit(self) -> Audit:
        """Ask some samples again, alone and under shuffled task labels."""
        return self.exam.audit()

    def outcomes(self) -> Outcomes:
        """Labels, tasks and what every round gave, one entry a test example."""
        return self.exam.outcomes(self.state.facts)

    def pack(self) -> bytes:
        """Everything needed to go on after the last finished lesson."""
        state = self.state
        return checkpoint.pack(
            {
                "key": self.cell.key,
                "made_by": self._made_by(),
                "threads": torch.get_num_threads(),
                "learned": self.learned(),
                "trainable": [name for name, p in self.model.named_parameters() if p.requires_grad],
                "clock": {name: count for name, count in vars(self.strategy.clock).items() if isinstance(count, int)},
                "optimizer": self.strategy.carried(),
                "state": {**vars(state), "costs": [cost.model_dump() for cost in state.costs]},
            }
        )

    def unpack(self, content: bytes) -> int:
        """Take back what `pack` gave; returns how many lessons are finished.

        Plugins come first, so that one whose model grows can rebuild what the tensors belong to.
        Raises ValueError where the content is torn or cannot give the result of an uninterrupted run.
        """
        packed = checkpoint.unpack(content)
        if packed["key"] != self.cell.key:
            raise ValueError("the checkpoint is of another cell")
        if packed["made_by"] != self._made_by():
            raise ValueError(f"the checkpoint was made by {packed['made_by']}, here is {self._made_by()}")
        for plugin, theirs in zip(self.ours, packed["learned"]["plugins"], strict=True):
            plugin.load_state(theirs)
        checkpoint.restore(self.model, packed["learned"]["model"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in packed["trainable"])
        self.strategy.carry(packed.get("optimizer", {}))
        if set(checkpoint.learned(self.model, self.untouched)) != set(packed["learned"]["model"]):
            raise ValueError("the checkpoint's tensors are not those that the method has now")
        costs = [TaskCosts(**cost) for cost in packed["state"]["costs"]]
        self.state = State(**{**packed["state"], "costs": costs})
        for index, task in self.lessons()[: len(costs)]:
            self.strategy.task_index = index
            self.strategy.see(task)
        for name, count in packed["clock"].items():
            setattr(self.strategy.clock, name, count)
        torch.set_num_threads(packed["threads"])  # rounding depends on it
        return len(costs)

    def _made_by(self) -> dict[str, str]:
        """What a checkpoint must share with whoever goes on: others round differently and take other times."""
        return {"clbench": __version__, "torch": versions()["torch"], "device": device_name(self.device)}

    def facts(self) -> dict[str, Any]:
        """The fields of the record that only a finished run has."""
        notes: dict[str, Any] = {"uncounted_plugins": self.strangers} if self.strangers else {}
        if self.recall is not None:
            notes["features"] = self.recall.notes()
        for plugin in self.ours:
            notes.update(plugin.notes())
        weights = checkpoint.sha256(self.learned())
        audit = self.audit()
        if checkpoint.sha256(self.learned()) != weights:
            raise LeakError(f"{self.cell.method.name} changed what it has learned while it answered test examples.")
        return {
            "scores": tuple(tuple(row) for row in self.state.scores),
            "other_scores": {name: tuple(map(tuple, rows)) for name, rows in self.state.other_scores.items()},
            "floors": self.exam.marker.floors(),
            "router_accuracy": self.state.router(),
            "costs": tuple(self.state.costs),
            "audit": audit,
            "weights_sha256": weights,
            "contended": self.state.contended,
            "marks": tuple(dict.fromkeys(mark for plugin in self.ours for mark in plugin.marks())),
            "notes": notes,
        }


def examined(stream: Stream, scored_on: str) -> Stream:
    """The stream; for tuning with the validation examples in the place of the test examples."""
    if scored_on == "validation":
        return Stream(tuple(replace(task, test=task.validation) for task in stream), stream.class_names)
    return stream


def run(
    cell: Cell,
    stream: Stream,
    *,
    device: torch.device,
    folder: CellFolder | None = None,
    progress: Progress | None = None,
    contended: Callable[[], bool] = lambda: False,
    kept: FeatureCache | None = None,
) -> tuple[Record, Outcomes]:
    """Run one cell, going on after the last finished lesson where `folder` holds a checkpoint.

    `kept`: where to reuse features of the frozen backbone from; None: they are computed as they are asked for.
    `contended()` says whether another cell is, or was since the last call, on the device. A method's
    failure is a record of its failure; interruptions and failures of the store are raised.
    """
    threads, state = torch.get_num_threads(), State.new(len(stream))
    shown, _ = examined(stream, cell.protocol.scored_on).sealed()
    try:
        reason = cell.method.unsupported(shown)
        if reason is not None:
            return _record(cell, shown, device, state, status="unsupported", reason=reason), {}
        running, finished = _begin(lambda: Run(cell, stream, device, progress or Silent(), kept), folder)
        state = running.state
        for index, task in running.lessons()[finished:]:
            state.contended |= contended()
            running.learn(index, task)
            state.contended |= contended()
            if folder is not None and running.resumable:
                _save_checkpoint(running, folder)
            running.progress.task(index, len(stream))
        return _record(cell, shown, device, state, status="done", **running.facts()), running.outcomes()
    except StoreError:
        raise
    except Exception as error:  # whatever a method may raise
        if folder is not None:
            folder.log("error", traceback=traceback.format_exc())
        return _record(cell, shown, device, state, status="failed", reason=_reason(error, cell)), {}
    finally:
        torch.set_num_threads(threads)


def _begin(new: Callable[[], Run], folder: CellFolder | None) -> tuple[Run, int]:
    """A run and how many of its lessons are already finished."""
    running = new()
    if folder is None or not folder.checkpoint_path.exists():
        return running, 0
    try:
        content = folder.checkpoint_path.read_bytes()
    except OSError as error:
        raise StoreError(explain(error, folder.checkpoint_path)) from error
    try:
        finished = running.unpack(content)
    except Exception as error:  # torn, foreign, or refused by the method: nothing of it is used
        aside = set_aside(folder.checkpoint_path)
        folder.log("checkpoint_set_aside", file=aside.name, reason=str(error))
        return new(), 0
    folder.log("resumed", reused=[task.name for _, task in running.lessons()[:finished]])
    return running, finished


def _save_checkpoint(running: Run, folder: CellFolder) -> None:
    folder.refuse_if_lost()
    write_atomically(folder.checkpoint_path, running.pack())
    costs = running.state.costs
    folder.log("task_done", finished=len(costs), seconds=costs[-1].train_seconds)


def _reason(error: Exception, cell: Cell) -> str:
    """One line that says what failed and where in the method's module, if anywhere."""
    if isinstance(error, ClbenchError):
        return str(error)
    message = next((line for line in str(error).splitlines() if line.strip()), "no message")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return "out of memory; lower recipe.batch_size or recipe.eval_batch_size, or free the device of other programs."
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    places = list(traceback.walk_tb(error.__traceback__))
    home = [place for place in places if place[0].f_globals.get("__name__") == type(cell.method).__module__]
    frame, line = (home or places)[-1]
    return f"{type(error).__name__} at {Path(frame.f_code.co_filename).name}:{line}: {message}"


def _record(cell: Cell, stream: Stream, device: torch.device, state: State, **facts: Any) -> Record:
    """The record of a cell; `stream` as it was examined."""
    return Record(
        key=cell.key,
        suite=cell.suite.name,
        method=cell.method.name,
        variant=cell.variant,
        params=cell.method.model_dump(mode="json"),
        recipe=cell.suite.recipe.facts(),
        seed=cell.seed,
        order_seed=cell.order_seed,
        fingerprint=cell.fingerprint,
        protocol=cell.protocol.model_dump(mode="json"),
        suite_protocol=cell.suite_protocol.model_dump(mode="json"),
        protocol_hash=cell.protocol.hash,
        suite_hash=cell.suite_protocol.suite_hash,
        tasks=tuple(task.name for task in stream),
        test_sizes=tuple(len(task.test) for task in stream),
        score_name=cell.suite.score,
        origin=origin(device, cell.suite.recipe.precision, state.started),
        **facts,
    )
