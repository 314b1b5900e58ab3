"""Measure: what cells will take, from a few steps of each method on the real model and data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clbench import runner
from clbench.outcomes import pack_outcomes
from clbench.plan import Cell
from clbench.record import TaskCosts
from clbench.stream import Stream, Task, TextSet

BATCHES = (3, 8)
"""Training batches of a lesson in the two tries of a method: what grows with the samples is told from what does not."""
LESSONS = 2
"""Past tasks cost many methods something from the second lesson on."""
RECORD_BYTES = 20_000
"""Of a record's JSON with its log and manifest, about."""
MIB = 2**20
TITLE = "Forecast from a few steps of each method, extrapolated to all tasks, passes and test examples:"
HEADS = ("method", "cells", "hours a cell", "hours", "memory MiB", "disk MiB", "checkpoint MiB")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one cell of a row will take."""

    seconds: float | None = 0.0
    """Of building, learning, scoring and auditing; None where the try failed."""
    peak_memory_mib: float = 0.0
    """As in a record: on a GPU the allocator's peak, on a CPU the growth of the process."""
    kept_bytes: int = 0
    """Record and outcomes."""
    checkpoint_bytes: int = 0
    """On disk until the cell is done."""
    reason: str = ""
    """Why nothing was measured."""


@dataclass(frozen=True)
class _Try:
    """A short run: sizes of its lessons and what they took."""

    batches: int
    built_seconds: float
    audit_seconds: float
    costs: Sequence[TaskCosts]
    outcome_bytes: int
    checkpoint_bytes: int


def rows(cells: Sequence[Cell], stream: Stream, device: torch.device) -> dict[str, Measured]:
    """Key of each cell -> what it will take; each row is tried once, whatever the number of its seeds."""
    tried: dict[str, Measured] = {}
    found: dict[str, Measured] = {}
    for cell in cells:
        row = replace(cell, seed=0).key
        if row not in tried:
            tried[row] = measured(cell, stream, device)
        found[cell.key] = tried[row]
    return found


def measured(cell: Cell, stream: Stream, device: torch.device) -> Measured:
    """What `cell` will take. A method that declines or fails takes nothing and says why."""
    reason = cell.method.unsupported(stream)
    if reason is not None:
        return Measured(reason=reason)
    try:
        tries = [_tried(cell, stream, device, batches) for batches in BATCHES]
    except Exception as error:  # whatever a method may raise; the run will tell it in full
        return Measured(seconds=None, reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return extrapolated(cell, stream, tries)


def _tried(cell: Cell, stream: Stream, device: torch.device, batches: int) -> _Try:
    recipe = cell.suite.recipe
    few = Stream(
        tuple(_shortened(task, batches * recipe.batch_size, recipe.eval_batch_size) for task in stream),
        stream.class_names,
    )
    once = cell.protocol.model_copy(update={"epochs": min(1, cell.protocol.epochs), "task_epochs": ()})
    started = time.perf_counter()
    running = runner.Run(replace(cell, protocol=once), few, device, runner.Silent())
    built = time.perf_counter() - started
    for index, task in running.lessons()[:LESSONS]:
        running.learn(index, task)
    started = time.perf_counter()
    running.audit()
    audit = time.perf_counter() - started
    kept = len(running.pack()) if running.resumable else 0
    return _Try(batches, built, audit, tuple(running.state.costs), len(pack_outcomes(running.outcomes())), kept)


def _shortened(task: Task, train: int, test: int) -> Task:
    parts = {"train": (task.train, train), "validation": (task.validation, test), "test": (task.test, test)}
    return replace(task, **{name: _some(examples, count) for name, (examples, count) in parts.items()})


def _some(examples: Any, count: int) -> Any:
    """So many of the examples, spread over all of them, so that every class is there."""
    if count >= len(examples):
        return examples
    places = torch.linspace(0, len(examples) - 1, count).long().tolist()
    if isinstance(examples, TextSet):
        return TextSet([examples.rows[place] for place in places], examples.task)
    return examples.subset(places)


def extrapolated(cell: Cell, stream: Stream, tries: Sequence[_Try]) -> Measured:
    """What the whole cell takes, by two short tries of it."""
    last = tries[-1]
    lessons = _lessons(cell, stream)
    learning = 0.0
    for index, (samples, epochs) in enumerate(lessons):
        which = min(index, len(last.costs) - 1)
        learning += _learning([each.costs[which] for each in tries], samples, epochs)
    asked = _asked(cell, stream)
    answering = last.costs[-1].eval_seconds / max(1, last.costs[-1].eval_samples)
    growth = last.costs[-1].stored_bytes - last.costs[-2].stored_bytes if len(last.costs) > 1 else 0
    few = sum(cost.eval_samples for cost in last.costs)
    return Measured(
        seconds=last.built_seconds + learning + answering * asked + last.audit_seconds,
        peak_memory_mib=max(cost.peak_memory_mib for each in tries for cost in each.costs),
        kept_bytes=RECORD_BYTES + round(last.outcome_bytes * asked / max(1, few)),
        checkpoint_bytes=last.checkpoint_bytes + max(0, growth) * max(0, len(lessons) - len(last.costs)),
    )


def _lessons(cell: Cell, stream: Stream) -> list[tuple[int, int]]:
    """Samples and passes of every lesson; a lesson without passes looks at its samples once."""
    sizes, card = [len(task.train) for task in stream], cell.protocol
    if card.schedule == "joint":
        return [(sum(sizes), card.epochs)]
    passes = [card.task_epochs[i] if card.task_epochs else card.epochs for i in range(len(sizes))]
    if card.schedule == "first":
        passes[1:] = [0] * (len(sizes) - 1)
    return list(zip(sizes, passes, strict=True))


def _learning(costs: Sequence[TaskCosts], samples: int, epochs: int) -> float:
    """Seconds of a lesson: a line through those of two short ones, or their longer one's rate where it has no slope."""
    short, long = ((_samples(cost), cost.train_seconds) for cost in costs)
    wanted = samples * max(1, epochs)
    slope = (long[1] - short[1]) / (long[0] - short[0]) if long[0] > short[0] else 0.0
    if slope <= 0:
        return costs[-1].warmup_seconds + long[1] * wanted / max(1, long[0])
    return costs[-1].warmup_seconds + max(0.0, long[1] - slope * long[0]) + slope * wanted


def _samples(cost: TaskCosts) -> int:
    return max(1, cost.train_samples)


def _asked(cell: Cell, stream: Stream) -> int:
    """Test examples in all rounds together."""
    sizes, most = [len(task.test) for task in stream], cell.suite.recipe.eval_samples
    if cell.protocol.schedule == "joint":
        return sum(sizes)
    earlier = [size if most is None else min(size, most) for size in sizes]
    return sum(sum(earlier[:seen]) for seen in range(1, len(sizes))) + sum(sizes)


def told(cells: Sequence[Cell], found: Mapping[str, Measured], expected: Mapping[str, float | None]) -> list[list[str]]:
    """A head, a line for each row of the missing cells, and one for all; hours are those `expected`."""
    named: dict[str, list[Cell]] = {}
    for cell in cells:
        named.setdefault(cell.name.rpartition(" seed ")[0], []).append(cell)
    lines = [list(HEADS)]
    for name, group in named.items():
        one, each = found[group[0].key], [expected[cell.key] or 0.0 for cell in group]
        if one.reason:
            lines.append([name, str(len(group)), one.reason])
            continue
        hours = (f"{sum(each) / len(each) / 3600:.3f}", f"{sum(each) / 3600:.3f}")
        disk = (f"{len(group) * one.kept_bytes / MIB:.2f}", f"{one.checkpoint_bytes / MIB:.2f}")
        lines.append([name, str(len(group)), *hours, f"{one.peak_memory_mib:,.0f}", *disk])
    every = [found[cell.key] for cell in cells]
    hours_of_all = sum(expected[cell.key] or 0.0 for cell in cells) / 3600
    most = max((one.peak_memory_mib for one in every), default=0.0)
    kept, held = sum(one.kept_bytes for one in every) / MIB, max((one.checkpoint_bytes for one in every), default=0)
    together = ["together", str(len(cells)), "", f"{hours_of_all:.3f}", f"{most:,.0f}"]
    return [*lines, [*together, f"{kept:.2f}", f"{held / MIB:.2f}"]]
