"""Verify: our figures beside published ones, and in what the protocols differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clbench import metrics
from clbench.errors import BadValue, UnknownName
from clbench.metrics import Scores, Undefined
from clbench.record import Record
from clbench.row import Number, row_label
from clbench.stats import Spread, spread
from clbench.table import Group, exams

if TYPE_CHECKING:
    from clbench.suite import Reference

Fact = str | int | float


@dataclass(frozen=True)
class Measure:
    """A number of a run that is published too."""

    unit: str
    of: Callable[[Record, Scores], Number]
    """From the record and the scores that are asked about; percent or seconds."""


def _percent(formula: Callable[[Scores], Number]) -> Measure:
    def of(record: Record, scores: Scores) -> Number:
        value = formula(scores)
        return value if isinstance(value, Undefined) else 100 * value

    return Measure("%", of)


def _pooled(record: Record, scores: Scores) -> Number:
    value = metrics.average_accuracy_pooled(scores, record.test_sizes)
    return value if isinstance(value, Undefined) else 100 * value


def _seconds(record: Record, scores: Scores) -> Number:
    return sum(cost.train_seconds for cost in record.costs) if record.costs else Undefined("no costs recorded")


MEASURES: Mapping[str, Measure] = {
    "avg_accuracy": _percent(metrics.average_accuracy),
    "avg_accuracy_pooled": Measure("%", _pooled),
    "avg_incremental_accuracy": _percent(metrics.average_incremental_accuracy),
    "forgetting": _percent(metrics.forgetting),
    "bwt": _percent(metrics.bwt),
    "bwt_trace": _percent(metrics.bwt_trace),
    "bwt_treelora": _percent(metrics.bwt_treelora),
    "train_seconds": Measure("s", _seconds),
}
"""As the leaderboard's columns are called, without `_mean`."""

TERMS = (
    *("backbone", "weights", "tasks", "classes of each task", "class order", "validation"),
    *("transform", "normalisation", "head masking"),
    *("epochs", "batch size", "optimiser", "step size", "schedule"),
)
"""What two protocols must share before their numbers can be held against one another."""
IMPLIED: Mapping[str, Fact] = {"weights": "trained"}
"""Terms of every published figure."""
NO_DIFFERENCE = (
    *("epochs", "task_epochs", "batch_size", "optimizer", "learning_rate", "schedule"),  # terms
    *("eval_batch_size", "micro_batch", "checkpointing"),  # only rounding hangs on them
)
"""Fields of the recipe; another that a run has otherwise than its suite is a difference of the protocols by itself."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A published figure beside ours. Numbers are in `unit`; forgetting is positive, transfer signed."""

    suite: str
    reference: Reference
    unit: str
    ours: Number
    std: Number
    n: int
    """Finished runs behind ours."""
    order_seed: int | None
    suite_hash: str
    device: str
    status: Literal["done", "stale", "failed", "unsupported", "missing"]
    protocols: Literal["equal", "equal as far as stated", "differ", "unknown"]
    """`unknown` where there is no run of ours."""
    differences: tuple[str, ...]
    """'epochs 5, published 20'."""
    unstated: tuple[str, ...]
    """Terms that the source leaves open, as far as is known."""

    @property
    def row(self) -> str:
        """The row of ours, the method with its variant in brackets."""
        return row_label(self.reference.method, self.reference.variant)

    @property
    def difference(self) -> Number:
        """Ours minus theirs."""
        return self.ours if isinstance(self.ours, Undefined) else self.ours - self.reference.value

    @property
    def within(self) -> bool | None:
        """Whether ours lies within the tolerance; None where there is nothing to judge."""
        if isinstance(self.difference, Undefined) or self.reference.tolerance is None:
            return None
        return abs(self.difference) <= self.reference.tolerance


def facts(record: Record) -> dict[str, Fact | None]:
    """The terms of a run's protocol as references name them: None where one does not apply, absent if not recorded.

    >>> facts(Record.example())["epochs"]
    5
    """
    card, recipe = record.protocol, record.recipe
    learns, sees = card.get("epochs") != 0, (card.get("transform"), card.get("normalisation")) != ("none", "none")
    found = {
        "backbone": card.get("backbone"),
        "weights": "random" if card.get("weights_sha256") == "random" else None,
        "tasks": len(record.tasks),
        "transform": str(card.get("transform", "")).partition(":")[0] if sees else None,
        "normalisation": card.get("normalisation") if sees else None,
        "head masking": card.get("head_masking") if learns else None,
        "epochs": ",".join(map(str, card.get("task_epochs") or ())) or card.get("epochs"),
        "batch size": card.get("batch_size") if learns else None,
        "optimiser": recipe.get("optimizer") if learns else None,
        "step size": (record.params.get("learning_rate") or recipe.get("learning_rate")) if learns else None,
        "schedule": recipe.get("schedule", "constant") if learns else None,
    }
    said = dict(line.split(": ", 1) for line in card.get("data", ()) if ": " in line)
    found["validation"] = said.get("validation")  # of images alone
    sizes = said.get("classes of each task", "equal")
    uneven = len(set(sizes.split(","))) > 1
    found["classes of each task"] = (sizes if uneven else "equal") if "validation" in said else None
    if "class order" in said:
        found["class order"] = said["class order"] + (f", seed {record.order_seed}" if record.order_seed else "")
    return found


def checks(
    suite: str,
    references: Iterable[Reference],
    records: Iterable[Record],
    *,
    stale: Collection[str] = (),
    everything: bool = True,
) -> list[Check]:
    """Every published figure of `suite` beside each row of ours that it is about, in the references' order.

    A figure without a run is there with the status `missing`. Without `everything`, figures of backbones that none of
    the runs has are left out; all are there where none would be left. `stale` as in `table.make_tables`. Raises
    BadValue for a reference of an unknown metric.
    """
    listed = list(references)
    groups = [group for those in exams((r for r in records if r.suite == suite), stale).values() for group in those]
    run_on = {group.records[0].protocol.get("backbone") for group in groups}
    of_ours = [r for r in listed if r.protocol.get("backbone", None) in {*run_on, None}]
    return [
        check
        for reference in (of_ours if of_ours and groups and not everything else listed)
        for check in _checks(suite, reference, groups)
    ]


def _checks(suite: str, reference: Reference, groups: Sequence[Group]) -> list[Check]:
    if reference.metric not in MEASURES:
        raise BadValue(f"no metric '{reference.metric}' to hold a reference of '{suite}' against; see verify.MEASURES.")
    mine = [group for group in groups if _is_about(reference, group)]
    return [_against(suite, reference, group) for group in mine] or [_missing(suite, reference)]


def _is_about(reference: Reference, group: Group) -> bool:
    """Whether a row is of the reference's method and settings; another recipe is a difference of protocol."""
    first = group.records[0]
    words = [word for word in first.variant.split(", ") if word and not word.startswith("recipe.")]
    return (first.method, ", ".join(words)) == (reference.method, reference.variant)


def _against(suite: str, reference: Reference, group: Group) -> Check:
    ours, first = _ours(reference, group), (group.done or group.records)[0]
    differences, unstated = _compared(reference, facts(first), first.variant)
    agree: Literal["equal", "equal as far as stated"] = "equal as far as stated" if unstated else "equal"
    return Check(
        suite=suite,
        reference=reference,
        unit=MEASURES[reference.metric].unit,
        ours=ours.mean,
        std=ours.std,
        n=ours.n,
        order_seed=first.order_seed,
        suite_hash=first.suite_hash,
        device=group.device,
        status=group.status,
        protocols="differ" if differences else agree,
        differences=differences,
        unstated=unstated,
    )


def _ours(reference: Reference, group: Group) -> Spread:
    if not group.done:
        reason = group.records[0].reason or group.status
        return Spread(Undefined(reason), Undefined(reason), 0)
    measure = MEASURES[reference.metric]

    def value(record: Record) -> Number:
        if reference.score in ("", record.score_name):
            return measure.of(record, record.scores)
        other = record.other_scores.get(reference.score)
        return Undefined(f"not marked '{reference.score}'") if other is None else measure.of(record, other)

    return spread([value(record) for record in group.done])


def _compared(
    reference: Reference, ours: Mapping[str, Fact | None], variant: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In what the protocols differ, in words, and which terms the source leaves open."""
    theirs = {**IMPLIED, **reference.protocol}
    ours = {"class order": "not recorded", **ours}
    differences = [
        f"{term} {ours[term]}, published {value}"
        for term, value in theirs.items()
        if ours[term] is not None and not _same(term, ours[term], value)
    ]
    for word in variant.split(", "):
        field = word.partition("=")[0].removeprefix("recipe.")
        if word.startswith("recipe.") and field not in NO_DIFFERENCE:
            differences.append(f"{word}, otherwise than the suite")
    return tuple(differences), tuple(term for term in TERMS if ours[term] is not None and term not in theirs)


def _same(term: str, mine: Fact | None, theirs: Fact) -> bool:
    if term == "class order" and mine == "coda":
        return theirs in ("coda", "natural")  # CODA-Prompt's code shuffles from its second seed on
    if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(mine, theirs, rel_tol=1e-3)  # printed with three digits
    return str(mine) == str(theirs)


def _missing(suite: str, reference: Reference) -> Check:
    reason = Undefined("no run yet")
    return Check(
        suite=suite,
        reference=reference,
        unit=MEASURES[reference.metric].unit,
        ours=reason,
        std=reason,
        n=0,
        order_seed=None,
        suite_hash="",
        device="",
        status="missing",
        protocols="unknown",
        differences=(),
        unstated=(),
    )


def only(found: Sequence[Check], methods: Collection[str] = (), backbones: Collection[str] = ()) -> list[Check]:
    """Figures of these methods (with or without their variant) and published backbones; empty means all.

    Raises UnknownName for a name that fits nothing.
    """
    for name in methods:
        if not any(name in (check.reference.method, check.row) for check in found):
            raise UnknownName("method with a published figure", name, {check.reference.method for check in found})
    known = {str(check.reference.protocol.get("backbone", "")) for check in found} - {""}
    for name in backbones:
        if name not in known:
            raise UnknownName("backbone with a published figure", name, known)
    return [
        check
        for check in found
        if (not methods or check.reference.method in methods or check.row in methods)
        and (not backbones or check.reference.protocol.get("backbone") in backbones)
    ]
