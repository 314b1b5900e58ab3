"""Buffer: a bounded set of past training samples, kept by class or by reservoir."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from clbench.backbones.reading import Lessons
from clbench.errors import BadValue
from clbench.padding import join, trimmed
from clbench.stream import Examples, Stream

Policy = Literal["class", "task", "reservoir"]


def distinct(examples: Examples) -> Tensor:
    """Indices of the examples in their order, of text without those that repeat an earlier one.

    Small sources are drawn from again and again until a task is large enough; kept twice, a row would only take
    another's place.
    """
    if not isinstance(examples, Lessons):
        return torch.arange(len(examples))
    first: dict[Any, int] = {}
    for index, row in enumerate(examples.source.rows):
        first.setdefault(row, index)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def too_few(setting: str, size: int, groups: int, kind: str) -> str | None:
    """Why `size` samples are not enough for `groups` classes or tasks with equal quotas; None where they are."""
    if size >= groups:
        return None
    return (
        f"{setting} is {size}, less than one for each of {groups} {kind}; "
        f"give at least as many as the stream has {kind}"
    )


def too_small(size: int, policy: Policy, stream: Stream) -> str | None:
    """Why a buffer of `size` samples cannot be filled from `stream`; None where it can."""
    if policy == "reservoir":
        return None
    if stream.is_text or policy == "task":
        return too_few("buffer_samples", size, len(stream), "tasks")
    return too_few("buffer_samples", size, len({c for task in stream for c in task.classes}), "classes")


class Buffer:
    """At most `size` samples.

    `class`: every class seen has the same quota, `size // classes`; a quota that shrinks drops the
    samples that came last in the class's random order. Text has no classes, so its tasks have the quotas.
    `task`: the same with a quota for every task. What no quota takes stays unused.
    `reservoir`: every sample of the stream is kept with equal probability size / n (Vitter 1985).
    Text that repeats itself within a task is taken once.
    """

    def __init__(self, size: int, policy: Policy) -> None:
        self.size, self.policy = size, policy
        self.inputs: Tensor | None = None
        self.targets = torch.empty(0, dtype=torch.int64)
        self.origins: Tensor | None = None
        """The task of each sample and its place there, `[kept, 2]`; of text, and where the tasks have the quotas."""
        self.tasks = 0
        """Tasks of the stream so far."""
        self.passed = 0
        """Samples of the stream so far."""

    def __len__(self) -> int:
        return len(self.targets)

    def add(self, examples: Examples, generator: torch.Generator) -> None:
        """Take in a task that has been learned. Raises BadValue where not one sample of each group fits."""
        rows = distinct(examples)
        count = len(rows)
        if self.policy == "reservoir":
            offered = rows[self._reservoir(count, generator)]
        else:
            offered = rows[torch.randperm(count, generator=generator)]
        if len(offered):
            self._take(examples, offered)
        self.passed += count
        self.tasks += 1

    def _take(self, examples: Examples, offered: Tensor) -> None:
        """Put the offered samples behind those that are there."""
        inputs, targets = examples.batch(offered, torch.device("cpu"))
        if targets.ndim > 1 or self.policy == "task":
            self._note(offered)
        if self.inputs is not None:
            inputs, targets = join([self.inputs, inputs]), join([self.targets, targets])
        self.inputs, self.targets = inputs, targets
        if self.policy != "reservoir":
            groups, kind = (targets, "classes") if self.origins is None else (self.origins[:, 0], "tasks")
            self._keep(self._balanced(groups, kind))
        self.inputs, self.targets = trimmed(self.inputs, self.targets)

    def _note(self, offered: Tensor) -> None:
        """Put the origins of new samples behind those of the old."""
        old = torch.empty(0, 2, dtype=torch.int64) if self.origins is None else self.origins
        self.origins = torch.cat([old, torch.stack([torch.full_like(offered, self.tasks), offered], dim=1)])

    def _keep(self, places: Tensor) -> None:
        """Drop all others."""
        assert self.inputs is not None
        self.inputs, self.targets = self.inputs[places], self.targets[places]
        if self.origins is not None:
            self.origins = self.origins[places]

    def _balanced(self, groups: Tensor, kind: str) -> Tensor:
        names = groups.unique()
        shortage = too_few("buffer_samples", self.size, len(names), kind)
        if shortage:
            raise BadValue(f"{shortage}.")
        quota = self.size // len(names)
        kept = [(groups == name).nonzero().flatten()[:quota] for name in names]
        return torch.cat(kept).sort().values

    def _reservoir(self, count: int, generator: torch.Generator) -> Tensor:
        """Drops what is replaced; returns which of the `count` new samples come in."""
        draws = torch.rand(count, generator=generator, dtype=torch.float64)
        slots: list[int] = list(range(len(self)))  # ≥ 0: an old sample's place; < 0: -1 - index of a new one
        for index, draw in enumerate(draws.tolist()):
            if len(slots) < self.size:
                slots.append(-1 - index)
                continue
            place = int(draw * (self.passed + index + 1))
            if place < self.size:
                slots[place] = -1 - index
        if self.inputs is not None:
            self._keep(torch.tensor([slot for slot in slots if slot >= 0], dtype=torch.int64))
        return torch.tensor([-1 - slot for slot in slots if slot < 0], dtype=torch.int64)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """`count` samples at random without repetition; all of them where there are fewer."""
        assert self.inputs is not None
        picks = torch.randperm(len(self), generator=generator)[:count]
        inputs, targets = trimmed(self.inputs[picks], self.targets[picks])
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def notes(self) -> dict[str, Any]:
        """Which rows of each task are kept, by the task's number from 1 and the row's from 0; where that is known."""
        if self.origins is None:
            return {}
        kept: dict[str, list[int]] = {}
        for task, row in sorted(self.origins.tolist()):
            kept.setdefault(str(task + 1), []).append(row)
        return {"kept_rows": kept}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        origins = {} if self.origins is None else {"origins": self.origins, "tasks": self.tasks}
        return {"inputs": self.inputs, "targets": self.targets, "passed": self.passed, **origins}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.inputs, self.targets, self.passed = state["inputs"], state["targets"], state["passed"]
        self.origins, self.tasks = state.get("origins"), state.get("tasks", 0)
