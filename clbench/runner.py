"""Runner: the loop of one cell, from the first task to its record."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch

from clbench import __version__, backbones, checkpoint, recall, shortage
from clbench.costs import Kept, check_declared, task_costs
from clbench.errors import LeakError, Parted, StoreError
from clbench.exam import Exam, Outcomes
from clbench.featurecache import FeatureCache
from clbench.files import explain, set_aside, write_atomically
from clbench.filing import failure, reason, record_of
from clbench.marking import SCORE
from clbench.meter import Meter, stopwatch, tensor_bytes
from clbench.method import Workbench
from clbench.origin import device_name, versions
from clbench.pace import Laps, Pace
from clbench.peers import ALONE, Peers
from clbench.plan import Cell
from clbench.record import Audit, Record, TaskCosts
from clbench.seeding import seed_everything
from clbench.state import State
from clbench.store import CellFolder
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream, Task, Union

__all__ = ["Outcomes", "Progress", "Run", "Silent", "State", "record_of", "run"]


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


class Run:
    """One cell while it is being run. Use `run`."""

    def __init__(
        self,
        cell: Cell,
        stream: Stream,
        device: torch.device,
        progress: Progress,
        kept: FeatureCache | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self.cell, self.device, self.progress, self.peers = cell, device, progress, peers
        seed_everything(cell.seed, "build")
        self.meter = Meter(device)
        suite, recipe = cell.suite, cell.suite.recipe
        terms: dict[str, Any] = {"normalisation": suite.normalisation, "weights": suite.weights}
        terms["remote_code"] = suite.remote_code
        self.model = backbones.build(suite.backbone, stream.classes, cell.seed, **terms).to(device)
        shown = examined(stream, cell.protocol.scored_on)
        self.stream, self.vault = self.model.read(shown, recipe).sealed()
        self.untouched = checkpoint.Untouched(self.model)
        self.frozen = recall.made(cell, self.model, kept) if peers.size == 1 else None
        self.recall = recall.of(self.frozen, [task.test for task in self.stream])
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
            peers=peers,
        )
        self.strategy.head_masking = cell.method.head_masking
        self.strategy.learning_rate = cell.method.learning_rate or recipe.learning_rate
        self.exam = Exam(shown, self.stream, self.vault, self.strategy, suite.score, self.recall)
        self.state = State.new(len(stream))
        self.doing: shortage.Doing = "learning"

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
        self.doing = "learning"
        seed_everything(self.cell.seed, "task", index)
        self.strategy.train_epochs = self._epochs(index)
        self.laps = Laps(task.train)
        own = recall.of(self.frozen, [task.train])
        with contextlib.nullcontext() if own is None else own.answering():
            self.strategy.note = None if own is None else own.note
            self.strategy.learn(index, task)
        reading = self.peers.together(self.meter.stop())
        held = {**self.strategy.holdings(), **self.learned()} if self.peers.size > 1 else {}
        self.peers.agree(held, f"after task {index + 1}")
        last, self.doing = index + 1 == len(self.stream), "scoring"
        with stopwatch(self.device) as seconds:
            answered = self.exam.score(index, None if last else self.given.eval_samples)
        self.state.note(index + 1, answered)
        self.state.costs.append(
            task_costs(
                self.strategy,
                reading,
                train_samples=len(task.train),
                eval_seconds=seconds[0] * self.peers.size,
                recalled=(0.0 if own is None else own.settle(), answered.uncounted_seconds),
                eval_samples=answered.asked,
                stored=tensor_bytes(checkpoint.tensors_of(self.learned())),
            )
        )
        check_declared(self.cell.method, Kept.by(self.ours), self.state.costs)

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

    def _marks(self) -> list[str]:
        """What must be said where several processes shared each batch, or memory ran out."""
        size = self.peers.size
        shared = [f"{size} processes shared each batch, which rounds otherwise; seconds are of all"] if size > 1 else []
        own_terms = any(type(plugin).before_backward is not Plugin.before_backward for plugin in self.plugins)
        return [*shared, *shortage.marks(self.cell, self.state.shortages, own_terms)]

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
        Raises ValueError where the content is torn or altered, or cannot give the result of an uninterrupted run.
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

    def go_on(self, shortages: list[shortage.Facts]) -> None:
        """Take less at a time, as after the last of `shortages`; where there are none, of those before this process."""
        shortages += [] if shortages else self.state.shortages
        self.state.shortages = shortages
        for facts in shortages:
            self.strategy.recipe = self.strategy.recipe.model_copy(update=facts["then"])
        if self.frozen is not None:
            self.frozen.batch_size = self.strategy.recipe.eval_batch_size

    def short(self) -> shortage.Facts:
        """What is known of a shortage of memory just met; `then` {} where nothing less can be taken."""
        recipe, task = self.strategy.recipe, max(0, self.strategy.task_index)
        facts = shortage.noted(self.cell, self.stream, recipe, self.device, task, self.doing)
        return {**facts, "then": shortage.less(self.cell, recipe, self.doing)}

    def _made_by(self) -> dict[str, str]:
        """What a checkpoint must share with whoever goes on: others round differently and take other times."""
        device = device_name(self.device, self.peers.size)
        return {"clbench": __version__, "torch": versions()["torch"], "device": device}

    def facts(self) -> dict[str, Any]:
        """The fields of the record that only a finished run has."""
        notes: dict[str, Any] = {"uncounted_plugins": self.strangers} if self.strangers else {}
        if self.frozen is not None and self.frozen.ignored:
            notes["features_ignored"] = self.frozen.ignored
        if self.state.shortages:
            notes["out_of_memory"] = self.state.shortages
        for plugin in self.ours:
            notes.update(plugin.notes())
        weights = checkpoint.sha256(self.learned())
        audit = self.audit()
        if checkpoint.sha256(self.learned()) != weights:
            raise LeakError(f"{self.cell.method.name} changed what it has learned while it answered test examples.")
        floors = self.exam.marker.floors()
        return {
            "scores": tuple(tuple(row) for row in self.state.scores),
            "other_scores": {name: tuple(map(tuple, rows)) for name, rows in self.state.other_scores.items()},
            "floors": floors.pop(SCORE, ()),
            "other_floors": floors,
            "router_accuracy": self.state.router(),
            "costs": tuple(self.state.costs),
            "audit": audit,
            "weights_sha256": weights,
            "contended": self.state.contended,
            "marks": tuple(dict.fromkeys([*self._marks(), *(mark for own in self.ours for mark in own.marks())])),
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
    peers: Peers = ALONE,
) -> tuple[Record, Outcomes]:
    """Run one cell, going on after the last finished lesson where `folder` holds a checkpoint.

    `kept`: where features of the frozen backbone outlast the run; None: nowhere.
    `contended()` says whether another cell is, or was since the last call, on the device. A method's
    failure is a record of its failure; interruptions and failures of the store are raised. `peers` run it with this
    process, each with this call; only the one that leads is given a folder. Parted is raised where one of them ended.
    """
    threads, state, shortages = torch.get_num_threads(), State.new(len(stream)), list[shortage.Facts]()
    shown, _ = examined(stream, cell.protocol.scored_on).sealed()

    def new() -> Run:
        return Run(cell, stream, device, progress or Silent(), kept, peers)

    try:
        declined = cell.method.unsupported(shown)
        if declined is not None:
            return record_of(cell, shown, device, state, peers.size, status="unsupported", reason=declined), {}
        while (taught := _taught(new, folder, contended, shortages)) is None:
            shortage.freed(device)
        running, facts = taught
        return record_of(cell, shown, device, running.state, peers.size, status="done", **facts), running.outcomes()
    except (StoreError, Parted):
        raise
    except Exception as error:  # whatever a method may raise
        if not peers.failed_together():
            raise Parted(
                f"one of the {peers.size} processes that learn together failed: {reason(error, cell)}"
            ) from error
        if folder is not None:
            folder.log("error", traceback=traceback.format_exc())
        facts = failure(error, cell, shortages)
        return record_of(cell, shown, device, state, peers.size, status="failed", **facts), {}
    finally:
        torch.set_num_threads(threads)


def _taught(
    new: Callable[[], Run], folder: CellFolder | None, contended: Callable[[], bool], shortages: list[shortage.Facts]
) -> tuple[Run, dict[str, Any]] | None:
    """A run that has learned everything, and the facts of its record.

    None where memory ran out and the cell may go on with less: the shortage is then one more of `shortages`.
    """
    running, finished = _begin(new, folder)
    running.go_on(shortages)
    try:
        for index, task in running.lessons()[finished:]:
            running.state.contended |= contended()
            running.learn(index, task)
            running.state.contended |= contended()
            if folder is not None and running.resumable:
                _save_checkpoint(running, folder)
            running.progress.task(index, len(running.stream))
        return running, running.facts()
    except Exception as error:
        if not shortage.is_one(error):
            raise
        shortages.append(running.short())
        if len(shortages) > running.cell.retries or not shortages[-1]["then"] or running.peers.size > 1:
            raise
    if folder is not None:
        folder.log("out_of_memory", **shortages[-1])
    return None


def _begin(new: Callable[[], Run], folder: CellFolder | None) -> tuple[Run, int]:
    """A run and how many of its lessons are already finished; peers go on from what the one that leads has found."""
    running = new()
    content = _kept(folder) if folder is not None and folder.checkpoint_path.exists() else None
    finished = 0
    try:
        if content is not None:
            finished = running.unpack(content)
    except Exception as error:  # torn, foreign, or refused by the method: nothing of it is used
        assert folder is not None
        aside, content = set_aside(folder.checkpoint_path), None
        folder.log("checkpoint_set_aside", file=aside.name, reason=str(error))
        running = new()
    if content is not None and folder is not None:
        folder.log("resumed", reused=[task.name for _, task in running.lessons()[:finished]])
    content = running.peers.told(content)
    return running, finished if running.peers.leads or content is None else running.unpack(content)


def _kept(folder: CellFolder) -> bytes:
    try:
        return folder.checkpoint_path.read_bytes()
    except OSError as error:
        raise StoreError(explain(error, folder.checkpoint_path)) from error


def _save_checkpoint(running: Run, folder: CellFolder) -> None:
    folder.refuse_if_lost()
    write_atomically(folder.checkpoint_path, running.pack())
    costs = running.state.costs
    folder.log("task_done", finished=len(costs), seconds=costs[-1].train_seconds)
