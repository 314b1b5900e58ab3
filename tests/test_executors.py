"""Executors: what counts as missing, and what another process did meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clbench import catalog, executors, plan
from clbench.errors import NotAvailable, UnknownName
from clbench.plan import Cell
from clbench.processes import Process
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.stream import Stream


@pytest.fixture(scope="module")
def cell_and_stream() -> tuple[Cell, Stream]:
    suite = catalog.suite("tiny")
    stream = suite.stream(0)
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, ["ncm"], {}), [0], 0, "cpu")
    return cell, stream


def failed(cell: Cell, reason: str) -> Record:
    return Record.example(
        key=cell.key,
        suite=cell.suite.name,
        method=cell.method.name,
        status="failed",
        reason=reason,
        scores=(),
        costs=(),
    )


def test_a_failed_cell_is_missing_and_done_again(tmp_path: Path, cell_and_stream: tuple[Cell, Stream]) -> None:
    cell, stream = cell_and_stream
    store = Store.create(tmp_path)
    store.cell("tiny", "ncm", cell.key).save(failed(cell, "no luck"), {})
    assert executors.missing([cell], store) == [cell]
    summary = executors.inline([cell], stream, store, torch.device("cpu"))
    assert [record.status for record in summary.made] == ["done"]
    assert executors.missing([cell], store) == []
    again = executors.inline([cell], stream, store, torch.device("cpu"))
    assert again.kept == summary.made
    assert again.made == []


def test_a_failure_that_another_driver_met_meanwhile_is_taken_over(
    tmp_path: Path, cell_and_stream: tuple[Cell, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, stream = cell_and_stream
    store = Store.create(tmp_path)
    theirs = failed(cell, "their luck")
    wait = CellFolder.lock

    def lock_after_them(folder: CellFolder):  # type: ignore[no-untyped-def]
        folder.save(theirs, {})
        return wait(folder)

    monkeypatch.setattr(CellFolder, "lock", lock_after_them)
    summary = executors.inline([cell], stream, store, torch.device("cpu"))
    assert (summary.made, summary.elsewhere, summary.failed) == ([], [theirs], [theirs])


def test_a_cell_that_was_taken_over_while_this_process_stood_still_is_left_to_the_other(
    tmp_path: Path, cell_and_stream: tuple[Cell, Stream]
) -> None:
    cell, stream = cell_and_stream
    store = Store.create(tmp_path)
    folder = store.cell("tiny", "ncm", cell.key)
    theirs = Record.example(key=cell.key, suite="tiny", method="ncm")
    told: list[str] = []

    class Overtaken(executors.Quiet):
        def cell_started(self, cell: Cell) -> None:
            """They take the cell, do it, and let it go."""
            folder.save(theirs, {})
            (folder.path / ".lease-2").write_text(json.dumps({**Process.here().facts(), "state": "free"}))

        def message(self, text: str) -> None:
            told.append(text)

    summary = executors.inline([cell], stream, store, torch.device("cpu"), Overtaken())
    assert (summary.made, summary.elsewhere) == ([], [theirs])
    assert folder.read() == (theirs, None)
    (sentence,) = told
    assert str(folder.path) in sentence


def test_devices_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert executors.choose_device("auto") == torch.device("cpu")
    with pytest.raises(NotAvailable, match="cuda"):
        executors.choose_device("cuda")
    with pytest.raises(UnknownName, match="'gpu'"):
        executors.choose_device("gpu")
