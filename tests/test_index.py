"""The index gives the list that the records give, however old, torn or foreign it is."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clbench import index
from clbench.cli import app
from clbench.record import Record
from clbench.store import CellFolder, Store

LONG_AGO = 1_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path)
    for number in range(6):
        put(made, f"k{number}", seed=number, suite=("glyphs", "digits")[number % 2])
    return made


def put(store: Store, key: str, **changes: Any) -> CellFolder:
    record = Record.example(key=key, **changes)
    folder = store.cell(record.suite, record.method, key)
    folder.save(record, {})
    return folder


def settle(store: Store) -> None:
    """As if all records had been there for long when the index was written."""
    for path in store.root.glob("runs/*/*/*/record.json"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    os.utime(index._path(store), (2**31, 2**31))


def plain(store: Store) -> list[dict[str, Any]]:
    return [index.line(record) for record in store.load().records]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    read = CellFolder.read

    def counted(folder: CellFolder) -> tuple[Record | None, str | None]:
        reads.append(folder.path)
        return read(folder)

    monkeypatch.setattr(CellFolder, "read", counted)
    return reads


def indexed(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An index of which everything is trusted; returns the list of what is read from now on."""
    monkeypatch.setattr(index, "_marks", without_changes_of_the_inode(index._marks))
    index.lines(store)
    settle(store)
    index.lines(store)
    settle(store)
    return count_reads(monkeypatch)


def without_changes_of_the_inode(marks: Callable[[Path], list[int] | None]) -> Callable[[Path], list[int] | None]:
    """No test can set that time back."""

    def older(path: Path) -> list[int] | None:
        found = marks(path)
        return found and [found[0], LONG_AGO * 10**9, *found[2:]]

    return older


def test_a_fresh_index_spares_reading(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = indexed(store, monkeypatch)
    assert index.lines(store) == (plain(store), [])
    assert reads == []


def test_the_list_of_runs_is_that_of_the_records(store: Store) -> None:
    first = CliRunner().invoke(app, ["list", "runs", "--format", "json", "--store", str(store.root)])
    again = CliRunner().invoke(app, ["list", "runs", "--format", "json", "--store", str(store.root)])
    assert first.stdout == again.stdout
    assert [(run["key"], run["accuracy"]) for run in json.loads(again.stdout)] == [
        (record.key, 70.0) for record in store.load().records
    ]


def _another_score(store: Store) -> None:
    put(store, "k2", seed=2, suite="glyphs", scores=((None, None), (1.0, None), (0.1, 0.1)))


def _same_size(store: Store) -> None:
    path = store.cell("digits", "plain", "k3").record_path
    path.write_text(path.read_text().replace("0.5", "0.4"))
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))


CHANGES: dict[str, Callable[[Store], object]] = {
    "a new record": lambda store: put(store, "k9"),
    "a record done anew": _another_score,
    "a record of equal length": _same_size,
    "a record that went": lambda store: store.cell("digits", "plain", "k1").record_path.unlink(),
    "a record torn": lambda store: store.cell("digits", "plain", "k1").record_path.write_text("{"),
    "a record renamed": lambda store: (store.root / "runs/digits/plain/k1").rename(store.root / "runs/digits/plain/k7"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_stale_index_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    reads = indexed(store, monkeypatch)
    CHANGES[how](store)
    assert index.lines(store) == (plain(store), store.load().problems)
    reads.clear()
    kept = json.loads(index._path(store).read_bytes())["lines"]
    assert [line for _, line in kept.values()] == plain(store)
    assert index.lines(store) == (plain(store), store.load().problems)
    assert len(reads) <= 1  # what is no good is looked at each time


def test_what_was_written_just_before_the_index_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states of a file may have the same time."""
    index.lines(store)
    reads = count_reads(monkeypatch)
    index.lines(store)
    assert len(reads) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"head": 1}',
        b"[" * 10**5,
        b'{"head": %s, "lines": 3}',
        b'{"head": %s, "lines": {"a": 1}}',
    ],
)
def test_an_index_that_is_no_good_is_made_anew(store: Store, content: bytes) -> None:
    index._path(store).write_bytes(content.replace(b"%s", json.dumps(index.HEAD).encode()))
    assert index.lines(store) == (plain(store), [])
    assert len(json.loads(index._path(store).read_bytes())["lines"]) == 6


def test_an_index_of_another_version_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = indexed(store, monkeypatch)
    monkeypatch.setattr(index, "HEAD", {**index.HEAD, "clbench": "99"})
    assert index.lines(store) == (plain(store), [])
    assert len(reads) == 6


def test_a_store_that_can_only_be_read_is_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**words: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("clbench.files.tempfile.mkstemp", refuse)
    assert index.lines(store) == (plain(store), [])
    assert not index._path(store).exists()


def test_a_copied_run_counts_once(store: Store) -> None:
    twice = store.root / "runs" / "letters" / "plain" / "k1"
    twice.mkdir(parents=True)
    (twice / "record.json").write_bytes(store.cell("digits", "plain", "k1").record_path.read_bytes())
    for _ in range(2):
        lines, (problem,) = index.lines(store)
        assert len(lines) == 6
        assert "repeats the cell" in problem


def test_two_writers_and_a_reader_at_once(store: Store) -> None:
    """Whatever is read in between was true of some moment, and in the end everything is there."""
    failures: list[BaseException] = []

    def write(start: int) -> None:
        try:
            for number in range(start, start + 20):
                put(store, f"w{number}", seed=number)
                index.lines(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(100 * i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        lines, bad = index.lines(store)
        assert bad == []
        assert len({line["key"] for line in lines}) == len(lines)
    for thread in threads:
        thread.join()
    assert failures == []
    assert index.lines(store) == (plain(store), [])
    assert len(plain(store)) == 46


def test_tables_do_not_know_the_index(store: Store) -> None:
    words = ["table", "glyphs", "--format", "csv", "--store", str(store.root)]
    before = CliRunner().invoke(app, words).stdout
    assert "plain" in before
    index._path(store).write_text(json.dumps({"head": index.HEAD, "lines": {}}))
    assert CliRunner().invoke(app, words).stdout == before
