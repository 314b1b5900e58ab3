"""Remarks: what must be said beside a row."""

from __future__ import annotations

from clbench.record import Record
from clbench.remarks import remarks, unfinished


def said(*records: Record, stale: bool = False, left_out: int = 0) -> list[str]:
    return list(remarks(records, stale=stale, left_out=left_out))


def test_nothing_is_said_of_a_run_as_the_suite_has_it() -> None:
    assert said(Record.example()) == []
    assert unfinished([Record.example()]) == ""


def test_staleness_and_what_was_left_out_come_first() -> None:
    marked = Record.example(marks=("merged",), protocol={**Record.example().protocol, "epochs": 9})
    assert said(marked, stale=True, left_out=2) == [
        "stale: the method's source has changed since these runs",
        "2 stale runs of an older source left out",
        "epochs 9 instead of 5",
        "merged",
    ]


def test_a_mark_says_of_how_many_finished_runs_it_holds() -> None:
    plain, twice = Record.example(), Record.example(marks=("merged", "merged"))
    failed = Record.example(status="failed", reason="x", scores=(), marks=("merged",))
    assert said(twice, plain, plain) == ["1 of 3 runs: merged"]
    assert said(twice, twice) == ["merged"]
    assert said(failed, twice) == ["1 of 2 runs failed: x", "merged"]


def test_a_repeated_deviation_is_named() -> None:
    card = Record.example().protocol
    record = Record.example(protocol={**card, "compat": ["reshape", "votes"]}, suite_protocol={**card, "compat": []})
    assert said(record) == ["compat reshape, votes instead of none"]
