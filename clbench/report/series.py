"""Series: the finished runs behind one row of a table, as the numbers that figures draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from clbench import metrics
from clbench.metrics import Undefined
from clbench.protocol import METHOD_TERMS
from clbench.record import Record, TaskCosts
from clbench.report.grid import clean
from clbench.table import MIB, Group

REST, FIRST, EVALUATION = "train", "first steps", "evaluation"
"""The parts of the cost that are no named phase of a method."""


@dataclass(frozen=True)
class Point:
    """A mean over seeds, and the lowest and highest seed, at a place."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """The runs of one method, variant, device and settings; scores in %, seconds and MiB as means over the runs."""

    label: str
    """As in the table; no two of one table are the same."""
    name: str
    """The method where it is at its defaults, else the label: what the row's colour goes by."""
    device: str
    runs: tuple[Record, ...]

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.runs[0].method

    @property
    def departs(self) -> bool:
        """Whether a run changed a term of the suite's protocol."""
        return any(run.protocol.get(term) != run.suite_protocol.get(term) for run in self.runs for term in METHOD_TERMS)

    @property
    def contended(self) -> bool:
        """Whether a run shared the device with others, so that its seconds say less."""
        return any(run.contended for run in self.runs)

    @property
    def costly(self) -> bool:
        """Whether every run recorded its costs."""
        return all(run.costs for run in self.runs)

    def final(self) -> Point | None:
        """Average score after the last task at the mean training seconds; None where a run has not both."""
        scores = [metrics.average_accuracy(run.scores) for run in self.runs]
        numbers = [100 * score for score in scores if not isinstance(score, Undefined)]
        if len(numbers) < len(scores):
            return None
        return Point(self.mean_cost(_train_seconds), fmean(numbers), min(numbers), max(numbers))

    def curve(self) -> list[Point]:
        """Average score over the tasks seen so far, after each task; without the rounds that some run did not score."""
        points = []
        for seen in range(1, len(self.runs[0].tasks) + 1):
            rounds = [run.scores[seen][:seen] for run in self.runs]
            means = [100 * fmean(row) for row in map(_whole, rounds) if row]
            if len(means) == len(rounds):
                points.append(Point(seen, fmean(means), min(means), max(means)))
        return points

    def matrix(self) -> list[list[float | None]]:
        """`[after t tasks][task]`, t from 1; None where some run has no score."""
        tasks = range(len(self.runs[0].tasks))
        return [[_mean([run.scores[t + 1][j] for run in self.runs]) for j in tasks] for t in tasks]

    def forgotten(self) -> list[float | None]:
        """For each task but the last its best past score minus its last one, as `metrics.forgetting`; [T-1]."""
        return [_mean([_drop(run, task) for run in self.runs]) for task in range(len(self.runs[0].tasks) - 1)]

    def progress(self) -> list[tuple[float, float]]:
        """After each scored round the training seconds so far and the score over all tasks, later ones counting 0."""
        count, scored = len(self.runs[0].tasks), len(self.runs[0].costs)
        steps = []
        for done in range(1, scored + 1):
            seen = count - scored + done  # a run that learns everything at once has one cost, and the last round
            rows = [_whole(run.scores[seen][:seen]) for run in self.runs]
            if all(rows) and all(len(run.costs) == scored for run in self.runs):
                seconds = fmean(_train_seconds(run.costs[:done]) for run in self.runs)
                steps.append((seconds, 100 * fmean(sum(row) / count for row in rows)))
        return steps

    def phases(self) -> dict[str, float]:
        """Seconds by what they went into: the rest of training, each named phase, first steps, evaluation."""
        named = {phase for run in self.runs for cost in run.costs for phase in cost.phase_seconds}
        parts = {phase: self.mean_cost(_phase_seconds(phase)) for phase in sorted(named)}
        # Phases may overlap, so that together they can be longer than what they are part of.
        rest = max(0.0, self.mean_cost(_train_seconds) - sum(parts.values()))
        first = self.mean_cost(lambda costs: sum(c.warmup_seconds for c in costs))
        scoring = self.mean_cost(lambda costs: sum(c.eval_seconds for c in costs))
        return {REST: rest, **parts, FIRST: first, EVALUATION: scoring}

    def peak_mib(self) -> float:
        """Device memory while learning, the highest task."""
        return self.mean_cost(lambda costs: max((c.peak_memory_mib for c in costs), default=0.0))

    def stored_mib(self) -> float:
        """What is kept after the last task beyond the untouched backbone."""
        return self.mean_cost(lambda costs: costs[-1].stored_bytes / MIB if costs else 0.0)

    def mean_cost(self, read: Callable[[Sequence[TaskCosts]], float]) -> float:
        """The mean over the runs of what `read` makes of a run's costs."""
        return fmean(read(run.costs) for run in self.runs)


def series(groups: Iterable[Group]) -> tuple[Series, ...]:
    """One series for each row of a table that has a finished run, the highest score first."""
    done = [group for group in groups if group.done]
    devices = sorted({group.device for group in done})
    found = [_series(group, devices) for group in done]
    found.sort(key=lambda each: (-(final.mean if (final := each.final()) else -1.0), each.label))
    labels = told_apart([each.label for each in found])
    return tuple(replace(each, label=label) for label, each in zip(labels, found, strict=True))


def _series(group: Group, devices: Sequence[str]) -> Series:
    first = group.done[0]
    label = clean(f"{group.label}, on {group.device}" if len(devices) > 1 else group.label)
    plain = not first.variant and group.device == devices[0]
    return Series(label, first.method if plain else label, group.device, group.done)


def told_apart(labels: Sequence[str]) -> list[str]:
    """The labels with a number behind those that were there before.

    >>> told_apart(["a", "b", "a"])
    ['a', 'b', 'a [2]']
    """
    seen: Counter[str] = Counter()
    told = []
    for label in labels:
        seen[label] += 1
        told.append(label if seen[label] == 1 else f"{label} [{seen[label]}]")
    return told


def task_names(record: Record) -> list[str]:
    """Number and name of each task: no two the same.

    >>> task_names(Record.example())
    ['1 · a', '2 · b']
    """
    return [f"{number} · {clean(name)}" for number, name in enumerate(record.tasks, 1)]


def _whole(row: Sequence[float | None]) -> list[float]:
    """The scores of a row; none where one is missing."""
    numbers = [score for score in row if score is not None]
    return numbers if len(numbers) == len(row) else []


def _mean(scores: Sequence[float | None]) -> float | None:
    numbers = _whole(scores)
    return 100 * fmean(numbers) if numbers else None


def _drop(run: Record, task: int) -> float | None:
    rounds = _whole([row[task] for row in run.scores[task + 1 :]])
    return max(rounds[:-1]) - rounds[-1] if len(rounds) > 1 else None


def _train_seconds(costs: Sequence[TaskCosts]) -> float:
    """Without the first steps, as in the table."""
    return sum(cost.train_seconds for cost in costs)


def _phase_seconds(phase: str) -> Callable[[Sequence[TaskCosts]], float]:
    return lambda costs: sum(cost.phase_seconds.get(phase, 0.0) for cost in costs)
