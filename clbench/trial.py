"""Trial: the runs of one method on a tiny suite by which laws judge it, each made when it is first asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from clbench import checkpoint, plan, runner, tiny
from clbench.answers import Answers
from clbench.exam import Outcomes
from clbench.method import Method
from clbench.record import Record
from clbench.store import CellFolder
from clbench.stream import Stream, Union
from clbench.suite import Contender, Suite

DEVICE = torch.device("cpu")


class Broken(Exception):
    """The method breaks the law that is being tried."""


class Declined(Exception):
    """The law does not apply to the method, or cannot be tried on it."""


@dataclass(frozen=True)
class Field:
    """A suite on which the laws are tried, on so many of its tasks."""

    name: str
    """Stands before the names of its laws."""
    model: str
    suite: Suite
    make: Callable[[int, int], Stream]
    """order seed, tasks -> stream."""
    tasks: int

    def stream(self, tasks: int | None = None) -> Stream:
        """So many tasks; all that are tried where not given."""
        return self.make(0, tasks or self.tasks)


_SHORTER = tiny.tiny_text.recipe.model_copy(update={"epochs": 6, "learning_rate": 3e-2})
"""A step of a language model takes three times that of an image's: fewer of them are made, and longer ones."""
FIELDS = (
    Field("", "the tiny vision transformer", tiny.tiny, tiny.stream, 3),
    Field("text: ", "the tiny language model", replace(tiny.tiny_text, recipe=_SHORTER), tiny.text_stream, 2),
)


class Taught:
    """A run of all lessons in this process, with what a record does not hold; `whole`: with what one holds, too."""

    running: runner.Run
    frozen: dict[str, tuple[nn.Parameter, Tensor]]
    """The backbone's frozen weights: themselves, and a copy from before."""
    facts: dict[str, Any]
    """Those of a record; only of a whole one, because the audit takes as long as a lesson."""
    outcomes: Outcomes
    result: tuple[Any, Any]
    """What equal runs share: scores, and the hash of what was learned."""

    def __init__(self, cell: plan.Cell, stream: Stream, whole: bool = False) -> None:
        self.error: Exception | None = None
        self.kept_too_much = False
        """Whether the error came after a lesson had been learned and scored, when what is kept is counted."""
        try:
            self._teach(cell, stream)
            if whole:
                self.facts = self.running.facts()
        except Exception as error:  # whatever a method may raise
            self.error = error

    def _teach(self, cell: plan.Cell, stream: Stream) -> None:
        self.running = runner.Run(cell, stream, DEVICE, runner.Silent())
        untouched, body = self.running.untouched, self.running.model.body
        self.frozen = {
            name: (weight, weight.detach().clone())
            for name, weight in body.named_parameters()
            if weight in untouched and not weight.requires_grad
        }
        for number, (index, task) in enumerate(self.running.lessons()):
            try:
                self.running.learn(index, task)
            finally:
                self.kept_too_much = len(self.running.state.costs) > number
        self.kept_too_much = False
        self.outcomes = self.running.outcomes()
        scores = tuple(tuple(row) for row in self.running.state.scores)
        self.result = scores, checkpoint.sha256(self.running.learned())


class Trial:
    """One method on trial; the runs are made when a law first asks for them, and shared by all laws."""

    def __init__(self, method_type: type[Method], fingerprint: str, field: Field) -> None:
        self.method_type, self.fingerprint, self.field = method_type, fingerprint, field

    @cached_property
    def method(self) -> Method:
        """The method with the suite's settings."""
        try:
            return self.method_type(**self.field.suite.settings.get(self.method_type.name, {}))
        except ValueError as error:
            raise Declined("its default parameters do not build") from error

    def cell(self, stream: Stream) -> plan.Cell:
        """The method's cell on `stream`; declined where the method declines the stream."""
        suite, reason = self.field.suite, self.method.unsupported(stream)
        if reason is not None:
            raise Declined(reason)
        row = plan.Row(self.method, "", self.fingerprint, suite.recipe_of(Contender(self.method.name)))
        return plan.cells(suite, stream, [row], [0], 0, DEVICE.type)[0]

    def taught(self, stream: Stream) -> Taught:
        """The method after all lessons of `stream`."""
        return Taught(self.cell(stream), stream)

    @cached_property
    def attempt(self) -> Taught:
        """The first run, whether it came to its end or not."""
        stream = self.field.stream()
        return Taught(self.cell(stream), stream, whole=True)

    @property
    def whole(self) -> Taught:
        """The first run, which must have come to its end."""
        if self.attempt.error is not None:
            raise Declined("no run came to its end")
        return self.attempt

    @cached_property
    def again(self) -> Taught:
        """The same run a second time."""
        return self.taught(self.field.stream())

    def differ(self, reason: str) -> NoReturn:
        """Two runs differ: raise Broken for `reason`, or Declined where two equal ones differ too."""
        if self.again.error is not None or self.whole.result != self.again.result:
            raise Declined("two equal runs differ, so other differences mean nothing")
        raise Broken(reason)

    @cached_property
    def resumed(self) -> tuple[Record, Outcomes]:
        """A run that is killed after every lesson but the last, and after that one where there is no other."""
        stream = self.field.stream()
        cell = self.cell(stream)
        ends = [index for index, _ in self.whole.running.lessons()]
        with tempfile.TemporaryDirectory() as folder:
            place = CellFolder(Path(folder))
            for end in ends[:-1] or ends:
                try:
                    runner.run(cell, stream, device=DEVICE, folder=place, progress=_Killer(end))
                except KeyboardInterrupt:
                    continue
            return runner.run(cell, stream, device=DEVICE, folder=place)


class _Killer(runner.Silent):
    def __init__(self, end: int) -> None:
        self.end = end

    def task(self, task: int, tasks: int) -> None:
        """Interrupt as Ctrl-C does."""
        if task == self.end:
            raise KeyboardInterrupt


def answers(running: runner.Run) -> Answers:
    """What a run says to all test examples."""
    with running.vault.open():
        tests = Union([task.test for task in running.stream])
        task_of = torch.cat([torch.full((len(task.test),), j) for j, task in enumerate(running.stream)])
        return running.strategy.answer(tests, task_of)
