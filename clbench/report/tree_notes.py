"""Tree notes: what a record says of the tree of its past tasks, checked and with the tasks' names.

A method that arranges past tasks in a tree may write `notes["tree"]` into its record:

    layers   names of the D layers; a node at depth d splits by layer d
    growth   [{task, arms, root}, ...]: the tree that stood before the task with this index was learned; null for the
             tree after the last task. `arms[k]` are the tasks that row k stands for, several after a merge. A node is
             {tasks, depth, smoothness, threshold, children}: `tasks` are rows, `smoothness` [D], two or no children
    pulls    [{task, shares}, ...]: `shares[epoch][layer][arm]`, the part of the steps in which a layer compared the
             task with an arm of the tree of that task
    merged   [{after, tasks}, ...]: groups of tasks that became one after the task with this index
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from clbench.errors import ClbenchError
from clbench.record import Record
from clbench.report.grid import clean

NOTE = "tree"
"""Where the record has it: `notes["tree"]`."""

Index = NonNegativeInt
Name = Annotated[str, AfterValidator(clean)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class Node(_Facts):
    """A group of rows and its two halves; the root is the tree."""

    tasks: Annotated[tuple[Index, ...], Field(min_length=1)]
    """Rows of the step's `arms`."""
    depth: Index
    """Distance from the root, which is also the layer that splits the node."""
    smoothness: tuple[float, ...]
    """For each layer the largest distance of a member from the members' mean, [D]."""
    threshold: float | None = None
    children: tuple[Node, ...] = ()

    @model_validator(mode="after")
    def _parts(self) -> Node:
        if self.children:
            below = sorted(row for child in self.children for row in child.tasks)
            if len(self.children) != 2 or below != sorted(self.tasks):
                raise ValueError("a node has no children, or two that share its tasks between them")
            if self.depth >= len(self.smoothness) or {child.depth for child in self.children} != {self.depth + 1}:
                raise ValueError("a node is split by the layer of its depth, and its children lie one deeper")
        return self

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first, left before right."""
        yield self
        for child in self.children:
            yield from child.walk()


class Step(_Facts):
    """The tree that stood before a task was learned."""

    task: Index | None
    """The index of that task; None for the tree after the last task."""
    arms: Annotated[tuple[tuple[Index, ...], ...], Field(min_length=1)]
    root: Node


class Pulls(_Facts):
    """Which arms were compared with while a task was learned."""

    task: Index
    shares: tuple[tuple[tuple[Share, ...], ...], ...]
    """`shares[epoch][layer][arm]`."""


class Merge(_Facts):
    """Groups of tasks that became one arm."""

    after: Index
    tasks: tuple[tuple[Index, ...], ...]


class History(_Facts):
    """How the tree of one run grew, and which of its arms were chosen."""

    names: tuple[Name, ...]
    """Of all tasks of the run, no two the same."""
    layers: Annotated[tuple[Name, ...], Field(min_length=1)]
    growth: Annotated[tuple[Step, ...], Field(min_length=1)]
    pulls: tuple[Pulls, ...] = ()
    """Of the tasks that were learned for an epoch at least."""
    merged: tuple[Merge, ...] = ()

    @field_validator("pulls")
    @classmethod
    def _with_epochs(cls, pulls: tuple[Pulls, ...]) -> tuple[Pulls, ...]:
        return tuple(taught for taught in pulls if taught.shares)

    @model_validator(mode="after")
    def _fits(self) -> History:
        tasks = [task for step in self.growth for arm in step.arms for task in arm]
        tasks += [task for merge in self.merged for group in merge.tasks for task in group]
        tasks += [step.task for step in self.growth if step.task is not None] + [merge.after for merge in self.merged]
        if max(tasks) >= len(self.names):
            raise ValueError(f"task {max(tasks)} is none of {len(self.names)}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers have different names")
        for step in self.growth:
            if sorted(step.root.tasks) != list(range(len(step.arms))):
                raise ValueError("the root holds every arm once")
            if any(len(node.smoothness) != len(self.layers) for node in step.root.walk()):
                raise ValueError("a node has one smoothness for each layer")
        for taught in self.pulls:
            arms = len(self._steps[taught.task].arms) if taught.task in self._steps else None
            if any(len(epoch) != len(self.layers) or {len(s) for s in epoch} != {arms} for epoch in taught.shares):
                raise ValueError("the shares of an epoch are [layers, arms] of the tree of their task")
        return self

    @cached_property
    def _steps(self) -> dict[int | None, Step]:
        return {step.task: step for step in self.growth}

    def step(self, task: int | None) -> Step:
        """The tree that stood before `task`; KeyError where none was recorded."""
        return self._steps[task]

    @property
    def last(self) -> Step:
        """The tree as it was left."""
        return self.growth[-1]

    def label(self, tasks: tuple[int, ...]) -> str:
        """The name of an arm: its task's, or those of merged tasks, joined by '+'."""
        return " + ".join(self.names[task] for task in tasks)

    def labels(self, step: Step) -> tuple[str, ...]:
        """The name of each arm of a tree."""
        return tuple(self.label(arm) for arm in step.arms)

    def when(self, step: Step) -> str:
        """When a tree stood: 'before Greek 2', 'after the last task'."""
        return "after the last task" if step.task is None else f"before {self.names[step.task]}"


def read(record: Record) -> History:
    """The tree of a record.

    Raises ClbenchError with a sentence where the record has none, or has something else in its place.
    """
    noted: Any = record.notes.get(NOTE)
    whose = clean(f"{record.suite}/{record.method}/seed{record.seed}/{record.key}")
    if noted is None:
        raise ClbenchError(
            f"the run {whose} recorded no tree: its record has no field 'notes.{NOTE}'; "
            "choose a run of a method that arranges past tasks in a tree."
        )
    names = record.tasks
    if len(set(map(clean, names))) < len(names):
        names = tuple(f"{name} [{number}]" for number, name in enumerate(names, 1))
    try:
        return History.model_validate({**noted, "names": names} if isinstance(noted, dict) else noted)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("notes", NOTE, *first["loc"]))
        reason = clean(first["msg"])
        raise ClbenchError(f"the run {whose} has no readable tree: '{where}' is not as expected ({reason}).") from error
