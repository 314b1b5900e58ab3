"""Conformance: the laws that every method must obey, tried on the tiny suite in seconds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clbench import plan, runner, tiny
from clbench.errors import ClbenchError, LeakError
from clbench.exam import Outcomes
from clbench.method import Method
from clbench.record import Record
from clbench.store import CellFolder
from clbench.strategy import Answers
from clbench.stream import ImageSet, Stream, Union

_TASKS = 3
_DEVICE = torch.device("cpu")
_LUCK = 2.33
"""Standard deviations above chance that guessing exceeds once in a hundred times."""


@dataclass(frozen=True)
class Verdict:
    """What one law says of a method."""

    law: str
    line: str
    """The law in words."""
    passed: bool | None
    """None: the law does not apply, or cannot be tried."""
    reason: str
    """Why not; empty where it passed."""


class Broken(Exception):
    """The method breaks the law that is being tried."""


class Declined(Exception):
    """The law does not apply to the method, or cannot be tried on it."""


@dataclass(frozen=True)
class Law:
    """`judge` returns where the law is obeyed, and otherwise raises Broken or Declined."""

    name: str
    line: str
    judge: Callable[[Trial], None]


class Taught:
    """A run of all lessons in this process, with what a record does not hold."""

    running: runner.Run
    frozen: dict[str, tuple[nn.Parameter, Tensor]]
    """The backbone's frozen weights: themselves, and a copy from before."""
    facts: dict[str, Any]
    outcomes: Outcomes

    def __init__(self, cell: plan.Cell, stream: Stream) -> None:
        self.error: Exception | None = None
        self.kept_too_much = False
        """Whether the error came after a lesson had been learned and scored, when what is kept is counted."""
        try:
            self._teach(cell, stream)
        except Exception as error:  # whatever a method may raise
            self.error = error

    def _teach(self, cell: plan.Cell, stream: Stream) -> None:
        self.running = runner.Run(cell, stream, _DEVICE, runner.Silent())
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
        self.facts, self.outcomes = self.running.facts(), self.running.outcomes()

    def answers(self) -> Answers:
        """To all test examples."""
        return _answers(self.running)


class Trial:
    """One method on trial; the runs are made when a law first asks for them, and shared by all laws."""

    def __init__(self, method_type: type[Method], fingerprint: str) -> None:
        self.method_type, self.fingerprint = method_type, fingerprint

    @cached_property
    def method(self) -> Method:
        """The method with the tiny suite's settings."""
        try:
            return self.method_type(**tiny.tiny.settings.get(self.method_type.name, {}))
        except ValueError as error:
            raise Declined("its default parameters do not build") from error

    def cell(self, stream: Stream) -> plan.Cell:
        """The method's cell on `stream`; declined where the method declines the stream."""
        reason = self.method.unsupported(stream)
        if reason is not None:
            raise Declined(reason)
        row = plan.Row(self.method, "", self.fingerprint)
        return plan.cells(tiny.tiny, stream, [row], [0], 0, _DEVICE.type)[0]

    def taught(self, stream: Stream) -> Taught:
        """The method after all lessons of `stream`."""
        return Taught(self.cell(stream), stream)

    @cached_property
    def attempt(self) -> Taught:
        """The first run, whether it came to its end or not."""
        return self.taught(tiny.stream(tasks=_TASKS))

    @property
    def whole(self) -> Taught:
        """The first run, which must have come to its end."""
        if self.attempt.error is not None:
            raise Declined("no run came to its end")
        return self.attempt

    @cached_property
    def again(self) -> Taught:
        """The same run a second time."""
        return self.taught(tiny.stream(tasks=_TASKS))

    @property
    def repeatable(self) -> Taught:
        """The first run, where a second one gives the same, so that differences mean something."""
        if self.again.error is not None or _result(self.whole) != _result(self.again):
            raise Declined("two equal runs differ, so other differences mean nothing")
        return self.whole

    @cached_property
    def resumed(self) -> tuple[Record, Outcomes]:
        """A run that is killed after every lesson but the last, and after that one where there is no other."""
        stream = tiny.stream(tasks=_TASKS)
        cell = self.cell(stream)
        ends = [index for index, _ in self.whole.running.lessons()]
        with tempfile.TemporaryDirectory() as folder:
            place = CellFolder(Path(folder))
            for end in ends[:-1] or ends:
                try:
                    runner.run(cell, stream, device=_DEVICE, folder=place, progress=_Killer(end))
                except KeyboardInterrupt:
                    continue
            return runner.run(cell, stream, device=_DEVICE, folder=place)


class _Killer(runner.Silent):
    def __init__(self, end: int) -> None:
        self.end = end

    def task(self, task: int, tasks: int) -> None:
        """Interrupt as Ctrl-C does."""
        if task == self.end:
            raise KeyboardInterrupt


def _answers(running: runner.Run) -> Answers:
    with running.vault.open():
        tests = Union([task.test for task in running.stream])
        task_of = torch.cat([torch.full((len(task.test),), j) for j, task in enumerate(running.stream)])
        return running.strategy.answer(tests, task_of)


def _result(run: Taught) -> tuple[Any, Any]:
    return run.facts["scores"], run.facts["weights_sha256"]


def _defaults(trial: Trial) -> None:
    try:
        method = trial.method_type()
        restored = trial.method_type.model_validate_json(method.model_dump_json())
    except Exception as error:  # whatever a method's validators may raise
        raise Broken(f"the default parameters do not build: {_words(error)}") from error
    if restored != method:
        raise Broken("the parameters are others after a way through JSON")


def _runs(trial: Trial) -> None:
    error = trial.attempt.error
    if isinstance(error, LeakError):
        raise Declined("stopped for a leak")
    if error is not None:
        raise Broken(_words(error))


def _deterministic(trial: Trial) -> None:
    first = _result(trial.whole)
    if trial.again.error is not None:
        raise Broken(f"a second equal run fails: {_words(trial.again.error)}")
    second = _result(trial.again)
    if first[0] != second[0]:
        raise Broken("the scores of two equal runs differ")
    if first[1] != second[1]:
        raise Broken("what two equal runs learned differs")


def _learns(trial: Trial) -> None:
    run = trial.whole
    row, seen = next(
        (row, [j for j, score in enumerate(row) if score is not None])
        for row in run.facts["scores"]
        if any(score is not None for score in row)
    )
    tasks = [run.running.stream.tasks[j] for j in seen]
    samples = sum(len(task.test) for task in tasks)
    right = sum(row[j] * len(task.test) for j, task in zip(seen, tasks, strict=True)) / samples
    chance = 1 / sum(len(task.classes) for task in tasks)
    needed = chance + _LUCK * math.sqrt(chance * (1 - chance) / samples)
    if right < needed:
        raise Broken(f"{right:.0%} are right after the first lesson; guessing reaches {needed:.0%} once in 100 times")


def _frozen(trial: Trial) -> None:
    run = trial.whole
    still = {name: pair for name, pair in run.frozen.items() if not pair[0].requires_grad}
    if not still:
        raise Declined("it trains the whole backbone")
    changed = [name for name, (weight, before) in still.items() if not torch.equal(weight, before)]
    if changed:
        raise Broken(f"{changed[0]} has changed though it is frozen")


def _independent_of_length(trial: Trial) -> None:
    if trial.method_type.schedule == "joint":
        raise Declined("it learns all tasks at once")
    long, short = trial.repeatable, trial.taught(tiny.stream(tasks=1))
    if short.error is not None:
        raise Broken(f"a stream of one task fails: {_words(short.error)}")
    expected = short.outcomes["round_1"]
    if not (long.outcomes["round_1"][: len(expected)] == expected).all():
        raise Broken(f"the answers after the first task differ between streams of 1 and {_TASKS} tasks")


def _saved(trial: Trial) -> None:
    run = trial.whole
    _needs_state(run)
    stream = tiny.stream(tasks=_TASKS)
    fresh = runner.Run(run.running.cell, stream, _DEVICE, runner.Silent())
    try:
        fresh.unpack(run.running.pack())
    except Exception as error:  # whatever a method's load_state may raise
        raise Broken(f"its state cannot be taken back: {_words(error)}") from error
    before, after = run.answers(), _answers(fresh)
    if not (torch.equal(before.predictions, after.predictions) and torch.equal(before.margins, after.margins)):
        raise Broken("a model that was saved and loaded answers otherwise; state() or a buffer is missing something")


def _resumes(trial: Trial) -> None:
    run = trial.repeatable
    _needs_state(run)
    record, outcomes = trial.resumed
    if record.status != "done":
        raise Broken(f"the resumed run fails: {record.reason}")
    if record.scores != run.facts["scores"]:
        raise Broken("the scores of a resumed run differ; state() is missing something")
    if any(not (outcomes[name] == values).all() for name, values in run.outcomes.items()):
        raise Broken("the answers of a resumed run differ; state() is missing something")
    if record.weights_sha256 != run.facts["weights_sha256"]:
        raise Broken("what a resumed run has learned differs; state() is missing something")


def _needs_state(run: Taught) -> None:
    if not run.running.resumable:
        raise Declined("a plugin of Avalanche's own cannot tell its state; an interrupted cell begins anew")


def _batches(trial: Trial) -> None:
    audit = trial.whole.facts["audit"]
    if audit.batch_flips:
        raise Broken(f"{audit.batch_flips} of {audit.samples} answers change when a sample is scored alone")


def _labels(trial: Trial) -> None:
    if trial.method.resources().task_id_at_test:
        raise Declined("it declares that it is told the task")
    audit = trial.whole.facts["audit"]
    if audit.label_flips:
        raise Broken(f"{audit.label_flips} of {audit.samples} answers change when the task labels are shuffled")


def _within_resources(trial: Trial) -> None:
    run = trial.attempt
    if isinstance(run.error, LeakError) and run.kept_too_much:
        raise Broken(str(run.error))
    _ = trial.whole


def _test_data_untouched(trial: Trial) -> None:
    run = trial.attempt
    if isinstance(run.error, LeakError) and not run.kept_too_much:
        raise Broken(str(run.error))
    honest, other = trial.repeatable, trial.taught(_with_other_tests(tiny.stream(tasks=_TASKS)))
    if other.error is not None or other.facts["weights_sha256"] != honest.facts["weights_sha256"]:
        raise Broken("what it learns depends on the test examples")


def _with_other_tests(stream: Stream) -> Stream:
    def other(task_test: Any) -> ImageSet:
        return ImageSet(255 - task_test.images, task_test.targets.flip(0))

    return Stream(tuple(replace(task, test=other(task.test)) for task in stream))


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else "no message"
    return line if isinstance(error, ClbenchError) else f"{type(error).__name__}: {line}"


LAWS: tuple[Law, ...] = (
    Law("defaults", "default parameters build and survive JSON", _defaults),
    Law("runs", "runs on the tiny vision transformer", _runs),
    Law("deterministic", "same seed, same scores and same weights", _deterministic),
    Law("learns", "learns the first task better than guessing", _learns),
    Law("frozen", "frozen weights stay the same to the bit", _frozen),
    Law("first task", "the first task's answers do not depend on how many tasks follow", _independent_of_length),
    Law("save and load", "a saved and loaded model gives the same answers", _saved),
    Law("resume", "a killed and resumed run ends with the same scores, answers and weights", _resumes),
    Law("batches", "answers do not depend on the batch", _batches),
    Law("task labels", "answers do not depend on task labels, unless declared", _labels),
    Law("resources", "keeps no more than it declares", _within_resources),
    Law("test data", "test examples are not touched while learning", _test_data_untouched),
)


def check(method_type: type[Method], fingerprint: str = "") -> Iterator[Verdict]:
    """Try every law on a method, one verdict at a time; the runs take a few seconds in all."""
    trial = Trial(method_type, fingerprint)
    for law in LAWS:
        try:
            law.judge(trial)
        except Broken as broken:
            yield Verdict(law.name, law.line, False, str(broken))
        except Declined as declined:
            yield Verdict(law.name, law.line, None, str(declined))
        else:
            yield Verdict(law.name, law.line, True, "")
