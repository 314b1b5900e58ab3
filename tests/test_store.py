from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from clbench import files
from clbench.errors import StoreError
from clbench.lease import LeaseLost
from clbench.record import SCHEMA, Record
from clbench.store import CellFolder, Store

OUTCOMES = {"labels": np.arange(40, dtype=np.int32), "round_1": np.zeros(40, dtype=np.int32)}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path)


def put(store: Store, key: str, **changes: Any) -> CellFolder:
    record = Record.example(key=key, **changes)
    folder = store.cell(record.suite, record.method, key)
    folder.save(record, OUTCOMES)
    return folder


def elsewhere(act: Callable[[], None]) -> None:
    """Do something in another process, which ends at once and without cleaning up."""

    def child() -> None:
        act()
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    process.join()


# one cell


def test_a_saved_record_and_its_outcomes_come_back(store: Store) -> None:
    put(store, "k1")
    loaded = store.load("digits")
    assert loaded.problems == []
    assert loaded.records == [Record.example(key="k1")]
    outcomes = loaded.outcomes(loaded.records[0])
    assert outcomes is not None
    assert {name: array.tolist() for name, array in outcomes.items()} == {
        name: array.tolist() for name, array in OUTCOMES.items()
    }


def test_a_finished_cell_needs_no_checkpoint_and_a_failed_one_keeps_it(store: Store) -> None:
    for key, status in (("k1", {}), ("k2", {"status": "failed", "reason": "no memory", "scores": ()})):
        folder = store.cell("digits", "plain", key)
        files.write_atomically(folder.checkpoint_path, b"state")
        put(store, key, **status)
        assert folder.checkpoint_path.exists() is (key == "k2")
    assert not store.cell("digits", "plain", "k1").checkpoint_path.parent.exists()


def test_the_outcomes_are_there_before_the_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says that a cell is done; a process may be killed between the two."""
    folder = store.cell("digits", "plain", "k1")
    written: list[str] = []
    monkeypatch.setattr("clbench.store.write_atomically", lambda path, content: written.append(path.name))
    folder.save(Record.example(key="k1"), OUTCOMES)
    assert written == ["outcomes.npz", "manifest.json", "record.json"]


def test_a_full_disk_keeps_the_old_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(store, "k1")

    def full(handle: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        folder.save(Record.example(key="k1", seed=7), OUTCOMES)
    assert folder.read() == (Record.example(key="k1"), None)
    assert sorted(path.name for path in folder.path.iterdir()) == ["manifest.json", "outcomes.npz", "record.json"]


def test_the_log_has_a_line_an_event(store: Store) -> None:
    folder = store.cell("digits", "plain", "k1")
    folder.log("started", pid=1)
    folder.log("done", reason="é")
    lines = [json.loads(line) for line in (folder.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["started", "done"]
    assert lines[1]["reason"] == "é"


def test_a_log_that_cannot_be_written_is_a_store_error(store: Store) -> None:
    folder = store.cell("digits", "plain", "k1")
    (folder.path / "log.jsonl").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"log\.jsonl"):
        folder.log("started")


# files that are no good

BROKEN = {
    "torn": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "foreign": lambda text: '{"hello": 1}',
    "list": lambda text: "[1, 2]",
    "newer": lambda text: json.dumps({**json.loads(text), "schema_version": SCHEMA + 1}),
    "unknown field": lambda text: json.dumps({**json.loads(text), "colour": "red"}),
    "ragged scores": lambda text: json.dumps({**json.loads(text), "scores": [[None], [1.0]]}),
    "another cell's": lambda text: json.dumps({**json.loads(text), "key": "k9"}),
}
SENTENCE = {
    "torn": "is torn or no JSON",
    "empty": "is torn or no JSON",
    "foreign": "is no record of clbench",
    "list": "is no record of clbench",
    "newer": f"is of schema {SCHEMA + 1}, newer than this clbench reads ({SCHEMA}); update clbench",
    "unknown field": "is damaged at 'colour'",
    "ragged scores": "is damaged",
    "another cell's": "is the record of another cell, k9",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_record_is_reported_and_the_others_load(store: Store, how: str) -> None:
    put(store, "k1")
    bad = put(store, "k2").record_path
    content = BROKEN[how](bad.read_text())
    bad.write_text(content)
    loaded = store.load()
    assert [record.key for record in loaded.records] == ["k1"]
    (problem,) = loaded.problems
    assert str(bad) in problem
    assert SENTENCE[how] in problem
    assert bad.read_text() == content


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_record_makes_room_for_a_new_one(store: Store, how: str) -> None:
    folder = put(store, "k1")
    content = BROKEN[how](folder.record_path.read_text())
    folder.record_path.write_text(content)
    record, problem = folder.read()
    assert record is None
    assert problem is not None
    assert SENTENCE[how] in problem
    aside = folder.set_aside()
    assert aside.read_text() == content
    assert folder.read() == (None, None)
    put(store, "k1")
    assert store.load().problems == []


def test_a_folder_in_the_place_of_a_record_is_reported_and_set_aside(store: Store) -> None:
    folder = store.cell("digits", "plain", "k1")
    folder.record_path.mkdir(parents=True)
    assert "could not be read" in store.load().problems[0]
    folder.set_aside()
    put(store, "k1")
    assert store.load().problems == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not a zip"])
def test_torn_outcomes_are_missing_outcomes(store: Store, content: bytes) -> None:
    outcomes = put(store, "k1").path / "outcomes.npz"
    whole = outcomes.read_bytes()
    loaded = store.load()
    for bad in (content, whole[: len(whole) // 2], whole[:80] + b"\xff" * 40 + whole[120:]):
        outcomes.write_bytes(bad)
        assert loaded.outcomes(loaded.records[0]) is None
    outcomes.unlink()
    assert loaded.outcomes(loaded.records[0]) is None


# the store's folder


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"there is no store at '{tmp_path / 'none'}'"):
        Store.existing(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file where a store's folder should be"):
        Store.existing(tmp_path / "file")
    with pytest.raises(StoreError, match="needs a folder where a file stands"):
        Store.create(tmp_path / "file")


def test_a_store_that_cannot_be_written_says_so_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**kwargs: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(StoreError, match="is not writable"):
        Store.create(tmp_path)


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert store.load().records == []
    assert store.load("digits").records == []
    assert store.load(published=True).records == []


def test_one_suite_or_all(store: Store) -> None:
    put(store, "k1")
    put(store, "k2", suite="glyphs")
    assert [record.key for record in store.load("glyphs").records] == ["k2"]
    assert {record.key for record in store.load().records} == {"k1", "k2"}


def test_two_stores_merge_by_copying(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    put(store, "k1")
    folder = put(other, "k2")
    folder.path.rename(store.cell("digits", "plain", "k2").path)
    loaded = store.load()
    assert {record.key for record in loaded.records} == {"k1", "k2"}
    assert all(loaded.outcomes(record) is not None for record in loaded.records)


# published records


def test_published_records_load_with_their_outcomes(store: Store) -> None:
    path = store.publish(Record.example(key="k1", variant="weight=0.5"), OUTCOMES)
    assert path.parent == store.root / "records" / "digits"
    loaded = store.load("digits", published=True)
    assert loaded.records == [Record.example(key="k1", variant="weight=0.5")]
    assert loaded.outcomes(loaded.records[0]) is not None
    assert loaded.problems == []


def test_publishing_replaces_the_older_record_of_the_same_run_only(store: Store) -> None:
    origin = Record.example().origin
    kept = [
        Record.example(key="k1", seed=1),
        Record.example(key="k2", order_seed=1),
        Record.example(key="k3", params={"weight": 2}, variant="weight=2"),
        Record.example(key="k4", recipe={"epochs": 9}),
        Record.example(key="k5", method="plain-er"),
        Record.example(key="k6", origin=origin.model_copy(update={"device_kind": "cuda"})),
    ]
    for record in [*kept, Record.example(key="old", fingerprint="of an older source")]:
        store.publish(record, OUTCOMES)
    store.publish(Record.example(key="new", suite_hash="of new weights"), OUTCOMES)
    loaded = store.load(published=True)
    assert {record.key for record in loaded.records} == {record.key for record in kept} | {"new"}
    assert len(list((store.root / "records" / "digits").iterdir())) == 2 * (len(kept) + 1)


def test_publishing_again_changes_no_byte(store: Store) -> None:
    path = store.publish(Record.example(), OUTCOMES)
    first = {file: file.read_bytes() for file in path.parent.iterdir()}
    store.publish(Record.example(), OUTCOMES)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == first


def test_publishing_leaves_what_it_cannot_read(store: Store) -> None:
    foreign = store.publish(Record.example(key="k1"), None).with_name("plain-notes.json")
    foreign.write_text("torn")
    store.publish(Record.example(key="k2"), None)
    assert foreign.read_text() == "torn"
    assert [record.key for record in store.load(published=True).records] == ["k2"]


def test_a_copied_record_counts_once(store: Store) -> None:
    path = store.publish(Record.example(key="k1"), None)
    path.with_name("copy.json").write_bytes(path.read_bytes())
    loaded = store.load(published=True)
    assert len(loaded.records) == 1
    assert "repeats the cell" in loaded.problems[0]


# processes


def test_a_cell_is_held_by_one_process_at_a_time(store: Store) -> None:
    folder = store.cell("digits", "plain", "k1")
    with folder.lock() as mine:
        assert mine
        with Store(store.root).cell("digits", "plain", "k1").lock() as theirs:
            assert not theirs
    with Store(store.root).cell("digits", "plain", "k1").lock() as theirs:
        assert theirs


def test_who_stood_still_and_was_followed_writes_nothing_more(store: Store) -> None:
    folder = put(store, "k1")
    with folder.lock() as mine:
        assert mine
        (folder.path / ".lease-2").write_text("")  # another process took it over
        with pytest.raises(LeaseLost, match=r"took .* over"):
            folder.save(Record.example(key="k1", seed=7), OUTCOMES)
    assert folder.read() == (Record.example(key="k1"), None)


def test_a_lock_ends_with_its_process(store: Store, tmp_path: Path) -> None:
    folder = store.cell("digits", "plain", "k1")

    def die_holding() -> None:
        with folder.lock() as mine:
            (tmp_path / "held").write_text(str(mine))
            os.kill(os.getpid(), 9)

    elsewhere(die_holding)
    assert (tmp_path / "held").read_text() == "True"
    with folder.lock() as mine:
        assert mine


def test_who_gets_a_lock_removes_the_rubbish_of_killed_writers(store: Store) -> None:
    folder = put(store, "k1")
    left = [folder.path / ".record.json.ab.tmp", folder.checkpoint_path.parent / ".state.safetensors.cd.tmp"]
    other = store.cell("digits", "plain", "k2").path / ".record.json.ef.tmp"
    for path in [*left, other]:
        files.write_atomically(path, b"half")
    with folder.lock():
        assert not any(path.exists() for path in left)
    assert other.exists()
    assert folder.record_path.exists()


def test_a_folder_that_cannot_be_made_is_a_store_error(store: Store) -> None:
    (store.root / "runs" / "digits").write_text("")
    with pytest.raises(StoreError, match="needs a folder"), store.cell("digits", "plain", "k1").lock():
        pass
