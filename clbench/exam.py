"""Exam: what is asked after each lesson, and whether answers depend on what they must not depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clbench.record import Audit
from clbench.scoring.accuracy import accuracy
from clbench.seeding import generator
from clbench.strategy import Answers, Strategy
from clbench.stream import Examples, Stream, Task, Union, Vault

AUDIT_SAMPLES = 32
TIE = 1e-4
"""Two logits closer than this may swap by rounding; such a flip is no leak."""

Outcomes = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Round:
    """What one scoring pass over the tasks seen gave; examples in the tasks' order."""

    predictions: Tensor
    """int32 `[examples]`."""
    scores: list[float]
    """One a task."""
    inferred: Tensor | None
    """The task inferred for each example, int32 `[examples]`; None where none was."""
    router_accuracy: float | None
    """The share of all the examples whose task was inferred rightly; None where none was."""


class Exam:
    """The test examples of a stream, which only come out while an answer is asked for."""

    def __init__(self, stream: Stream, vault: Vault, strategy: Strategy) -> None:
        self.stream, self.vault, self.strategy = stream, vault, strategy

    def score(self, index: int) -> Round:
        """One pass over the tasks up to `index`.

        The examples come shuffled over the tasks, so that no batch tells the task.
        """
        tasks = self.stream.tasks[: index + 1]
        with self.vault.open():
            union, task_of = Union([task.test for task in tasks]), _task_of(tasks)
            labels = union.targets.numpy()
            order = torch.randperm(len(union), generator=generator(0, "scoring", index))
            answers = self._ask(_Picked(union, order), task_of[order])
        back = order.argsort()
        predictions = answers.predictions[back]
        mine = [(task_of == j).numpy() for j in range(len(tasks))]
        scores = [accuracy(predictions.numpy()[m], labels[m]) for m in mine]
        if answers.tasks is None:
            return Round(predictions.to(torch.int32), scores, None, None)
        inferred = answers.tasks[back]
        return Round(
            predictions.to(torch.int32),
            scores,
            inferred.to(torch.int32),
            float((inferred == task_of).double().mean()),
        )

    def audit(self) -> Audit:
        """Ask some samples of all tasks again, alone and under shuffled task labels."""
        labels = _task_of(self.stream.tasks)
        picks = torch.randperm(len(labels), generator=generator(0, "audit"))[:AUDIT_SAMPLES]
        labels = labels[picks]
        shuffled = labels[torch.randperm(len(labels), generator=generator(0, "audit labels"))]
        with self.vault.open():
            sample = _Picked(Union([task.test for task in self.stream]), picks)
            together = self._ask(sample, labels)
            alone = self._ask(sample, labels, batch_size=1)
            mislabelled = self._ask(sample, shuffled)
        return Audit(samples=len(picks), batch_flips=_flips(together, alone), label_flips=_flips(together, mislabelled))

    def _ask(self, examples: Examples, task_of: Tensor, batch_size: int | None = None) -> Answers:
        """The answers; afterwards no test example is left within a plugin's reach."""
        answers = self.strategy.answer(examples, task_of, batch_size)
        self.strategy.mbatch = []
        return answers

    def outcomes(self, rounds: Mapping[str, Tensor]) -> Outcomes:
        """Labels, tasks and what every round gave, one entry a test example; -1 where not yet asked.

        `rounds`: `round_i` and, where tasks were inferred, `inferred_i` -> `[examples]` of the tasks seen by then.
        """
        with self.vault.open():
            labels = torch.cat([task.test.targets for task in self.stream]).numpy().astype(np.int32)
        found: Outcomes = {"labels": labels, "tasks": _task_of(self.stream.tasks).numpy().astype(np.int32)}
        for name, predictions in rounds.items():
            found[name] = np.full(len(labels), -1, dtype=np.int32)
            found[name][: len(predictions)] = predictions.numpy()
        return found


def _flips(first: Answers, second: Answers) -> int:
    """How many predictions differ beyond rounding."""
    clear = torch.minimum(first.margins, second.margins) > TIE
    return int(((first.predictions != second.predictions) & clear).sum())


def _task_of(tasks: Sequence[Task]) -> Tensor:
    """The index of each test example's task, `[examples]`."""
    return torch.cat([torch.full((len(task.test),), j) for j, task in enumerate(tasks)])


class _Picked(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The examples of a set at the given places, in that order."""

    def __init__(self, examples: Examples, places: Tensor) -> None:
        self._examples, self._places = examples, places

    @property
    def targets(self) -> Tensor:
        return self._examples.targets[self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._examples[int(self._places[index])]

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._examples.batch(self._places[indices], device)

    def sha256(self) -> str:
        return self._examples.sha256()
