"""Upkeep: stores held against their manifests, brought together, and relieved of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clbench import manifest
from clbench.errors import ClbenchError, StoreError
from clbench.files import append, explain, inside, read_regular, write_atomically
from clbench.outcomes import read_outcomes
from clbench.record import Record
from clbench.store import CellFolder, Store, parse_record

TUNING = "tuning"
"""The store inside a store that holds the trials of searches."""


@dataclass
class Check:
    """What a store's files are like."""

    cells: int = 0
    """Finished ones, and published records."""
    files: int = 0
    """Those that are as their manifest says."""
    unlisted: int = 0
    """Cells without a manifest: those of older clbench, and published records, whose hashes git keeps."""
    unfinished: int = 0
    wrong: list[str] = field(default_factory=list)
    """A sentence each."""


@dataclass
class Merge:
    """What became of each record of the source."""

    copied: list[Path] = field(default_factory=list)
    same: int = 0
    """They were there already, byte by byte."""
    unfinished: int = 0
    """Cells that stay where they are."""
    wrong: list[str] = field(default_factory=list)
    """A sentence for each conflict, and for each record that is not as it was written."""


@dataclass
class Prune:
    """What was removed, or would be."""

    checkpoints: int = 0
    bytes: int = 0
    held: list[Path] = field(default_factory=list)
    """Cells that a living process is at."""


def check(store: Store) -> Check:
    """Hold every file of every finished cell against its manifest; what has none is read instead."""
    found = Check()
    for room in _rooms(store):
        for cell in _cells(room, found.wrong):
            _check_cell(cell, found)
        for path in _published(room, found.wrong):
            found.cells += 1
            found.unlisted += 1
            content = _read(path, found.wrong)
            if content is not None:
                found.wrong += _faults_of_record(content, path, path.with_suffix(".npz"))
    return found


def merge(source: Store, target: Store) -> Merge:
    """Copy every finished cell and published record of `source` that `target` lacks.

    Nothing is overwritten: where both have a cell and differ, it is named and left; but a failure gives way to a
    result, and is set aside. What is not as it was written is not copied. A process that is killed in between leaves
    both stores whole, and merging again goes on. Raises ClbenchError where one lies in the other.
    """
    for lower, upper in ((source, target), (target, source)):
        if inside(lower.root, upper.root):
            raise ClbenchError(f"'{lower.root}' is or lies in '{upper.root}'; name two stores apart from each other.")
    done = Merge()
    for room in _rooms(source):
        into = Store.create(target.root / room.root.relative_to(source.root))
        cells = [cell for cell in _cells(room, done.wrong) if _is_finished(cell, done)]
        theirs = [into.cell(*cell.path.relative_to(room.root / "runs").parts) for cell in cells]
        held = into.watch.settle(cell.path for cell in theirs if cell.path.is_dir())
        for cell, other in zip(cells, theirs, strict=True):
            if other.path in held:
                done.wrong.append(f"a process is at '{other.path}'; merge again when it has ended.")
            else:
                _merge_cell(cell, other, done)
        for path in _published(room, done.wrong):
            _merge_published(path, into.place("records", path.parent.name, path.name), done)
    return done


def prune_checkpoints(store: Store, dry_run: bool = False) -> Prune:
    """Remove the checkpoints of all cells that no living process is at; such cells begin anew when they are run."""
    done, ignored = Prune(), list[str]()
    for room in _rooms(store):
        cells = [cell for cell in _cells(room, ignored) if any(_checkpoints(cell))]
        done.held += sorted(room.watch.settle(cell.path for cell in cells))
        for cell in cells:
            if cell.path not in done.held:
                _prune(cell, dry_run, done)
    return done


def _prune(cell: CellFolder, dry_run: bool, done: Prune) -> None:
    with contextlib.nullcontext(True) if dry_run else cell.lock() as mine:
        if not mine:
            done.held.append(cell.path)
            return
        for path in _checkpoints(cell):
            done.bytes += path.stat().st_size
            done.checkpoints += 1
            if not dry_run:
                try:
                    path.unlink()
                except OSError as error:
                    raise StoreError(explain(error, path)) from error
        if not dry_run:
            cell.drop_checkpoint()


def _checkpoints(cell: CellFolder) -> Iterator[Path]:
    """The files in a cell's folder of checkpoints, also those that were set aside."""
    folder = cell.checkpoint_path.parent
    if folder.is_dir() and not folder.is_symlink():
        yield from (path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink())


# checking


def _check_cell(cell: CellFolder, found: Check) -> None:
    content = _read(cell.record_path, found.wrong) if cell.record_path.exists() else None
    if content is None:
        found.unfinished += not cell.record_path.exists()
        return
    found.cells += 1
    faults = manifest.faults(cell.path, content)
    if faults is None:
        found.unlisted += 1
        outcomes = cell.path / "outcomes.npz"
        faults = _faults_of_record(content, cell.record_path, outcomes if outcomes.exists() else None)
    elif not faults:
        found.files += 1 + len((manifest.entries(cell.path) or {})[manifest.sha256(content)])
        faults = _faults_of_record(content, cell.record_path, None)
    found.wrong += faults or _misplaced(cell, content)


def _faults_of_record(content: bytes, path: Path, outcomes: Path | None) -> list[str]:
    """What is wrong with a record, and with the outcomes beside it."""
    record, problem = parse_record(content, path)
    if record is None:
        return [problem or f"'{path}' is no record."]
    if outcomes is not None and outcomes.exists() and read_outcomes(outcomes) is None:
        return [f"'{outcomes}' is torn or no file of outcomes."]
    return []


def _misplaced(cell: CellFolder, content: bytes) -> list[str]:
    record, _ = parse_record(content, cell.record_path)
    place = cell.path.parts[-3:]
    if record is None or (record.suite, record.method, record.key) == place:
        return []
    return [f"'{cell.record_path}' is the record of another cell, {record.suite}/{record.method}/{record.key}."]


# merging


def _is_finished(cell: CellFolder, done: Merge) -> bool:
    """Whether a cell has a record that is as it was written; tells where not."""
    if not cell.record_path.exists():
        done.unfinished += 1
        return False
    looked = Check()
    _check_cell(cell, looked)
    done.wrong += looked.wrong
    return not looked.wrong


def _merge_cell(cell: CellFolder, other: CellFolder, done: Merge) -> None:
    with other.lock() as mine:
        if not mine:
            done.wrong.append(f"a process is at '{other.path}'; merge again when it has ended.")
            return
        ours, theirs = read_regular(cell.record_path), _read(other.record_path, done.wrong, absent_is_fine=True)
        if ours == theirs:
            done.same += 1
            return
        if theirs is not None or other.record_path.is_symlink():
            conflict = _conflict(cell, other, ours, theirs or b"")
            if conflict is not None:
                done.wrong.append(conflict)
                return
            other.set_aside()
        with contextlib.suppress(OSError):  # the cell's story comes along; without it the record is whole all the same
            append(other.path / "log.jsonl", read_regular(cell.path / "log.jsonl").decode())
        for name in (*manifest.FILES, manifest.NAME, "record.json"):
            if (cell.path / name).exists():
                write_atomically(other.path / name, read_regular(cell.path / name))
            else:  # of a failure that was set aside
                (other.path / name).unlink(missing_ok=True)
        other.drop_checkpoint()
        done.copied.append(other.record_path)


def _conflict(cell: CellFolder, other: CellFolder, ours: bytes, theirs: bytes) -> str | None:
    """Why two records of one cell cannot both be kept; None where the other is a failure and this one a result."""
    mine, there = (parse_record(content, place.record_path)[0] for content, place in ((ours, cell), (theirs, other)))
    if mine is not None and there is not None and there.status == "failed" and mine.status != "failed":
        return None
    return f"'{cell.record_path}' and '{other.record_path}' differ{_how(mine, there)}; the second was left as it is."


def _how(one: Record | None, other: Record | None) -> str:
    if one is None or other is None:
        return ", and one of them cannot be read"
    if one.status != other.status:
        return f": one is {one.status}, the other {other.status}"
    return ", though their scores are equal" if one.scores == other.scores else " in their scores"


def _merge_published(path: Path, other: Path, done: Merge) -> None:
    if faults := _faults_of_record(read_regular(path), path, path.with_suffix(".npz")):
        done.wrong += faults
        return
    pairs = [(path.with_suffix(end), other.with_suffix(end)) for end in (".npz", ".json")]
    contents = {there: read_regular(here) for here, there in pairs if here.exists()}
    if other.exists():
        if all(there.exists() and read_regular(there) == content for there, content in contents.items()):
            done.same += 1
        else:
            done.wrong.append(f"'{path}' and '{other}' differ; the second was left as it is.")
        return
    for there, content in contents.items():
        write_atomically(there, content)
    done.copied.append(other)


# walking


def _rooms(store: Store) -> list[Store]:
    """The store, and the one inside it that tuning keeps."""
    inner = store.root / TUNING
    return [store, Store(inner)] if inner.is_dir() and not inner.is_symlink() else [store]


def _cells(store: Store, wrong: list[str]) -> list[CellFolder]:
    """Every cell, finished or not; what leads out of the store is named and left."""
    folders, problems = store.folders("runs", depth=3)
    wrong += problems
    return [store.cell(*path.parts[-3:]) for path in folders]


def _published(store: Store, wrong: list[str]) -> list[Path]:
    folders, problems = store.folders("records", depth=1)
    wrong += problems
    return [path for folder in folders for path in sorted(folder.glob("*.json"))]


def _read(path: Path, wrong: list[str], absent_is_fine: bool = False) -> bytes | None:
    """What a file holds, or None and a sentence; a link is not followed."""
    if path.is_symlink():
        wrong.append(f"'{path}' is a link; a store holds files.")
        return None
    try:
        return read_regular(path)
    except FileNotFoundError:
        if not absent_is_fine:
            wrong.append(f"'{path}' is gone.")
    except OSError as error:
        wrong.append(f"'{path}' could not be read: {error.strerror}.")
    return None
