"""Runner: the loop of one cell, from the first task to its record."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clbench import __version__, backbones, checkpoint
from clbench.errors import ClbenchError, LeakError, StoreError
from clbench.files import write_atomically
from clbench.meter import Meter, Reading, stopwatch, tensor_bytes
from clbench.method import Workbench
from clbench.plan import Cell
from clbench.record import Audit, Origin, Record, TaskCosts
from clbench.scoring.accuracy import accuracy
from clbench.seeding import generator, seed_everything
from clbench.store import CellFolder
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream, Task, Union, Vault

_AUDIT_SAMPLES = 32
_TIE = 1e-4
"""Two logits closer than this may swap by rounding; such a flip is no leak."""

Outcomes = dict[str, NDArray[np.int32]]


class Progress(Protocol):
    """Who is told how far a cell has come."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """An epoch has ended."""
        ...

    def task(self, task: int, tasks: int) -> None:
        """A task has been learned and scored."""
        ...


class Silent:
    """Tells nobody."""

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Nothing."""

    def task(self, task: int, tasks: int) -> None:
        """Nothing."""


@dataclass
class _State:
    """What has been measured so far; goes into the checkpoint."""

    scores: list[list[float | None]]
    costs: list[TaskCosts] = field(default_factory=list)
    predictions: dict[str, Tensor] = field(default_factory=dict)
    contended: bool = False


class Run:
    """One cell while it is being run. Use `run`."""

    def __init__(self, cell: Cell, stream: Stream, device: torch.device, progress: Progress) -> None:
        self.cell, self.device, self.progress = cell, device, progress
        self.stream, self.vault = _prepared(stream, cell.protocol.scored_on)
        seed_everything(cell.seed, "build")
        suite = cell.suite
        self.meter = Meter(device)
        model = backbones.build(suite.backbone, stream.classes, cell.seed)
        self.model = model.to(device)
        self.untouched = checkpoint.frozen_names(self.model)
        self.model.freeze_body()
        recipe = suite.recipe.model_copy(update={"epochs": cell.protocol.epochs or 1})
        bench = Workbench(self.model, recipe, device, len(stream), cell.seed)
        self.plugins = list(cell.method.plugins(bench))
        self.strategy = Strategy(
            model=self.model,
            recipe=recipe,
            plugins=self.plugins,
            meter=self.meter,
            device=device,
            seed=cell.seed,
            on_epoch=lambda epoch, epochs, loss: progress.epoch(
                self.strategy.task_index, len(stream), epoch, epochs, loss
            ),
        )
        self.strategy.head_masking = cell.method.head_masking
        self.strategy.learning_rate = cell.method.learning_rate or recipe.learning_rate
        self.strategy.train_epochs = cell.protocol.epochs
        tasks = len(stream)
        self.state = _State(scores=[[None] * tasks for _ in range(tasks + 1)])

    @property
    def ours(self) -> list[Plugin]:
        """The plugins that can tell their state."""
        return [plugin for plugin in self.plugins if isinstance(plugin, Plugin)]

    @property
    def resumable(self) -> bool:
        """Whether every plugin can tell its state; Avalanche's own cannot."""
        return len(self.ours) == len(self.plugins)

    def lessons(self) -> list[tuple[int, Task]]:
        """(index of the last task covered, what is learned at once): each task, or their union."""
        if self.cell.method.schedule != "joint":
            return list(enumerate(self.stream))
        tasks = self.stream.tasks
        everything = replace(
            tasks[-1],
            name="all tasks",
            train=Union([task.train for task in tasks]),
            classes=tuple(c for task in tasks for c in task.classes),
        )
        return [(len(tasks) - 1, everything)]

    def learn(self, index: int, task: Task) -> None:
        """Teach one lesson and score all tasks seen."""
        seed_everything(self.cell.seed, "task", index)
        self.strategy.learn(index, task)
        reading = self.meter.stop()
        with stopwatch(self.device) as seconds:
            scored = self._score(index)
        self.state.costs.append(self._costs(reading, len(task.train), seconds[0], scored))
        self._check_resources()

    def _score(self, index: int) -> int:
        tasks = self.stream.tasks[: index + 1]
        with self.vault.open():
            union = Union([task.test for task in tasks])
            labels = union.targets.numpy().astype(np.int32)
            task_of = _task_of(tasks)
            order = torch.randperm(len(union), generator=generator(0, "scoring", index))
            shuffled = _Reordered(union, order)
            answers, _ = self.strategy.answer(shuffled, task_of[order])
        predictions = torch.empty_like(answers)
        predictions[order] = answers
        self.state.predictions[f"round_{index + 1}"] = predictions.to(torch.int32)
        for j in range(index + 1):
            mine = (task_of == j).numpy()
            self.state.scores[index + 1][j] = accuracy(predictions.numpy()[mine], labels[mine])
        return len(labels)

    def _costs(self, reading: Reading, train_samples: int, eval_seconds: float, eval_samples: int) -> TaskCosts:
        epochs, batch = self.strategy.train_epochs, self.strategy.recipe.batch_size
        steps = epochs * -(-train_samples // batch)
        first = min(batch, train_samples) if steps else 0
        return TaskCosts(
            train_seconds=reading.seconds,
            warmup_seconds=reading.first_step_seconds,
            train_samples=(epochs * train_samples - first) if steps else train_samples,
            steps=max(0, steps - 1),
            epochs=epochs,
            eval_seconds=eval_seconds,
            eval_samples=eval_samples,
            peak_memory_mib=reading.peak_mib,
            trainable_parameters=sum(parameter.numel() for parameter in self.model.trainable()),
            stored_bytes=tensor_bytes(self._stored()),
            flops_per_step=reading.flops,
        )

    def _stored(self) -> dict[str, Tensor]:
        kept = {f"model.{name}": t for name, t in checkpoint.learned(self.model, self.untouched).items()}
        for number, plugin in enumerate(self.ours):
            for name, tensor in checkpoint.tensors_of(plugin.state()).items():
                kept[f"plugin.{number}.{name}"] = tensor
        return kept

    def _check_resources(self) -> None:
        declared = self.cell.method.resources()
        kept = sum(plugin.kept_samples() for plugin in self.ours)
        if kept > declared.buffer_samples:
            raise LeakError(
                f"{self.cell.method.name} keeps {kept} samples and declared {declared.buffer_samples}; "
                "raise the declaration in its resources() or keep fewer."
            )
        sizes = [cost.stored_bytes for cost in self.state.costs[-2:]]
        limit = declared.stored_mib_per_task * 2**20
        if len(sizes) == 2 and sizes[1] - sizes[0] > limit:
            raise LeakError(
                f"{self.cell.method.name} stored {(sizes[1] - sizes[0]) / 2**20:.2f} MiB more after a task and declared "
                f"{declared.stored_mib_per_task:.2f}; raise stored_mib_per_task in its resources()."
            )

    def audit(self) -> Audit:
        """Ask some samples again, alone and under shuffled task labels."""
        labels = _task_of(self.stream.tasks)
        picks = torch.randperm(len(labels), generator=generator(0, "audit"))[:_AUDIT_SAMPLES]
        labels = labels[picks]
        with self.vault.open():
            sample = _Reordered(Union([task.test for task in self.stream]), picks)
            together, margin = self.strategy.answer(sample, labels)
            alone, alone_margin = self.strategy.answer(sample, labels, batch_size=1)
            wrong = labels[torch.randperm(len(labels), generator=generator(0, "audit labels"))]
            other, other_margin = self.strategy.answer(sample, wrong)
        alone_flips = (together != alone) & (torch.minimum(margin, alone_margin) > _TIE)
        other_flips = (together != other) & (torch.minimum(margin, other_margin) > _TIE)
        return Audit(samples=len(picks), batch_flips=int(alone_flips.sum()), label_flips=int(other_flips.sum()))

    def pack(self) -> bytes:
        """Everything needed to go on after the last finished task."""
        return checkpoint.pack(
            {
                "key": self.cell.key,
                "finished": len(self.state.costs),
                "seen": self.strategy.seen_classes,
                "model": checkpoint.learned(self.model, self.untouched),
                "plugins": [plugin.state() for plugin in self.ours],
                "scores": self.state.scores,
                "costs": [cost.model_dump() for cost in self.state.costs],
                "predictions": self.state.predictions,
                "contended": self.state.contended,
                "threads": torch.get_num_threads(),
            }
        )

    def unpack(self, content: bytes) -> int:
        """Take back what `pack` gave; returns how many lessons are finished."""
        state = checkpoint.unpack(content)
        if state["key"] != self.cell.key:
            raise ValueError("the checkpoint is of another cell")
        torch.set_num_threads(state["threads"])  # rounding depends on it
        for plugin, theirs in zip(self.ours, state["plugins"], strict=True):
            plugin.load_state(theirs)
        checkpoint.restore(self.model, state["model"])
        finished = int(state["finished"])
        self.strategy.see(state["seen"].tolist())
        self.strategy.clock.train_exp_counter = finished
        self.state = _State(
            scores=state["scores"],
            costs=[TaskCosts(**cost) for cost in state["costs"]],
            predictions=state["predictions"],
            contended=state["contended"],
        )
        return finished

    def outcomes(self) -> Outcomes:
        """Labels, tasks and the predictions of every round, one entry a test example."""
        with self.vault.open():
            union = Union([task.test for task in self.stream])
            labels = union.targets.numpy().astype(np.int32)
        rounds: Outcomes = {"labels": labels, "tasks": _task_of(self.stream.tasks).numpy().astype(np.int32)}
        for name, predictions in self.state.predictions.items():
            full = np.full(len(labels), -1, dtype=np.int32)
            full[: len(predictions)] = predictions.numpy()
            rounds[name] = full
        return rounds

    def facts(self) -> dict[str, Any]:
        """The fields of the record that only a finished run has."""
        notes: dict[str, Any] = {}
        for plugin in self.ours:
            notes.update(plugin.notes())
        return {
            "scores": tuple(tuple(row) for row in self.state.scores),
            "costs": tuple(self.state.costs),
            "audit": self.audit(),
            "weights_sha256": checkpoint.sha256(self._stored()),
            "contended": self.state.contended,
            "notes": notes,
        }


def _prepared(stream: Stream, scored_on: str) -> tuple[Stream, Vault]:
    """The stream with its test examples sealed; for tuning the validation examples take their place."""
    if scored_on == "validation":
        stream = Stream(tuple(replace(task, test=task.validation) for task in stream), stream.class_names)
    return stream.sealed()


def _task_of(tasks: Sequence[Task]) -> Tensor:
    return torch.cat([torch.full((len(task.test),), j) for j, task in enumerate(tasks)])


class _Reordered(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The examples of a set at the given places, in that order."""

    def __init__(self, examples: Union, places: Tensor) -> None:
        self._examples, self._places = examples, places
        self.targets = examples.targets[places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._examples[int(self._places[index])]

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._examples.batch(self._places[indices], device)

    def sha256(self) -> str:
        return self._examples.sha256()


def run(
    cell: Cell,
    stream: Stream,
    *,
    device: torch.device,
    folder: CellFolder | None = None,
    progress: Progress | None = None,
    contended: Any = lambda: False,
) -> tuple[Record, Outcomes]:
    """Run one cell, going on after the last finished task where `folder` holds a checkpoint.

    `contended()` says whether another cell is on the device now. A method's failure is a record of its
    failure; interruptions and failures of the store are raised.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    base = _base(cell, stream, device, started)
    reason = cell.method.unsupported(stream)
    if reason is not None:
        return Record(**base, status="unsupported", reason=reason), {}
    watcher = progress or Silent()
    try:
        running, done = _begin(cell, stream, device, watcher, folder)
        for index, task in running.lessons()[done:]:
            running.state.contended |= bool(contended())
            running.learn(index, task)
            running.state.contended |= bool(contended())
            if folder is not None and running.resumable:
                _save_checkpoint(running, folder)
            watcher.task(index, len(stream))
        return Record(**base, status="done", **running.facts()), running.outcomes()
    except (ClbenchError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        if isinstance(error, StoreError):
            raise
        return Record(**base, status="failed", reason=_reason(error)), {}


def _reason(error: Exception) -> str:
    if isinstance(error, ClbenchError):
        return str(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}{where}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _begin(
    cell: Cell, stream: Stream, device: torch.device, progress: Progress, folder: CellFolder | None
) -> tuple[Run, int]:
    """A run and how many of its lessons are already finished."""
    running = Run(cell, stream, device, progress)
    if folder is None or not folder.checkpoint_path.exists():
        return running, 0
    try:
        finished = running.unpack(folder.checkpoint_path.read_bytes())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        aside = folder.checkpoint_path.with_name(f"aside-{datetime.now(UTC):%Y%m%dT%H%M%S}.safetensors")
        folder.checkpoint_path.replace(aside)
        folder.log("checkpoint_set_aside", file=aside.name, reason=str(error))
        return Run(cell, stream, device, progress), 0
    folder.log("resumed", reused=[task.name for _, task in running.lessons()[:finished]])
    return running, finished


def _save_checkpoint(running: Run, folder: CellFolder) -> None:
    write_atomically(folder.checkpoint_path, running.pack())
    folder.log("task_done", finished=len(running.state.costs), seconds=running.state.costs[-1].train_seconds)


def _base(cell: Cell, stream: Stream, device: torch.device, started: str) -> dict[str, Any]:
    return {
        "key": cell.key,
        "suite": cell.suite.name,
        "method": cell.method.name,
        "variant": cell.variant,
        "params": cell.method.model_dump(mode="json"),
        "recipe": cell.suite.recipe.model_dump(mode="json"),
        "seed": cell.seed,
        "order_seed": cell.order_seed,
        "fingerprint": cell.fingerprint,
        "protocol": cell.protocol.model_dump(mode="json"),
        "suite_protocol": cell.suite_protocol.model_dump(mode="json"),
        "protocol_hash": cell.protocol.hash,
        "suite_hash": cell.suite_protocol.suite_hash,
        "tasks": tuple(task.name for task in stream),
        "test_sizes": tuple(len(task.test) for task in stream),
        "score_name": cell.suite.score,
        "origin": Origin(
            clbench=__version__,
            commit=_git("rev-parse", "HEAD"),
            dirty=None if (status := _git("status", "--porcelain")) is None else bool(status),
            versions=_versions(),
            device=device_name(device),
            device_kind="cuda" if device.type == "cuda" else "cpu",
            precision=cell.suite.recipe.precision,
            threads=torch.get_num_threads(),
            started=started,
            command=" ".join(["clbench", *sys.argv[1:]]),
        ),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "avalanche-lib", "timm", "transformers", "peft", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*words: str) -> str | None:
    """What git says of the checkout this code lies in; None outside one."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: torch.device) -> str:
    """The device's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
