"""Table: the records of one suite and protocol as ranked rows, one per method, variant and device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from clbench import metrics, stats
from clbench.metrics import Undefined
from clbench.protocol import METHOD_TERMS, digest
from clbench.record import UNKNOWN, Record, TaskCosts
from clbench.remarks import remarks, unfinished
from clbench.row import Number, Row, row_label
from clbench.stats import Outcomes, Spread, spread

# Overhead needs one method whose step is the plain training step that all others extend. This is the one place of
# the harness that names it; every function takes another as `reference`.
REFERENCE_METHOD = "seqlora"

MIB = 2**20
UNSHOWN = (*METHOD_TERMS, "data", "marks")
"""Terms that do not tell tables apart: rows may differ in them, or their words stand elsewhere."""

Run = tuple[int, int]
"""Order seed and initialisation seed: what pairs the runs of two methods."""
Exam = tuple[str, int, str]
"""Suite, order seed and suite hash: what the rows of one table share."""
ReadOutcomes = Callable[[Record], Outcomes | None]


@dataclass(frozen=True)
class Table:
    """Rows of one suite and one protocol hash: ranked ones first, then stale, failed, unsupported and missing ones."""

    suite: str
    suite_hash: str
    backbone: str
    tasks: int
    score_name: str
    reference: str
    rows: tuple[Row, ...]
    footnotes: tuple[tuple[str, str], ...]
    """(mark, words) in order of the marks."""
    differs: str
    """Where the protocol differs from the suite's other tables: 'order_seed 1'; '' for the only table."""
    untested: str
    """Which rows no paired test covers, and why; '' for none."""
    seeds_missing: str
    """Which rows lack a seed that others have: 'ewc: 1, 2; joint: 2'; '' for none."""
    notices: tuple[str, ...] = ()
    """What must be read with every number, and the floor and the invalid answers, where those were asked."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of its rows."""
        return tuple(sorted({row.device for row in self.rows if row.device}))


@dataclass(frozen=True)
class Group:
    """The runs behind one row."""

    records: tuple[Record, ...]
    stale: bool
    left_out: int
    """How many stale runs newer ones replace."""

    @cached_property
    def done(self) -> tuple[Record, ...]:
        """The finished ones."""
        return tuple(record for record in self.records if record.status == "done")

    @property
    def label(self) -> str:
        """The method, with its variant in brackets."""
        return row_label(self.records[0].method, self.records[0].variant)

    @property
    def device(self) -> str:
        """The device's name, and the precision unless float32."""
        origin = self.records[0].origin
        plain = origin.precision in ("float32", UNKNOWN)
        return origin.device if plain else f"{origin.device}, {origin.precision}"

    @property
    def status(self) -> Literal["done", "stale", "failed", "unsupported"]:
        """Of the row."""
        if self.stale:
            return "stale"
        if self.done:
            return "done"
        return "failed" if any(record.status == "failed" for record in self.records) else "unsupported"


def make_tables(
    records: Iterable[Record],
    *,
    stale: Collection[str] = (),
    outcomes: ReadOutcomes = lambda record: None,
    reference: str = REFERENCE_METHOD,
) -> tuple[Table, ...]:
    """One table per suite and protocol hash, in a stable order.

    `stale` are keys of records whose method has changed since; they are never averaged with fresh ones. `outcomes`
    reads what a run answered per example (see `stats`), None where that was not kept. `reference` is the method
    (without variant) that overheads are relative to.
    """
    made = exams(records, stale)
    return tuple(_table(groups, outcomes, reference, _differs(exam, made)) for exam, groups in made.items())


def exams(records: Iterable[Record], stale: Collection[str] = ()) -> dict[Exam, list[Group]]:
    """The runs behind the rows of every table, exams in order; `stale` as in `make_tables`."""
    sorted_out: dict[Exam, list[Record]] = defaultdict(list)
    for record in records:
        sorted_out[record.suite, record.order_seed, record.suite_hash].append(record)
    order = sorted(sorted_out, key=lambda exam: (exam[0], bool(sorted_out[exam][0].system), exam))
    return {exam: _groups(sorted_out[exam], frozenset(stale)) for exam in order}


def run_of(record: Record) -> Run:
    """What pairs a run with another method's."""
    return record.order_seed, record.seed


def labels(groups: Sequence[Group]) -> list[str]:
    """A name for each row, with the device where they are of several."""
    several = len({group.device for group in groups}) > 1
    return [f"{group.label} on {group.device}" if several else group.label for group in groups]


def _table(groups: Sequence[Group], outcomes: ReadOutcomes, reference: str, differs: str) -> Table:
    rows = [_row(group, _overhead(group, groups, reference)) for group in groups]
    rows, untested = _ranked(rows, groups, outcomes)
    rows.sort(key=_place)
    rows, footnotes = _marked(rows)
    first = groups[0].records[0]
    return Table(
        suite=first.suite,
        suite_hash=first.suite_hash,
        backbone=str(first.suite_protocol.get("backbone", "")),
        tasks=len(first.tasks),
        score_name=first.score_name,
        reference=reference,
        rows=tuple(rows),
        footnotes=footnotes,
        differs=differs,
        untested=untested,
        seeds_missing=_seeds_missing(groups),
        notices=(*first.suite_protocol.get("marks", ()), *_floor(groups), *_invalid(groups)),
    )


def _floor(groups: Sequence[Group]) -> list[str]:
    """What a constant answer scores, see `Record.floors`, mean over tasks, where that was asked."""
    floors = next((record.floors for group in groups for record in group.done if record.floors), ())
    return [f"floor: a constant answer scores {100 * fmean(floors):.1f} %"] if floors else []


def _invalid(groups: Sequence[Group]) -> list[str]:
    """The share of invalid answers after the last task, of each row that was asked for it: mean over tasks and seeds.

    >>> answered = Record.example(other_scores={"invalid": ((None, None), (0.0, None), (0.5, 0.0))})
    >>> _invalid([Group((answered,), stale=False, left_out=0)])
    ['answers without the form of one after the last task: plain 25.0 %']
    """
    shares = {}
    for group in groups:
        last = [record.other_scores["invalid"][-1] for record in group.done if "invalid" in record.other_scores]
        found = [share for row in last for share in row if share is not None]
        if found:
            shares[group.label] = f"{group.label} {100 * sum(found) / len(found):.1f} %"
    return [f"answers without the form of one after the last task: {', '.join(shares.values())}"] if shares else []


def _seeds_missing(groups: Sequence[Group]) -> str:
    finished = [group for group in groups if group.status == "done"]
    seeds = {group.device: {r.seed for g in finished if g.device == group.device for r in g.done} for group in finished}
    lacking = {
        label: sorted(seeds[group.device] - {r.seed for r in group.done})
        for label, group in zip(labels(finished), finished, strict=True)
    }
    return "; ".join(f"{label}: {', '.join(map(str, those))}" for label, those in lacking.items() if those)


def _differs(exam: Exam, made: Mapping[Exam, Sequence[Group]]) -> str:
    """The protocol terms, and their values here, that vary between the tables of one suite, imported ones aside."""
    firsts = [groups[0].records[0] for key, groups in made.items() if key[0] == exam[0]]
    mine, system = made[exam][0].records[0].suite_protocol, made[exam][0].records[0].system
    if system:
        return ", ".join(filter(None, (f"imported from {system}", mine.get("setting"))))
    cards = [first.suite_protocol for first in firsts if not first.system]
    terms = [term for term in mine if term not in UNSHOWN and any(c.get(term) != mine[term] for c in cards)]
    return ", ".join(f"{term} {mine[term] if term == 'backbone' else str(mine[term])[:12]}" for term in terms)


def _groups(records: Sequence[Record], stale: Collection[str]) -> list[Group]:
    """Runs of equal method, settings and device; stale ones only where there is no fresh one."""
    cells: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r in records:
        cells[r.method, r.variant, r.origin.device, r.origin.precision, digest([r.params, r.recipe])].append(r)
    groups = []
    for _, cell in sorted(cells.items()):
        fresh = [record for record in cell if record.key not in stale]
        newest = max(cell, key=lambda record: record.origin.started).fingerprint
        chosen = fresh or [record for record in cell if record.fingerprint == newest]
        groups.append(Group(_one_per_run(chosen), not fresh, len(cell) - len(chosen)))
    return groups


def _one_per_run(records: Sequence[Record]) -> tuple[Record, ...]:
    """The best record of each run: a finished one before a failed one, then the latest."""
    runs: dict[Run, Record] = {}
    for record in sorted(records, key=lambda r: (r.status == "done", r.origin.started)):
        runs[run_of(record)] = record
    return tuple(runs[run] for run in sorted(runs))


def _row(group: Group, overhead: Number) -> Row:
    first, reason = group.records[0], unfinished(group.records)
    if group.stale:
        reason = "; ".join(filter(None, (reason, "the method's source has changed since")))

    def over_seeds(read: Callable[[Record], Number], scale: float = 1.0) -> Spread:
        if not group.done:
            return Spread(Undefined(reason), Undefined(reason), 0)
        values = [read(record) for record in group.done]
        return spread([value if isinstance(value, Undefined) else scale * value for value in values])

    def cost(read: Callable[[tuple[TaskCosts, ...]], Number]) -> Spread:
        return over_seeds(lambda r: read(r.costs) if r.costs else Undefined("no costs recorded"))

    accuracy = over_seeds(_average, 100)
    incremental = over_seeds(_incremental, 100)
    forgetting = over_seeds(lambda r: metrics.forgetting(r.scores), 100)
    bwt = over_seeds(lambda r: metrics.bwt(r.scores), 100)
    seconds = cost(lambda costs: sum(c.train_seconds for c in costs))
    parameters = cost(lambda costs: max(c.trainable_parameters for c in costs)).mean
    return Row(
        suite=first.suite,
        protocol=first.suite_hash,
        method=first.method,
        variant=first.variant,
        n_seeds=len(group.done),
        avg_accuracy_mean=accuracy.mean,
        avg_accuracy_std=accuracy.std,
        avg_accuracy_pooled_mean=over_seeds(_pooled, 100).mean,
        avg_incremental_accuracy_mean=incremental.mean,
        avg_incremental_accuracy_std=incremental.std,
        learning_accuracy_mean=over_seeds(lambda r: metrics.learning_accuracy(r.scores), 100).mean,
        forgetting_mean=forgetting.mean,
        forgetting_std=forgetting.std,
        bwt_mean=bwt.mean,
        bwt_std=bwt.std,
        bwt_trace_mean=over_seeds(lambda r: metrics.bwt_trace(r.scores), 100).mean,
        bwt_treelora_mean=over_seeds(lambda r: metrics.bwt_treelora(r.scores), 100).mean,
        router_accuracy_mean=over_seeds(_router_accuracy, 100).mean,
        train_seconds_mean=seconds.mean,
        train_seconds_std=seconds.std,
        train_seconds_per_sample=cost(_seconds_per_sample).mean,
        overhead=overhead,
        eval_seconds_mean=cost(lambda costs: sum(c.eval_seconds for c in costs)).mean,
        peak_memory_mib=cost(lambda costs: max(c.peak_memory_mib for c in costs)).mean,
        trainable_parameters=parameters if isinstance(parameters, Undefined) else round(parameters),
        stored_mib=cost(lambda costs: costs[-1].stored_bytes / MIB).mean,
        flops_per_step=cost(_flops).mean,
        device=group.device,
        epochs_differ=any(r.protocol.get("epochs") != r.suite_protocol.get("epochs") for r in group.done),
        marks=tuple(remarks(group.records, stale=group.stale, left_out=group.left_out)),
        status=group.status,
        reason=reason,
        rank=Undefined("not ranked"),
        tied_with=(),
    )


def _average(record: Record) -> Number:
    found, stated = metrics.average_accuracy(record.scores), record.stated
    if isinstance(found, Undefined) and "average" in stated:
        return stated["average"][-1]
    if isinstance(found, Undefined) and "pooled" in stated:
        return Undefined(f"no score of each task; over all samples {100 * stated['pooled'][-1]:.2f} %")
    return found


def _incremental(record: Record) -> Number:
    found, stated = metrics.average_incremental_accuracy(record.scores), record.stated.get("average", ())
    return fmean(stated) if isinstance(found, Undefined) and stated else found


def _pooled(record: Record) -> Number:
    stated = record.stated.get("pooled", ())
    return stated[-1] if stated else metrics.average_accuracy_pooled(record.scores, record.test_sizes)


def _router_accuracy(record: Record) -> Number:
    last = record.router_accuracy[-1] if record.router_accuracy else None
    return Undefined("infers no task") if last is None else last


def _seconds_per_sample(costs: Sequence[TaskCosts]) -> Number:
    samples = sum(cost.train_samples for cost in costs)
    return sum(cost.train_seconds for cost in costs) / samples if samples else Undefined("no timed training samples")


def _flops(costs: Sequence[TaskCosts]) -> Number:
    counted = [cost.flops_per_step for cost in costs if cost.flops_per_step is not None]
    return sum(counted) / len(counted) if len(counted) == len(costs) else Undefined("FLOPs were not counted")


def _overhead(group: Group, groups: Sequence[Group], reference: str) -> Number:
    """Mean over common seeds of the seconds per sample relative to the reference's, on one device."""
    if group.stale or not group.done:
        return Undefined(group.status)
    recipe = group.records[0].recipe
    others = [
        other
        for other in groups
        if other.done and not other.stale and other.done[0].method == reference and _plain(other.done[0].variant)
        if other.device == group.device
    ]
    if not others:
        return Undefined(f"no finished run of {reference} on this device")
    other = max(others, key=lambda other: other.records[0].recipe == recipe)
    mine, theirs = _uncontended(group), _uncontended(other)
    if not mine or not theirs:
        return Undefined(f"no timed run of {'it' if theirs else reference} that had the device to itself")
    ratios = [mine[run] / theirs[run] for run in mine if theirs.get(run, 0.0) > 0]
    return sum(ratios) / len(ratios) if ratios else Undefined(f"no seed and thread count in common with {reference}")


def _plain(variant: str) -> bool:
    """Whether only the recipe was changed, if anything: the method's own settings are its defaults."""
    return all(word.startswith("recipe.") for word in variant.split(", ") if word)


def _uncontended(group: Group) -> dict[tuple[Run, int], float]:
    """Seconds per sample of the runs that had the device to themselves, by run and thread count."""
    timed = {(run_of(r), r.origin.threads): _seconds_per_sample(r.costs) for r in group.done if not r.contended}
    return {run: seconds for run, seconds in timed.items() if not isinstance(seconds, Undefined)}


def _ranked(rows: Sequence[Row], groups: Sequence[Group], outcomes: ReadOutcomes) -> tuple[list[Row], str]:
    """The rows with rank and ties, and in words which rows could not be tested."""
    means = {i: row.avg_accuracy_mean for i, row in enumerate(rows) if row.status == "done"}
    finished = {i: mean for i, mean in means.items() if not isinstance(mean, Undefined)}
    places = list(finished)
    tests = stats.paired_tests([answers_of(groups[i], outcomes) for i in places])
    ties = {pair: stats.tied(p) for pair, p in tests.items()}
    answer = list(rows)
    names = labels([groups[i] for i in places])
    for j, (i, rank) in enumerate(zip(places, stats.rank(list(finished.values()), ties), strict=True)):
        equals = tuple(names[k] for k in range(len(places)) if ties.get((min(j, k), max(j, k)), False))
        answer[i] = replace(rows[i], rank=rank, tied_with=equals)
    failures: dict[str, list[str]] = defaultdict(list)
    for j, label in enumerate(names):
        mine = [p for pair, p in tests.items() if j in pair]
        why = [p.reason for p in mine if isinstance(p, Undefined)]
        if why and len(why) == len(mine):
            failures[why[0]].append(label)
    return answer, "; ".join(f"{', '.join(these)}: {why}" for why, these in failures.items())


def answers_of(group: Group, outcomes: ReadOutcomes) -> dict[Run, Outcomes]:
    """What the finished runs of a row answered, where that was kept."""
    return {run_of(record): kept for record in group.done if (kept := outcomes(record)) is not None}


def _place(row: Row) -> tuple[Any, ...]:
    """Sort key: rank, accuracy, then the rows without them by status and name."""
    status = ("done", "stale", "failed", "unsupported", "missing").index(row.status)
    rank = row.rank if isinstance(row.rank, int) else 0
    accuracy = 0.0 if isinstance(row.avg_accuracy_mean, Undefined) else row.avg_accuracy_mean
    return status, rank, -accuracy, row.label, row.device


def _marked(rows: Sequence[Row]) -> tuple[list[Row], tuple[tuple[str, str], ...]]:
    """Replace each row's remarks by letters, equal remarks by the same one."""
    words = list(dict.fromkeys(text for row in rows for text in row.marks))
    letters = {text: _letter(i) for i, text in enumerate(words)}
    marked = [replace(row, marks=tuple(letters[text] for text in row.marks)) for row in rows]
    return marked, tuple((letter, text) for text, letter in letters.items())


def _letter(i: int) -> str:
    """Marks in order: a to z, aa, ab, and so on."""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
