"""Checking, merging and pruning stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from clbench import files, lease, upkeep
from clbench.cli import app
from clbench.errors import ClbenchError
from clbench.record import Record
from clbench.store import CellFolder, Store

OUTCOMES = {"labels": np.arange(40, dtype=np.int32), "round_1": np.zeros(40, dtype=np.int32)}
FAILED = {"status": "failed", "reason": "no memory", "scores": ()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "other")


def put(store: Store, key: str, **changes: Any) -> CellFolder:
    record = Record.example(key=key, **changes)
    folder = store.cell(record.suite, record.method, key)
    folder.save(record, {} if record.status == "failed" else OUTCOMES)
    folder.log(record.status)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["store", *map(str, words)])


# check


def test_a_whole_store_is_as_it_was_written(store: Store) -> None:
    put(store, "k1")
    put(store, "k2", **FAILED)
    store.publish(Record.example(key="k1"), OUTCOMES)
    tuning = Store.create(store.root / "tuning")
    put(tuning, "k3")
    files.write_atomically(store.cell("digits", "plain", "k4").checkpoint_path, b"state")
    found = upkeep.check(store)
    assert found == upkeep.Check(cells=4, files=5, unlisted=1, unfinished=1)
    done = ask("check", "--store", store.root)
    assert done.exit_code == 0
    assert "4 records, 5 files" in done.stdout
    assert "Nothing is wrong." in done.stdout


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the outcomes": (lambda cell: _flipped(cell / "outcomes.npz"), "outcomes.npz' is not as it was written"),
    "another score": (
        lambda cell: (cell / "record.json").write_text((cell / "record.json").read_text().replace("0.5", "0.6")),
        "record.json' is not as it was written",
    ),
    "a torn record": (lambda cell: os.truncate(cell / "record.json", 200), "record.json' is not as it was written"),
    "no outcomes": (lambda cell: (cell / "outcomes.npz").unlink(), "outcomes.npz' could not be read"),
    "a torn manifest": (lambda cell: os.truncate(cell / "manifest.json", 20), "manifest.json' is torn"),
    "a deep manifest": (lambda cell: (cell / "manifest.json").write_text("[" * 10**5), "manifest.json' is torn"),
    "a manifest of foreign files": (
        lambda cell: (cell / "manifest.json").write_text('{"records": {"a": {"../../../secret": "b"}}}'),
        "no manifest",
    ),
    "another place": (lambda cell: cell.rename(cell.with_name("k9")), "is the record of another cell"),
    "a link": (lambda cell: _linked(cell / "record.json"), "record.json' is a link"),
}


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_not_as_it_was_written_is_named(store: Store, how: str) -> None:
    spoil, sentence = DAMAGE[how]
    put(store, "k1")
    spoil(put(store, "k2").path)
    (wrong,) = upkeep.check(store).wrong
    assert sentence in wrong
    done = ask("check", "--store", store.root)
    assert done.exit_code == 1
    assert wrong in done.stderr
    assert "1 wrong." in done.stdout


def test_a_store_of_before_manifests_is_read_and_that_is_said(store: Store) -> None:
    for key in ("k1", "k2"):
        (put(store, key).path / "manifest.json").unlink()
    done = ask("check", "--store", store.root)
    assert done.exit_code == 0
    assert "2 without a manifest" in done.stdout
    (store.cell("digits", "plain", "k2").path / "outcomes.npz").write_bytes(b"torn")
    assert "outcomes.npz" in upkeep.check(store).wrong[0]


@pytest.mark.parametrize("step", ["outcomes.npz", "manifest.json", "record.json"])
@pytest.mark.parametrize("before", [None, FAILED], ids=["new", "after a failure"])
def test_whoever_is_killed_while_saving_leaves_nothing_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, before: dict[str, Any] | None
) -> None:
    if before:
        put(store, "k1", **before)

    def dying(path: Path, content: bytes) -> None:
        if path.name == step:
            raise KeyboardInterrupt
        files.write_atomically(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("clbench.store.write_atomically", dying)
        with pytest.raises(KeyboardInterrupt):
            put(store, "k1")
    assert upkeep.check(store).wrong == []
    put(store, "k1")
    assert upkeep.check(store) == upkeep.Check(cells=1, files=2)


# merge


def test_merging_copies_what_is_lacking_and_again_copies_nothing(store: Store, other: Store) -> None:
    put(store, "k1")
    put(other, "k1")
    put(other, "k2")
    put(other, "k3", suite="glyphs")
    put(Store.create(other.root / "tuning"), "k4")
    other.publish(Record.example(key="k2"), OUTCOMES)
    files.write_atomically(other.cell("digits", "plain", "k5").checkpoint_path, b"state")
    before = everything(other.root)
    done = ask("merge", other.root, store.root)
    assert done.exit_code == 0, done.output
    assert "4 records copied, 1 already there, 0 not." in done.stdout
    assert "1 cell without a record stay" in done.stdout
    assert everything(other.root) == before
    assert {record.key for record in store.load().records} == {"k1", "k2", "k3"}
    assert [record.key for record in store.load(published=True).records] == ["k2"]
    assert upkeep.check(store).wrong == []
    assert all(store.load().outcomes(record) is not None for record in store.load().records)
    copied = store.cell("glyphs", "plain", "k3").path
    assert (copied / "log.jsonl").read_bytes() == (other.cell("glyphs", "plain", "k3").path / "log.jsonl").read_bytes()
    after = everything(store.root)
    assert "0 records copied, 5 already there, 0 not." in ask("merge", other.root, store.root).stdout
    assert {name: text for name, text in everything(store.root).items() if ".lease" not in name} == {
        name: text for name, text in after.items() if ".lease" not in name
    }


@pytest.mark.parametrize(
    ("mine", "theirs", "how"),
    [
        ({"scores": ((None, None), (1.0, None), (0.5, 0.1))}, {}, "in their scores"),
        ({"contended": True}, {}, "though their scores are equal"),
        ({}, FAILED, "one is failed, the other done"),
    ],
)
def test_conflicts_are_named_and_nothing_is_overwritten(
    store: Store, other: Store, mine: dict[str, Any], theirs: dict[str, Any], how: str
) -> None:
    kept = put(store, "k1", **mine)
    theirs_ = put(other, "k1", **theirs)
    put(other, "k2")
    before = everything(kept.path)
    done = ask("merge", other.root, store.root)
    assert done.exit_code == 1
    assert str(kept.record_path) in done.stderr
    assert str(theirs_.record_path) in done.stderr
    assert how in done.stderr
    assert {name: text for name, text in everything(kept.path).items() if ".lease" not in name} == before
    assert store.cell("digits", "plain", "k2").record_path.exists()


def test_a_failure_gives_way_to_a_result_and_is_kept_aside(store: Store, other: Store) -> None:
    folder = put(store, "k1", **FAILED)
    files.write_atomically(folder.checkpoint_path, b"state")
    failure = folder.record_path.read_bytes()
    put(other, "k1")
    assert ask("merge", other.root, store.root).exit_code == 0
    assert [record.status for record in store.load().records] == ["done"]
    assert folder.record_path.with_name("record.json.aside-1").read_bytes() == failure
    assert not folder.checkpoint_path.exists()
    assert upkeep.check(store) == upkeep.Check(cells=1, files=2)


def test_a_record_of_before_manifests_is_merged_without_the_one_of_a_failure(store: Store, other: Store) -> None:
    put(store, "k1", **FAILED)
    (put(other, "k1").path / "manifest.json").unlink()
    assert upkeep.merge(other, store).wrong == []
    assert upkeep.check(store) == upkeep.Check(cells=1, unlisted=1)


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_not_copied(store: Store, other: Store, how: str) -> None:
    spoil, sentence = DAMAGE[how]
    spoil(put(other, "k2").path)
    done = upkeep.merge(other, store)
    assert done.copied == []
    assert sentence in done.wrong[0]
    assert store.load().records == []


@pytest.mark.parametrize("what", ["records/digits/plain-seed0-k1.json", "records/digits/plain-seed0-k1.npz"])
def test_published_records_that_differ_are_left(store: Store, other: Store, what: str) -> None:
    store.publish(Record.example(key="k1"), OUTCOMES)
    other.publish(Record.example(key="k1"), OUTCOMES)
    if what.endswith("json"):
        (store.root / what).write_text(Record.example(key="k1", contended=True).model_dump_json())
    else:
        (store.root / what).unlink()
    before = everything(store.root)
    (wrong,) = upkeep.merge(other, store).wrong
    assert "differ; the second was left as it is" in wrong
    assert everything(store.root) == before


def test_a_store_is_not_merged_with_itself(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root)
    for source, target in ((store, store), (store, Store(tmp_path / "link")), (Store(tmp_path), store)):
        with pytest.raises(ClbenchError, match="two stores apart"):
            upkeep.merge(source, target)


@pytest.mark.parametrize("step", ["outcomes.npz", "manifest.json", "record.json"])
def test_a_merge_that_was_killed_goes_on(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    put(store, "k1", **FAILED)
    put(other, "k1")

    def dying(path: Path, content: bytes) -> None:
        if path.name == step:
            raise KeyboardInterrupt
        files.write_atomically(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("clbench.upkeep.write_atomically", dying)
        with pytest.raises(KeyboardInterrupt):
            upkeep.merge(other, store)
    assert upkeep.check(store).wrong == []
    assert len(upkeep.merge(other, store).copied) == 1
    assert upkeep.check(store) == upkeep.Check(cells=1, files=2)


# prune


def test_pruning_takes_checkpoints_and_nothing_else(store: Store) -> None:
    put(store, "k1")
    for key in ("k2", "k3"):
        folder = store.cell("digits", "plain", key)
        files.write_atomically(folder.checkpoint_path, b"x" * 2**20)
    files.set_aside(folder.checkpoint_path)
    put(store, "k2", **FAILED)
    before = everything(store.root)
    done = ask("prune", "--store", store.root, "--checkpoints", "--dry-run")
    assert "2 checkpoints, 2.0 MiB would go." in done.stdout
    assert everything(store.root) == before
    done = ask("prune", "--store", store.root, "--checkpoints")
    assert done.exit_code == 0
    assert "2 checkpoints, 2.0 MiB removed." in done.stdout
    left = {name for name in everything(store.root) if ".lease" not in name}
    assert left == {name for name in before if "checkpoint" not in name}
    assert not list(store.root.rglob("checkpoint"))


def test_pruning_without_saying_what_is_refused(store: Store) -> None:
    done = ask("prune", "--store", store.root)
    assert done.exit_code == 2
    assert "--checkpoints" in done.stderr


def test_pruning_leaves_what_a_process_is_at(store: Store) -> None:
    folder = store.cell("digits", "plain", "k1")
    files.write_atomically(folder.checkpoint_path, b"state")
    with folder.lock():
        done = ask("prune", "--store", store.root, "--checkpoints")
        assert done.exit_code == 1
        assert str(folder.path) in done.stderr
        assert folder.checkpoint_path.exists()
    assert ask("prune", "--store", store.root, "--checkpoints").exit_code == 0
    assert not folder.checkpoint_path.exists()


def test_dead_holders_of_another_machine_are_waited_for_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        folder = store.cell("digits", "plain", f"k{number}")
        files.write_atomically(folder.checkpoint_path, b"state")
        facts = {"state": "held", "host": "elsewhere", "pid": 1, "began": "1"}
        (folder.path / ".lease-1").write_text(json.dumps(facts))
    slept: list[float] = []
    monkeypatch.setattr(lease.time, "sleep", slept.append)
    store.watch.clock = lambda: 1000 + sum(slept)
    assert upkeep.prune_checkpoints(store).checkpoints == 30
    assert sum(slept) == pytest.approx((lease.MISSED + 0.5) * lease.BEAT_SECONDS, abs=lease.BEAT_SECONDS)


# attacks

PRUNE = "import sys; from pathlib import Path; from clbench import upkeep; from clbench.store import Store; "


def test_links_that_lead_out_are_named_and_not_followed(store: Store, other: Store, tmp_path: Path) -> None:
    outside = put(other, "k1")
    files.write_atomically(outside.checkpoint_path, b"state")
    put(store, "k0")
    (store.root / "runs" / "linked").symlink_to(other.root / "runs" / "digits")
    (store.root / "runs" / "digits" / "linked").symlink_to(outside.path.parent)
    (store.root / "runs" / "digits" / "plain" / "k1").symlink_to(outside.path)
    before = everything(other.root)
    loaded = store.load()
    assert [record.key for record in loaded.records] == ["k0"]
    assert len(loaded.problems) == 3
    assert all("leads out of the store" in problem for problem in loaded.problems)
    assert len(upkeep.check(store).wrong) == 3
    target = Store.create(tmp_path / "target")
    assert [path.parent.name for path in upkeep.merge(store, target).copied] == ["k0"]
    assert upkeep.prune_checkpoints(store) == upkeep.Prune()
    assert everything(other.root) == before


def test_a_checkpoint_folder_that_is_a_link_is_not_pruned(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "state.safetensors").write_bytes(b"mine")
    folder = store.cell("digits", "plain", "k1")
    folder.path.mkdir(parents=True)
    (folder.path / "checkpoint").symlink_to(tmp_path / "precious")
    assert upkeep.prune_checkpoints(store) == upkeep.Prune()
    with pytest.raises(ClbenchError, match="leads out"), folder.lock():
        pass
    assert (tmp_path / "precious" / "state.safetensors").read_bytes() == b"mine"


def test_a_killed_prune_leaves_a_usable_store(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        files.write_atomically(store.cell("digits", "plain", f"k{number}").checkpoint_path, b"state")
    program = PRUNE + (
        "import os; CellFolder = upkeep.CellFolder; CellFolder.drop_checkpoint = lambda self: os.kill(os.getpid(), 9); "
        "upkeep.prune_checkpoints(Store(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert upkeep.check(store).wrong == []
    assert upkeep.prune_checkpoints(store).checkpoints == 2
    shutil.rmtree(store.root)
