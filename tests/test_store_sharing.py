"""Cells on one device know of each other, and of no dead one."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from clbench import files
from clbench import store as stores
from clbench.processes import Process
from clbench.store import Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path)


def test_cells_on_one_device_know_of_each_other(store: Store) -> None:
    with store.running("k1", "cpu"):
        assert not store.others_running("k1", "cpu")
        with store.running("k2", "cuda:0"):
            assert not store.others_running("k1", "cpu")
        with store.running("k3", "cpu"):
            assert store.others_running("k1", "cpu")
            assert store.others_running("k3", "cpu")
    with store.running("k1", "cpu"):
        assert not store.others_running("k1", "cpu")
    assert list((store.root / "runs" / ".running").iterdir()) == []


def test_an_overlap_is_not_forgotten_when_it_ends(store: Store) -> None:
    with store.running("k1", "cpu"):
        with store.running("k2", "cpu"):
            pass
        assert store.others_running("k1", "cpu")


def test_who_ends_while_being_marked_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = store.root / "runs" / ".running", contextlib.ExitStack()

    touch = stores._touch

    def late(path: Path) -> None:
        if path.name == "k1.shared":
            first.close()  # k1 was seen running and is gone before its mark is made
        touch(path)

    first.enter_context(store.running("k1", "cpu"))
    monkeypatch.setattr(stores, "_touch", late)
    with store.running("k2", "cpu"):
        assert [path.name for path in folder.glob("k1.*")] == []
        assert store.others_running("k2", "cpu")
    assert list(folder.iterdir()) == []


def test_a_dead_process_contends_with_nobody(store: Store) -> None:
    def die_running() -> None:
        with store.running("k1", "cpu"):
            os.kill(os.getpid(), 9)

    process = FORK.Process(target=die_running)
    process.start()
    process.join()
    file = store.root / "runs" / ".running" / "k1.json"
    assert file.exists()
    with store.running("k2", "cpu"):
        assert not store.others_running("k2", "cpu")
    assert not file.exists()


def test_what_one_left_who_was_killed_while_writing_is_removed_by_the_next_at_the_cell(store: Store) -> None:
    folder = store.root / "runs" / ".running"
    folder.mkdir()
    for name in (".k1.json.abc.tmp", ".k2.json.abc.tmp"):
        (folder / name).write_text("half")
    with store.running("k1", "cpu"):
        pass
    assert [path.name for path in folder.iterdir()] == [".k2.json.abc.tmp"]


def test_old_temporary_files_of_a_store_go_and_young_ones_stay(tmp_path: Path) -> None:
    Store.create(tmp_path)
    old, young = tmp_path / "runs" / ".old.tmp", tmp_path / "runs" / ".young.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    Store.create(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": 1, "pid": "x", "began": "", "device": "cpu"}'])
def test_a_torn_note_of_a_running_cell_is_ignored(store: Store, content: str) -> None:
    files.write_atomically(store.root / "runs" / ".running" / "k1.json", content.encode())
    with store.running("k2", "cpu"):
        assert not store.others_running("k2", "cpu")


def test_another_machines_processes_are_its_own(store: Store) -> None:
    note = {**Process.here().facts(), "host": "another", "device": "cpu"}
    path = store.root / "runs" / ".running" / "k1.json"
    files.write_atomically(path, json.dumps(note).encode())
    with store.running("k2", "cpu"):
        assert not store.others_running("k2", "cpu")
    assert path.exists()
