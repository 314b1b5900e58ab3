"""Files of others are data: nothing in them is executed, followed out of the store, or unfolded without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clbench import checkpoint, files, memo, outcomes
from clbench.cli import app
from clbench.errors import ClbenchError, StoreError
from clbench.record import Record
from clbench.store import Store, parse_record

OUTCOMES = {"labels": np.arange(40, dtype=np.int32), "tasks": np.zeros(40, np.int32), "round_1": np.zeros(40, np.int32)}
OUT = ("..", "../up", "a/b", "/etc", "a\\b", "C:x", "", ".", "nul\0", "line\n", "bell\x07")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.path),)  # type: ignore[return-value]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def put(store: Store, key: str = "k1") -> Path:
    folder = store.cell("digits", "plain", key)
    folder.save(Record.example(key=key), OUTCOMES)
    return folder.path


# pickles


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def _npz(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in members.items():
            file.writestr(f"{name}.npy", member)
    return content.getvalue()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert (tmp_path / "gone off").exists()


def test_no_pickle_among_outcomes_is_loaded(store: Store, tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "gone off")] * 40, dtype=object)
    path = put(store) / "outcomes.npz"
    for content in (_npz(labels=_npy(bomb)), pickle.dumps(bomb), _npy(bomb), _npz(labels=pickle.dumps(bomb))):
        path.write_bytes(content)
        loaded = store.load()
        assert loaded.outcomes(loaded.records[0]) is None
        assert loaded.last_outcomes(loaded.records[0]) is None
    assert CliRunner().invoke(app, ["table", "digits", "--store", str(store.root)]).exit_code == 0
    assert CliRunner().invoke(app, ["store", "check", "--store", str(store.root)]).exit_code == 1
    assert not (tmp_path / "gone off").exists()


def test_no_pickle_in_the_place_of_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"a": Bomb(tmp_path / "gone off")}, content)
    for bomb in (content.getvalue(), pickle.dumps(Bomb(tmp_path / "gone off"))):
        with pytest.raises(ValueError, match="no checkpoint"):
            checkpoint.unpack(bomb)
    assert not (tmp_path / "gone off").exists()


def test_no_pickle_in_the_place_of_a_record_is_loaded(store: Store, tmp_path: Path) -> None:
    (put(store) / "record.json").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert "torn or no JSON" in store.load().problems[0]
    assert not (tmp_path / "gone off").exists()


# what unfolds without end


def _header(shape: str, descr: str = "'<i4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


STRANGE: dict[str, bytes] = {
    "a huge shape": _npz(labels=_header("(1000000000000,)")),
    "a shape beyond all numbers": _npz(labels=_header(f"({2**70},)")),
    "a negative shape": _npz(labels=_header("(-1,)") + b"\0" * 160),
    "a deep header": _npz(labels=_header("(" * 3000)),
    "a program for a header": _npz(labels=_header("(__import__('os').getpid(),)")),
    "words": _npz(labels=_npy(np.array(["a"] * 40))),
    "a table": _npz(labels=_npy(np.zeros((4, 10), np.int32))),
    "arrays of two lengths": _npz(labels=_npy(np.zeros(40, np.int32)), tasks=_npy(np.zeros(30, np.int32))),
    "another version of arrays": _npz(labels=_npy(np.zeros(40, np.int32)).replace(b"\x01\x00", b"\x03\x00", 1)),
    "an empty member": _npz(labels=b""),
    "no member": _npz(),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_outcomes_are_none_and_the_table_is_printed(store: Store, what: str) -> None:
    (put(store) / "outcomes.npz").write_bytes(STRANGE[what])
    loaded = store.load()
    assert not loaded.outcomes(loaded.records[0])
    done = CliRunner().invoke(app, ["table", "digits", "--store", str(store.root)])
    assert (done.exit_code, done.exception) == (0, None)
    assert "plain" in done.stdout


def test_outcomes_that_would_fill_the_memory_are_not_unfolded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store) / "outcomes.npz"
    path.write_bytes(_npz(labels=_header("(4000000,)") + bytes(16_000_000)))
    assert path.stat().st_size < 100_000
    assert outcomes.read_outcomes(path) is not None
    monkeypatch.setattr(outcomes, "MOST_BYTES", 10_000_000)
    assert outcomes.read_outcomes(path) is None


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**31)  # holes take no room
    with pytest.raises(OSError, match="more than"):
        files.read_regular(tmp_path / "large")


DEEP = {
    "brackets": "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "notes": json.dumps({**Record.example().model_dump(mode="json"), "notes": {"a": 1}}).replace(
        '{"a": 1}', '{"a":' * 5000 + "1" + "}" * 5000
    ),
    "a number without end": '{"schema_version": ' + "9" * 10_000 + "}",
    "a version that is a boolean": '{"schema_version": true}',
    "NaN": Record.example().model_dump_json().replace("0.5", "NaN"),
    "half a character": Record.example().model_dump_json().replace('"plain"', '"\\ud800"'),
}


@pytest.mark.parametrize("what", DEEP)
def test_a_record_that_means_harm_is_a_sentence(what: str) -> None:
    record, problem = parse_record(DEEP[what].encode(), Path("record.json"))
    assert record is None
    assert problem is not None
    assert problem.startswith("'record.json' is ")


# paths


@pytest.mark.parametrize("name", OUT)
def test_no_name_leads_out_of_a_store(store: Store, name: str) -> None:
    for parts in ((name, "plain", "k1"), ("digits", name, "k1"), ("digits", "plain", name)):
        with pytest.raises(StoreError, match="cannot be the name of a file"):
            store.cell(*parts)
    assert store.load(name).records == [] if name else True
    for field in ("suite", "method", "key"):
        content = {**Record.example().model_dump(mode="json"), field: name}
        record, problem = parse_record(json.dumps(content).encode(), Path("record.json"))
        assert record is None
        assert problem == f"'record.json' is damaged at '{field}'; it is left out."


def test_tables_of_a_suite_outside_are_refused(store: Store, tmp_path: Path) -> None:
    put(Store.create(tmp_path / "other"))
    for word in ("../../other/runs/digits", str(tmp_path / "other" / "runs" / "digits")):
        done = CliRunner().invoke(app, ["table", word, "--store", str(store.root)])
        assert done.exit_code == 2
        assert "no suite called" in done.stderr


def test_a_store_whose_folders_are_links_out_is_neither_read_nor_written(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    put(other)
    before = sorted(path.name for path in other.root.rglob("*"))
    (store.root / "runs").rename(tmp_path / "moved")
    (store.root / "runs").symlink_to(other.root / "runs")
    assert store.load().records == []
    assert "leads out of the store" in store.load().problems[0]
    for act in (
        lambda: store.cell("digits", "plain", "k2"),
        lambda: memo.keep(store, "question", ["k1"]),
        lambda: store.running("k1", "cpu").__enter__(),
    ):
        with pytest.raises(StoreError, match="leads out of the store"):
            act()
    (store.root / "records").symlink_to(other.root)
    with pytest.raises(StoreError, match="leads out of the store"):
        store.publish(Record.example(), None)
    assert sorted(path.name for path in other.root.rglob("*")) == before


def test_a_log_that_is_a_link_is_not_written_through(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    folder = store.cell("digits", "plain", "k1")
    folder.path.mkdir(parents=True)
    (folder.path / "log.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"log\.jsonl"):
        folder.log("started")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["record.json", "outcomes.npz", "manifest.json"])
def test_links_and_pipes_in_the_place_of_files_are_told_and_not_waited_for(store: Store, name: str) -> None:
    path = put(store) / name
    for make in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path), path.mkdir):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        make()
        loaded = store.load()
        assert (loaded.records == []) == (name == "record.json")
        assert all(loaded.outcomes(record) is None for record in loaded.records if name == "outcomes.npz")
        done = CliRunner().invoke(app, ["store", "check", "--store", str(store.root)])
        assert done.exit_code == 1, name
        assert name in done.stderr


# imported results

TRACE = {"eval": {"accuracy": 0.5}, "results": ["A"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results-0-0-A.json", "[" * 200_000),
        ("results-0-0-A.json", '{"eval": {"accuracy": 1' + "0" * 400 + "}}"),
        ("results-0-0-A.json", '{"eval": {"accuracy": NaN}}'),
        ("results-999999999999-0-A.json", json.dumps(TRACE)),
        ("results-0-999999999999-A.json", json.dumps(TRACE)),
        ("results-0-0-A.json", pickle.dumps(TRACE).decode("latin1")),
    ],
)
def test_imported_files_that_mean_harm_are_sentences(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / name).write_text(text, encoding="utf-8")
    words: list[Any] = ["import", "trace", tmp_path / "p", "--method", "m", "--seed", "0", "--store", tmp_path / "s"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "p") in line


@pytest.mark.parametrize("name", ["../../up", "/etc/x", "a/b", "..", "x\n"])
def test_imported_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    from clbench.imports.records import imported

    (tmp_path / "results-0-0-A.json").write_text(json.dumps(TRACE))
    for told in ({"suite": name, "method": "m"}, {"method": name}):
        with pytest.raises(ClbenchError, match="cannot name a"):
            imported("trace", tmp_path, seed=0, **told)
