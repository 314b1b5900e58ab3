"""Differences: what tells two runs apart, and which of them answers each task better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench import stats
from clbench.metrics import Undefined, average_accuracy
from clbench.record import UNKNOWN, Record
from clbench.row import Column, Number, columns
from clbench.significance import DRAWS_PER_PAIR, holm, mcnemar
from clbench.stats import Difference
from clbench.table import REFERENCE_METHOD, ReadOutcomes, make_tables

SHOWN = (
    *("avg_accuracy_mean", "avg_incremental_accuracy_mean", "forgetting_mean", "bwt_mean"),
    *("train_seconds_mean", "train_seconds_per_sample", "eval_seconds_mean", "peak_memory_mib"),
    *("trainable_parameters", "stored_mib", "flops_per_step"),
)
"""The columns of a table that stand side by side."""


class Absent(Enum):
    """The value of what only the other run has."""

    ABSENT = "–"


@dataclass(frozen=True)
class Change:
    """A fact in which two runs differ."""

    group: str
    name: str
    old: Any
    new: Any
    """Values as the records have them, or `Absent.ABSENT`."""


@dataclass(frozen=True)
class Verdict:
    """Two runs on one task, or on all, after the last round; scores and differences in [-1, 1]."""

    task: str
    first: float | None
    second: float | None
    test: str
    """'mcnemar' or 'bootstrap'; '' where none was possible."""
    difference: Difference | Undefined
    """The second's score minus the first's."""
    p_holm: Number
    """p, adjusted for the number of tasks; of all tasks together p itself."""

    @property
    def winner(self) -> int:
        """1 or 2; 0 where the difference may be chance, is none, or was not tested."""
        if isinstance(self.difference, Undefined) or isinstance(self.p_holm, Undefined) or stats.tied(self.p_holm):
            return 0
        return 2 if self.difference.mean > 0 else 1


@dataclass(frozen=True)
class Side:
    """A number of both runs, or why a run has none."""

    column: Column
    first: Number
    second: Number


@dataclass(frozen=True)
class Explanation:
    """Everything that `clbench compare` says of two runs."""

    first: Record
    second: Record
    changes: tuple[Change, ...]
    """Grouped, in a fixed order."""
    tasks: tuple[Verdict, ...]
    overall: Verdict
    untested: str
    """Why no paired test was possible; '' where there is one."""
    sides: tuple[Side, ...]
    warnings: tuple[str, ...]
    """Why seconds and memory of the two are not comparable."""


def explain(first: Record, second: Record, outcomes: ReadOutcomes) -> Explanation:
    """What differs from the first run to the second, who scores higher on each task, and what they cost.

    Examples are paired where both runs were asked the same ones. Answers that are right or wrong are compared by
    McNemar's exact test, scores in between by the bootstrap over examples; p is adjusted over the tasks (Holm). All
    tests speak of the two trained models: other seeds are not in them.
    """
    scores = _paired(first, second, outcomes)
    return Explanation(
        first=first,
        second=second,
        changes=tuple(_changes(first, second)),
        tasks=_verdicts(first, second, scores),
        overall=_overall(first, second, scores),
        untested=scores.reason if isinstance(scores, Undefined) else "",
        sides=_sides(first, second),
        warnings=tuple(_warnings(first, second)),
    )


# what differs


def _facts(record: Record) -> dict[str, Mapping[str, Any]]:
    origin = record.origin
    commit = origin.commit if origin.commit is None or not origin.dirty else f"{origin.commit}, changed"
    run = ("suite", "method", "variant", "seed", "order_seed", "status", "reason", "fingerprint", "score_name")
    return {
        "run": {name: getattr(record, name) for name in run},
        "protocol": record.protocol,
        "parameters": record.params,
        "recipe": record.recipe,
        "versions": {"clbench": origin.clbench, "commit": commit, **origin.versions},
        "hardware": {name: getattr(origin, name) for name in ("device", "device_kind", "precision", "threads")},
        "machine": {"cpu": origin.cpu, "driver": origin.driver} if origin.cpu else {},
        "determinism": origin.determinism,
    }


_LATER = ("machine", "determinism")
"""What records lack that were made before it was kept; it tells two runs apart only where both have it."""


def _changes(first: Record, second: Record) -> list[Change]:
    mine, theirs = _facts(first), _facts(second)
    return [
        Change(group, name, old, new)
        for group in mine
        if group not in _LATER or (mine[group] and theirs[group])
        for name in dict.fromkeys((*mine[group], *theirs[group]))
        if (old := mine[group].get(name, Absent.ABSENT)) != (new := theirs[group].get(name, Absent.ABSENT))
    ]


# who wins


@dataclass(frozen=True)
class _Scores:
    """What both runs scored on the same examples, after the last round."""

    tasks: NDArray[Any]
    first: NDArray[np.float32]
    second: NDArray[np.float32]


def _paired(first: Record, second: Record, outcomes: ReadOutcomes) -> _Scores | Undefined:
    for record, which in ((first, "first"), (second, "second")):
        if record.status != "done":
            return Undefined(f"the {which} run is not finished ({record.status}: {record.reason})")
    if first.score_name != second.score_name:
        return Undefined(f"their scores are not of one kind, {first.score_name} and {second.score_name}")
    if _examples(first) is None or _examples(second) is None:
        return Undefined("it is not known whether they were asked the same test examples")
    if _examples(first) != _examples(second):
        return Undefined("they were asked different test examples, so no paired test is possible")
    kept = [outcomes(record) for record in (first, second)]
    if kept[0] is None or kept[1] is None:
        return Undefined("the outcomes per example of both are needed for a paired test, and were not kept")
    given = stats.answers([{0: kept[0]}, {0: kept[1]}])
    if isinstance(given, Undefined):
        return given
    common = given.common(0, 1)
    return common if isinstance(common, Undefined) else _Scores(given.tasks, given.scores[0], given.scores[1])


def _examples(record: Record) -> tuple[Any, ...] | None:
    """What tells which examples a run was asked; None where its protocol does not."""
    stream = record.protocol.get("stream_sha256")
    return None if stream in (None, UNKNOWN) else (stream, record.protocol.get("scored_on"), record.tasks)


def _verdicts(first: Record, second: Record, scores: _Scores | Undefined) -> tuple[Verdict, ...]:
    """One for each task that both were taught, in the first's order."""
    mine, theirs = _last(first), _last(second)
    shared = [task for task in mine if task in theirs]
    found = [_judged(i, len(shared), scores) for i in range(len(shared))]
    adjusted = iter(holm([d.p for _, d in found if isinstance(d, Difference)]))
    return tuple(
        Verdict(task[0], mine[task], theirs[task], test, d, next(adjusted) if isinstance(d, Difference) else d)
        for task, (test, d) in zip(shared, found, strict=True)
    )


def _last(record: Record) -> dict[tuple[str, int], float | None]:
    """Each task by its name, numbered where several have one, with its score after the last round."""
    row = record.scores[-1] if record.scores else (None,) * len(record.tasks)
    return {
        (task, record.tasks[:i].count(task)): score
        for i, (task, score) in enumerate(zip(record.tasks, row, strict=True))
    }


def _judged(index: int, tasks: int, scores: _Scores | Undefined) -> tuple[str, Difference | Undefined]:
    """Which test, and what it says of task `index`."""
    if isinstance(scores, Undefined):
        return "", scores
    members = scores.tasks == index
    first, second = scores.first[members], scores.second[members]
    if np.isin((first, second), (0, 1)).all():
        return "mcnemar", mcnemar(second.astype(float) - first)
    return "bootstrap", _bootstrap(_Scores(scores.tasks[members], first, second), tasks)


def _bootstrap(scores: _Scores, tests: int) -> Difference | Undefined:
    """The second's task-mean score minus the first's; drawn so often that p still counts after Holm's correction."""
    runs = [{0: {"tasks": scores.tasks, "score_1": values}} for values in (scores.second, scores.first)]
    return stats.bootstrap(runs, max(stats.DRAWS, DRAWS_PER_PAIR * tests))[0, 1]


def _overall(first: Record, second: Record, scores: _Scores | Undefined) -> Verdict:
    mine, theirs = (None if isinstance(m := average_accuracy(r.scores), Undefined) else m for r in (first, second))
    if isinstance(scores, Undefined):
        return Verdict("average", mine, theirs, "", scores, scores)
    found = _bootstrap(scores, 1)
    return Verdict("average", mine, theirs, "bootstrap", found, found if isinstance(found, Undefined) else found.p)


# what they cost


def _sides(first: Record, second: Record) -> tuple[Side, ...]:
    rows = [make_tables([record])[0].rows[0] for record in (first, second)]
    return tuple(
        Side(column, getattr(rows[0], column.attribute), getattr(rows[1], column.attribute))
        for column in columns(REFERENCE_METHOD)
        if column.attribute in SHOWN
    )


def _warnings(first: Record, second: Record) -> list[str]:
    said = []
    for name, what in (("device", "devices"), ("precision", "precisions"), ("threads", "numbers of threads")):
        mine, theirs = getattr(first.origin, name), getattr(second.origin, name)
        if mine != theirs and (name != "threads" or "cpu" in (first.origin.device_kind, second.origin.device_kind)):
            said.append(f"seconds and memory are of two {what}, {mine} and {theirs}, and not comparable")
    for record, which in ((first, "first"), (second, "second")):
        if record.contended:
            said.append(f"the {which} run shared its device with others: its seconds are too long")
    epochs = [record.protocol.get("epochs") for record in (first, second)]
    if epochs[0] != epochs[1]:
        said.append(f"they learned for {epochs[0]} and {epochs[1]} epochs: compare seconds a sample, not in total")
    return said
