"""Remarks: what must be said beside a row of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from clbench.protocol import METHOD_TERMS
from clbench.record import Record


def remarks(records: Sequence[Record], *, stale: bool, left_out: int) -> Iterator[str]:
    """All remarks on the runs of one row, each a footnote.

    `stale`: the runs were made by an older source of the method; `left_out`: stale runs that newer ones replace.
    """
    done = [record for record in records if record.status == "done"]
    if stale:
        yield "stale: the method's source has changed since these runs"
    if unfinished(records):
        yield unfinished(records)
    if left_out:
        yield f"{left_out} stale {_runs(left_out)} of an older source left out"
    yield from dict.fromkeys(text for record in done if (text := _departures(record)))
    yield from dict.fromkeys(text for record in done if (text := _failed_audit(record)))
    yield from _own_marks(done)
    contended = sum(record.contended for record in done)
    if contended:
        yield f"{contended} of {len(done)} {_runs(len(done))} shared the device with others; not in the overhead"
    threads = sorted({record.origin.threads for record in done if record.origin.device_kind == "cpu"})
    if len(threads) > 1:
        yield f"seconds are of runs with {' and '.join(map(str, threads))} threads"


def unfinished(records: Sequence[Record]) -> str:
    """Which runs of a row were not done, and why; '' where all were.

    >>> unfinished([Record.example(), Record.example(status="failed", reason="loss is not finite")])
    '1 of 2 runs failed: loss is not finite'
    """
    parts = []
    for status in ("failed", "unsupported"):
        these = [record for record in records if record.status == status]
        reasons = dict.fromkeys(record.reason or "no reason recorded" for record in these)
        if these:
            count = f"{len(these)} of {len(records)} runs " if len(these) < len(records) else ""
            parts.append(f"{count}{status}: {', '.join(reasons)}")
    return "; ".join(parts)


def _departures(record: Record) -> str:
    """The method's terms in which a cell's protocol differs from its suite's, in words; '' for none.

    >>> _departures(Record.example(protocol={"epochs": 5, "head_masking": "seen", "buffer_samples": 200}))
    'head_masking seen instead of current; buffer_samples 200 instead of unset'
    """
    mine, suites = record.protocol, record.suite_protocol
    return "; ".join(
        f"{term} {_word(mine.get(term))} instead of {_word(suites.get(term))}"
        for term in METHOD_TERMS
        if mine.get(term) != suites.get(term)
    )


def _failed_audit(record: Record) -> str:
    """What the answers depended on and must not; '' where the audit passed or was not made.

    Task labels may change the answers of a method that declares that it uses them at test.
    """
    audit = record.audit
    if audit is None:
        return ""
    causes = [("the batch they came in", audit.batch_flips)]
    if not record.protocol.get("task_id_at_test", False):
        causes.append(("the task labels", audit.label_flips))
    found = [f"{cause} ({flips} of {audit.samples} changed)" for cause, flips in causes if flips]
    return f"failed audit: answers depend on {' and on '.join(found)}" if found else ""


def _own_marks(records: Sequence[Record]) -> Iterator[str]:
    """What the method itself says of its runs, each sentence once.

    >>> marked = Record.example(marks=("penalty inactive",))
    >>> list(_own_marks([marked])), list(_own_marks([marked, Record.example()]))
    (['penalty inactive'], ['1 of 2 runs: penalty inactive'])
    """
    counts = Counter(mark for record in records for mark in dict.fromkeys(record.marks))
    for mark, count in counts.items():
        yield mark if count == len(records) else f"{count} of {len(records)} {_runs(len(records))}: {mark}"


def _runs(count: int) -> str:
    return "run" if count == 1 else "runs"


def _word(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
