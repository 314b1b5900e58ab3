"""Tune: random search over the ranges that a method declares, scored on validation data alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import optuna
import torch

from clbench import executors, metrics, plan
from clbench.errors import BadValue, ClbenchError, Unsupported
from clbench.executors import Reporter
from clbench.files import write_atomically
from clbench.method import Method, Search
from clbench.plan import Cell, Row
from clbench.record import Record
from clbench.seeding import derive
from clbench.store import Store
from clbench.stream import Stream
from clbench.suite import Contender, Suite

LEARNING_RATE = Search(0.1, 10)
"""Of every method that trains: relative to its own, or the recipe's."""
_DIGITS = 3
"""Significant digits of a suggested value, so that the words that repeat it are exact."""


class Kind(Protocol):
    """A method's class and the fingerprint of its source."""

    @property
    def cls(self) -> type[Method]:
        """The class."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of its source."""
        ...


@dataclass(frozen=True)
class Trial:
    """One set of values and what came of it."""

    number: int
    """0 is the suite's own settings."""
    values: Mapping[str, float]
    """The fields that differ from trial 0."""
    key: str
    """Of the trial's cell in the tuning store."""
    score: float | None
    """Average accuracy on validation data after the last task; None where the trial failed."""
    reason: str | None


@dataclass(frozen=True)
class Result:
    """A finished search."""

    suite: str
    method: str
    seed: int
    ranges: Mapping[str, tuple[float, float, bool]]
    """Field -> (lowest, highest, whether its logarithm is uniform)."""
    trials: tuple[Trial, ...]
    best: Trial
    """The first of those with the highest score."""
    summary_path: Path

    @property
    def line(self) -> str:
        """The `--set` words that repeat the best trial; empty where it is the settings as they are."""
        return " ".join(f"--set {self.method}.{name}={value:g}" for name, value in self.best.values.items())


def ranges(method: Method, learning_rate: float) -> dict[str, Search]:
    """Where to look for each field: what its class declares, and around the step size if it trains.

    `learning_rate` is the recipe's.
    """
    found = {
        name: mark
        for name, info in type(method).model_fields.items()
        for mark in info.metadata
        if isinstance(mark, Search)
    }
    if method.schedule != "none" and "learning_rate" not in found:
        middle = method.learning_rate or learning_rate
        found["learning_rate"] = replace(
            LEARNING_RATE, low=_rounded(middle * LEARNING_RATE.low), high=_rounded(middle * LEARNING_RATE.high)
        )
    return found


def suggestions(where: Mapping[str, Search], count: int, seed: int) -> list[dict[str, float]]:
    """`count` random sets of values; more of them begin with the same ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**32))
    spaces: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(mark.low, mark.high, log=mark.log) for name, mark in where.items()
    }
    return [{name: _rounded(v) for name, v in study.ask(spaces).params.items()} for _ in range(count)]


def without_test(stream: Stream) -> Stream:
    """The stream with its validation examples where the test examples were.

    Nothing of the test data is read after this, not even for the hash on the protocol card, which is
    then of training and validation data.
    """
    return Stream(tuple(replace(task, test=task.validation) for task in stream), stream.class_names)


def tune(
    suite: Suite,
    kind: Kind,
    *,
    trials: int,
    seed: int,
    device: torch.device,
    store: Store,
    reporter: Reporter | None = None,
) -> Result:
    """Search with `trials` trials, the first of them the suite's own settings.

    Every trial is an ordinary cell in the folder `tuning` of the store, apart from the records that
    tables are made of. The same seed suggests the same values, so that a search that was interrupted,
    or is repeated with more trials, finds the cells that are finished. Raises Unsupported where the
    method declines the suite or has nothing to search, and ClbenchError where every trial failed.
    """
    if trials < 1:
        raise BadValue(f"--trials is {trials}; it must be 1 or more.")
    base = kind.cls(**suite.settings.get(kind.cls.name, {}))
    stream = without_test(suite.stream())
    reason = base.unsupported(stream)
    if reason is not None:
        raise Unsupported(f"{base.name} cannot be tuned on '{suite.name}': {reason}")
    where = ranges(base, suite.recipe_of(Contender(base.name)).learning_rate)
    if not where:
        raise Unsupported(f"{base.name} trains nothing and declares no range to search; there is nothing to tune.")
    values = [{}, *suggestions(where, trials - 1, derive(seed, "tune"))]
    cells = _cells(suite, stream, base, kind.fingerprint, values, seed, device)
    room = Store.create(store.root / "tuning")
    executors.inline(cells, stream, room, device, reporter)
    found = tuple(_trial(room, number, cell, v) for number, (cell, v) in enumerate(zip(cells, values, strict=True)))
    result = Result(
        suite=suite.name,
        method=base.name,
        seed=seed,
        ranges={name: (mark.low, mark.high, mark.log) for name, mark in where.items()},
        trials=found,
        best=_best(found, base.name),
        summary_path=room.root / "searches" / suite.name / f"{base.name}-seed{seed}.json",
    )
    _write_summary(result, cells[0].suite_protocol.suite_hash)
    return result


def _cells(
    suite: Suite,
    stream: Stream,
    base: Method,
    fingerprint: str,
    values: Sequence[Mapping[str, float]],
    seed: int,
    device: torch.device,
) -> list[Cell]:
    rows, recipe = [], suite.recipe_of(Contender(base.name))
    for changed in values:
        method = type(base)(**{**base.model_dump(), **changed})
        rows.append(Row(method, ", ".join(f"{name}={value:g}" for name, value in changed.items()), fingerprint, recipe))
    kind = "cuda" if device.type == "cuda" else "cpu"
    judged = {"scored_on": "validation"}
    return [
        replace(
            cell,
            protocol=cell.protocol.model_copy(update=judged),
            suite_protocol=cell.suite_protocol.model_copy(update=judged),
        )
        for cell in plan.cells(suite, stream, rows, [seed], 0, kind)
    ]


def _trial(room: Store, number: int, cell: Cell, values: Mapping[str, float]) -> Trial:
    record, problem = room.cell(cell.suite.name, cell.method.name, cell.key).read()
    if record is None:
        raise ClbenchError(problem or f"trial {number} left no record in '{room.root}'; run the search again.")
    return Trial(number, values, cell.key, _score(record), record.reason)


def _score(record: Record) -> float | None:
    if record.status != "done":
        return None
    value = metrics.average_accuracy(record.scores)
    return value if isinstance(value, float) else None


def _best(trials: Sequence[Trial], method: str) -> Trial:
    scored = [(trial.score, trial) for trial in trials if trial.score is not None]
    if not scored:
        raise ClbenchError(f"all {len(trials)} trials of {method} failed; the first: {trials[0].reason}")
    return max(scored, key=lambda pair: pair[0])[1]


def _write_summary(result: Result, protocol_hash: str) -> None:
    summary = {
        "suite": result.suite,
        "method": result.method,
        "seed": result.seed,
        "budget_trials": len(result.trials),
        "scored_on": "validation",
        "protocol_hash": protocol_hash,
        "ranges": result.ranges,
        "best": result.best.number,
        "line": result.line,
        "trials": [asdict(trial) for trial in result.trials],
    }
    write_atomically(result.summary_path, (json.dumps(summary, indent=1) + "\n").encode())


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
