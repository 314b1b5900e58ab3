"""A worker plans the same cells from words, does those that it is told, and answers for each."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clbench import catalog, plan, worker
from clbench.compare import Request
from clbench.executors.here import folder_of
from clbench.executors.wire import mark
from clbench.job import Job
from clbench.record import Record
from clbench.store import Store

SUITE = catalog.suite("tiny")
(CELL,) = plan.cells(SUITE, SUITE.stream(), catalog.rows(SUITE, ["ncm"], {}), [3], 0, "cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "argv", ["clbench"])
    request = Request(suite="tiny", methods=("ncm",), seeds=(3,), device="cpu")
    return Job(request=vars(request), store=str(tmp_path), device="cpu", threads=1, told=("run", "tiny"))


def said(job: Job, *orders: tuple[str, str]) -> list[dict[str, Any]]:
    channel = io.StringIO()
    worker.work(Job.loaded(job.dumped()), orders, channel)
    return [json.loads(line) for line in channel.getvalue().splitlines()]


def test_it_does_a_cell_once(job: Job) -> None:
    first, again = said(job, (CELL.key, "-"), (CELL.key, "-")), said(job, (CELL.key, "-"))
    record, _ = folder_of(Store(Path(job.store)), CELL).read()
    assert record is not None
    assert record.status == "done"
    assert record.origin.command == "clbench run tiny"
    answers = [line for line in first if line["event"] in ("made", "elsewhere")]
    assert [(line["event"], line["mark"]) for line in answers] == [("made", mark(record)), ("elsewhere", mark(record))]
    assert [line["event"] for line in first][:2] == ["taken", "started"]
    assert [line["event"] for line in again] == ["taken", "elsewhere"]
    assert {line["cell"] for line in first} == {CELL.key}


def test_it_answers_for_a_cell_that_another_process_holds(job: Job) -> None:
    folder = folder_of(Store.create(Path(job.store)), CELL)
    with folder.lock() as mine:
        assert mine
        assert [line["event"] for line in said(job, (CELL.key, "-"))] == ["taken", "held"]


def test_an_old_failure_is_replaced_and_a_new_one_is_not(job: Job) -> None:
    folder = folder_of(Store.create(Path(job.store)), CELL)
    failed = Record.example(key=CELL.key, suite="tiny", method="ncm", status="failed", reason="x", scores=(), costs=())
    folder.save(failed, {})
    assert said(job, (CELL.key, "-"))[-1] == {"event": "elsewhere", "cell": CELL.key, "mark": mark(failed)}
    assert said(job, (CELL.key, mark(failed)))[-1]["event"] == "made"


def test_what_it_cannot_do_it_refuses(job: Job) -> None:
    (_, refused) = said(job, ("0" * 16, "-"))
    assert (refused["event"], refused["cell"]) == ("refused", "0" * 16)
    assert refused["why"].startswith("a worker plans other cells from the same words")
    (_, refused) = said(replace(job, clbench="0.0"), (CELL.key, "-"))
    assert "and the cells were planned by 0.0." in refused["why"]
    (_, refused) = said(replace(job, request={**job.request, "methods": ("nowhere.py:Mine",)}), (CELL.key, "-"))
    assert "no file at 'nowhere.py'" in refused["why"]
