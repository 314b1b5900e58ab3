"""Store: records and outcomes on disk, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clbench import manifest
from clbench.errors import StoreError
from clbench.files import append, explain, inside, read_regular, set_aside, sweep, sweep_old, write_atomically
from clbench.lease import Lease, LeaseLost, Watch, held
from clbench.outcomes import Outcomes, pack_outcomes, read_outcomes
from clbench.processes import Process
from clbench.record import SCHEMA, Record, is_plain


@dataclass
class Loaded:
    """What a store held: its records, where each lies, and what could not be read."""

    records: list[Record] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    """Key -> where the record's outcomes lie."""
    problems: list[str] = field(default_factory=list)

    def outcomes(self, record: Record) -> Outcomes | None:
        """The per-example outcomes of `record`; None where they are missing or torn."""
        return read_outcomes(self.folders[record.key])

    def last_outcomes(self, record: Record) -> Outcomes | None:
        """Those after the last task alone, with tasks and labels: a fraction of the time of reading all."""
        return read_outcomes(self.folders[record.key], only_last=True)


@dataclass
class CellFolder:
    """The place of one cell in a store."""

    path: Path
    watch: Watch = field(default_factory=Watch, repr=False, compare=False)
    """What was seen of other processes' leases."""
    lease: Lease | None = field(default=None, repr=False, compare=False)
    """While this process holds the cell."""

    @property
    def record_path(self) -> Path:
        """Where the finished record lies."""
        return self.path / "record.json"

    @property
    def checkpoint_path(self) -> Path:
        """Where the state after the last finished task lies."""
        return self.path / "checkpoint" / "state.safetensors"

    def save(self, record: Record, outcomes: Outcomes) -> None:
        """Write outcomes, manifest, then the record (from then on the cell is done), then drop the checkpoint.

        A failed cell keeps its checkpoint: what made it fail, for example a full GPU, may pass. Raises LeaseLost where
        another process has taken the cell over.
        """
        self.refuse_if_lost()
        files = {"outcomes.npz": pack_outcomes(outcomes)} if outcomes else {}
        self.put(record.model_dump_json(indent=1).encode(), files)
        if record.status != "failed":
            self.drop_checkpoint()

    def put(self, record: bytes, files: Mapping[str, bytes]) -> None:
        """Write a record's files, their manifest, and the record last."""
        for name, content in files.items():
            write_atomically(self.path / name, content)
        write_atomically(self.path / manifest.NAME, manifest.pack(self.path, record, files))
        write_atomically(self.record_path, record)

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, if any."""
        with contextlib.suppress(FileNotFoundError):
            self.checkpoint_path.unlink()
        with contextlib.suppress(OSError):
            self.checkpoint_path.parent.rmdir()

    def read(self) -> tuple[Record | None, str | None]:
        """The record, or None and what is wrong with the file, if there is one."""
        return _read(self.record_path, self.path.name)

    def set_aside(self) -> Path:
        """Rename an unreadable record so that the cell can be done anew; nothing is deleted."""
        return set_aside(self.record_path)

    def log(self, event: str, **facts: Any) -> None:
        """Append one line to the cell's log."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        try:
            append(self.path / "log.jsonl", json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StoreError(explain(error, self.path / "log.jsonl")) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the cell for this process; yields False where another process holds it.

        What ends the process ends the lease, see `clbench.lease`. Whoever gets it removes the temporary files of
        killed holders.
        """
        with held(self.path, self.watch) as mine:
            if mine is not None:
                self._refuse_links()
                sweep(self.path)
            self.lease = mine
            try:
                yield mine is not None
            finally:
                self.lease = None

    def _refuse_links(self) -> None:
        for path in (self.checkpoint_path.parent, self.checkpoint_path):
            if path.is_symlink():
                raise StoreError(f"'{path}' is a link, which leads out of the cell; remove it.")

    def refuse_if_lost(self) -> None:
        """Raise LeaseLost where this process held the cell and was silent for so long that another took it over."""
        if self.lease is not None and self.lease.lost():
            raise LeaseLost(
                f"another process took '{self.path}' over while this one stood still; the cell is left to it."
            )


class Store:
    """A folder of runs (`runs/`, scratch) and of published records (`records/`)."""

    def __init__(self, root: Path) -> None:
        self.root, self.watch = root, Watch()

    @classmethod
    def create(cls, root: Path) -> Store:
        """The store at `root`, made where it is missing and proven writable."""
        try:
            (root / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(explain(error, root)) from error
        probe = root / "runs" / ".writable"
        write_atomically(probe, b"")
        for folder in (root / "runs", root / "runs" / ".plans"):
            sweep_old(folder, probe)
        return cls(root)

    @classmethod
    def existing(cls, root: Path) -> Store:
        """The store at `root`, which must be there."""
        if not root.exists():
            raise StoreError(f"there is no store at '{root}'; run a suite first or pass --store with its folder.")
        if not root.is_dir():
            raise StoreError(f"'{root}' is a file where a store's folder should be; pass --store with a folder.")
        return cls(root)

    def cell(self, suite: str, method: str, key: str) -> CellFolder:
        """The place of one cell. Raises StoreError where that is not inside the store."""
        return CellFolder(self.place("runs", suite, method, key), self.watch)

    def place(self, *parts: str) -> Path:
        """The path of a file or folder of the store.

        Raises StoreError for a name that would lead out of the store, as '..' does, or through a link that does.
        """
        path = self.root.joinpath(*parts)
        wrong = [part for part in parts if not is_plain(part)]
        if wrong:
            raise StoreError(f"'{wrong[0]}' cannot be the name of a file in the store '{self.root}'.")
        if not inside(path, self.root):
            raise StoreError(f"'{path}' is a link that leads out of the store; nothing is written there.")
        return path

    def load(self, suite: str | None = None, published: bool = False) -> Loaded:
        """All records of one suite or of all, from the runs or from the published ones."""
        loaded = Loaded()
        depth, name = (1, "*.json") if published else (3, "record.json")
        folders, loaded.problems = self.folders(
            "records" if published else "runs", *([suite] if suite else []), depth=depth - bool(suite)
        )
        for path in (path for folder in folders for path in sorted(folder.glob(name))):
            record, problem = _read(path, None if published else path.parent.name)
            if problem is not None:
                loaded.problems.append(problem)
            if record is None:
                continue
            if record.key in loaded.folders:
                loaded.problems.append(f"'{path}' repeats the cell of '{loaded.folders[record.key]}' and is left out.")
                continue
            loaded.records.append(record)
            loaded.folders[record.key] = path.with_suffix(".npz") if published else path.parent / "outcomes.npz"
        return loaded

    def folders(self, *parts: str, depth: int) -> tuple[list[Path], list[str]]:
        """The folders so deep below one of the store's, sorted, and a sentence for each link that leads out of it.

        Names that begin with a dot are not those of suites, methods or cells.
        """
        found = [self.root.joinpath(*parts)] if all(map(is_plain, parts)) else []
        problems = list[str]()
        for step in range(depth + 1):
            found = [path for path in found if not path.is_symlink() or self._keeps(path, problems)]
            if step < depth:
                found = [below for path in found for below in _below(path)]
        return found, problems

    def _keeps(self, path: Path, problems: list[str]) -> bool:
        kept = inside(path, self.root)
        if not kept:
            problems.append(f"'{path}' is a link that leads out of the store; it is left out.")
        return kept

    def publish(self, record: Record, outcomes: Outcomes | None) -> Path:
        """Copy a finished record to the published ones, where it replaces the same run's older one; returns its path.

        The same run: equal suite, method, parameters, recipe, seeds, kind of device and precision.
        """
        label = "-".join(part for part in (record.method, _slug(record.variant), f"seed{record.seed}") if part)
        path = self.place("records", record.suite, f"{label}-{record.key}.json")
        if outcomes:
            write_atomically(path.with_suffix(".npz"), pack_outcomes(outcomes))
        write_atomically(path, (record.model_dump_json(indent=1) + "\n").encode())
        for other in path.parent.glob(f"{record.method}-*.json"):
            older, _ = _read(other, None)
            if other != path and older is not None and _run(older) == _run(record):
                other.unlink()
                other.with_suffix(".npz").unlink(missing_ok=True)
        return path

    @contextlib.contextmanager
    def running(self, key: str, device: str) -> Iterator[None]:
        """Tell other processes of this machine that a cell is on `device`, for the length of the block.

        Whoever comes later marks itself and those it finds as sharing, so that no overlap goes unseen,
        however short.
        """
        mine, shared = self._running(key)
        shared.unlink(missing_ok=True)
        for leftover in mine.parent.glob(f".{mine.name}.*.tmp"):  # of one who was killed at this cell
            leftover.unlink(missing_ok=True)
        content = {**Process.here().facts(), "device": device}
        write_atomically(mine, json.dumps(content).encode())
        try:
            for other in (others := self._others(key, device)):
                theirs, told = self._running(other)
                _touch(told)
                if not theirs.exists():  # it ended in between, and nobody else would take the mark away
                    told.unlink(missing_ok=True)
            if others:
                _touch(shared)
            yield
        finally:
            for file in (mine, shared):
                with contextlib.suppress(OSError):  # who looks finds that this process has ended
                    file.unlink(missing_ok=True)

    def others_running(self, key: str, device: str) -> bool:
        """Whether another cell is on `device`, or has been since `running` began for this one."""
        return self._running(key)[1].exists() or bool(self._others(key, device))

    def _running(self, key: str) -> tuple[Path, Path]:
        """The file that says that a cell runs, and the one that says that it shares its device."""
        folder = self.place("runs", ".running")
        return folder / f"{key}.json", folder / f"{key}.shared"

    def _others(self, key: str, device: str) -> list[str]:
        """The keys of the other cells on `device`, of living processes of this machine; the files of dead ones go."""
        found: list[str] = []
        for path in self.place("runs", ".running").glob("*.json"):
            try:
                other = json.loads(read_regular(path))
                process, same = Process.of(other), other["device"] == device
            except (OSError, ValueError, TypeError, LookupError):
                continue
            if process.ended:
                for file in self._running(path.stem):
                    file.unlink(missing_ok=True)
            elif process.is_near and same and path.stem != key:
                found.append(path.stem)
        return found


def _read(path: Path, key: str | None) -> tuple[Record | None, str | None]:
    """The record at `path`, which must be of the cell `key` if one is given, or what is wrong; neither if absent."""
    try:
        text = read_regular(path)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"'{path}' could not be read: {error.strerror}."
    record, problem = parse_record(text, path)
    if record is not None and key is not None and record.key != key:
        return None, f"'{path}' is the record of another cell, {record.key}; it is left out."
    return record, problem


def _run(record: Record) -> tuple[object, ...]:
    """What tells a published run from another, whatever the source and the protocol were when it was made."""
    origin = record.origin
    identity = (record.suite, record.method, record.params, record.recipe, record.seed, record.order_seed)
    return (*identity, origin.device_kind, origin.precision)


def parse_record(text: bytes, path: Path) -> tuple[Record | None, str | None]:
    """The record in `text`, or None and a sentence that names `path`."""
    try:
        record = Record.model_validate_json(text)
        if 0 < record.schema_version <= SCHEMA:
            return record, None
    except (ValidationError, RecursionError):
        pass  # what is wrong is told below
    return None, _why_none(text, path)


def _why_none(text: bytes, path: Path) -> str:
    try:
        content = json.loads(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if type(version) is not int or version < 1:
            return f"'{path}' is no record of clbench; it is left out."
        if version > SCHEMA:
            return f"'{path}' is of schema {version}, newer than this clbench reads ({SCHEMA}); update clbench."
        Record.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return f"'{path}' is damaged at '{where}'; it is left out."
    except (ValueError, RecursionError):
        pass
    return f"'{path}' is torn or no JSON; it is left out."


def _touch(path: Path) -> None:
    """Make an empty file; there is nothing to tear, so that no killed process leaves a temporary one."""
    try:
        path.touch()
    except OSError as error:
        raise StoreError(explain(error, path)) from error


def _below(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none where there is none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)[:60]
