"""Store: records and outcomes on disk, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from clbench.errors import StoreError
from clbench.files import explain, set_aside, sweep, write_atomically
from clbench.record import SCHEMA, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = Mapping[str, NDArray[np.int32]]


@dataclass
class Loaded:
    """What a store held: its records, where each lies, and what could not be read."""

    records: list[Record] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    """Key -> where the record's outcomes lie."""
    problems: list[str] = field(default_factory=list)

    def outcomes(self, record: Record) -> Outcomes | None:
        """The per-example outcomes of `record`; None where they are missing or torn."""
        import numpy as np

        path = self.folders[record.key]
        try:
            # From memory: of a torn file NumPy would leave the handle open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return None


@dataclass(frozen=True)
class CellFolder:
    """The place of one cell in a store."""

    path: Path

    @property
    def record_path(self) -> Path:
        """Where the finished record lies."""
        return self.path / "record.json"

    @property
    def checkpoint_path(self) -> Path:
        """Where the state after the last finished task lies."""
        return self.path / "checkpoint" / "state.safetensors"

    def save(self, record: Record, outcomes: Outcomes) -> None:
        """Write outcomes, then the record (from then on the cell is done), then drop the checkpoint.

        A failed cell keeps its checkpoint: what made it fail, for example a full GPU, may pass.
        """
        if outcomes:
            write_atomically(self.path / "outcomes.npz", pack_outcomes(outcomes))
        write_atomically(self.record_path, record.model_dump_json(indent=1).encode())
        if record.status != "failed":
            self.drop_checkpoint()

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
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StoreError(explain(error, self.path / "log.jsonl")) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the cell for this process; yields False at once where another process holds it.

        The lock is the operating system's and ends with the process that holds it. Whoever gets it removes
        the temporary files of killed holders.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise StoreError(explain(error, self.path)) from error
        try:
            sweep(self.path)
            yield True
        finally:
            lock.release()


class Store:
    """A folder of runs (`runs/`, scratch) and of published records (`records/`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path) -> Store:
        """The store at `root`, made where it is missing and proven writable."""
        try:
            (root / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(explain(error, root)) from error
        write_atomically(root / "runs" / ".writable", b"")
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
        """The place of one cell."""
        return CellFolder(self.root / "runs" / suite / method / key)

    def load(self, suite: str | None = None, published: bool = False) -> Loaded:
        """All records of one suite or of all, from the runs or from the published ones."""
        loaded = Loaded()
        base = self.root / ("records" if published else "runs")
        folders = [base / suite] if suite else [path for path in sorted(base.glob("*")) if path.is_dir()]
        pattern = "*.json" if published else "*/*/record.json"
        for path in (path for folder in folders for path in sorted(folder.glob(pattern))):
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

    def publish(self, record: Record, outcomes: Outcomes | None) -> Path:
        """Copy a finished record to the published ones, where it replaces the same run's older one; returns its path.

        The same run: equal suite, method, parameters, recipe, seeds, kind of device and precision.
        """
        label = "-".join(part for part in (record.method, _slug(record.variant), f"seed{record.seed}") if part)
        path = self.root / "records" / record.suite / f"{label}-{record.key}.json"
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
        content = {"host": socket.gethostname(), "pid": os.getpid(), "device": device}
        write_atomically(mine, json.dumps(content).encode())
        try:
            for other in (others := self._others(key, device)):
                theirs, told = self._running(other)
                write_atomically(told, b"")
                if not theirs.exists():  # it ended in between, and nobody else would take the mark away
                    told.unlink(missing_ok=True)
            if others:
                write_atomically(shared, b"")
            yield
        finally:
            mine.unlink(missing_ok=True)
            shared.unlink(missing_ok=True)

    def others_running(self, key: str, device: str) -> bool:
        """Whether another cell is on `device`, or has been since `running` began for this one."""
        return self._running(key)[1].exists() or bool(self._others(key, device))

    def _running(self, key: str) -> tuple[Path, Path]:
        """The file that says that a cell runs, and the one that says that it shares its device."""
        folder = self.root / "runs" / ".running"
        return folder / f"{key}.json", folder / f"{key}.shared"

    def _others(self, key: str, device: str) -> list[str]:
        """The keys of the other cells on `device`, of living processes of this machine; the files of dead ones go."""
        found: list[str] = []
        for path in (self.root / "runs" / ".running").glob("*.json"):
            try:
                other = json.loads(path.read_bytes())
                here, alive = other["host"] == socket.gethostname(), _alive(int(other["pid"]))
                same = other["device"] == device
            except (OSError, ValueError, TypeError, LookupError):
                continue
            if here and not alive:
                for file in self._running(path.stem):
                    file.unlink(missing_ok=True)
            elif here and same and path.stem != key:
                found.append(path.stem)
        return found


def _read(path: Path, key: str | None) -> tuple[Record | None, str | None]:
    """The record at `path`, which must be of the cell `key` if one is given, or what is wrong; neither if absent."""
    try:
        text = path.read_bytes()
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
        content = json.loads(text)
    except ValueError:
        return None, f"'{path}' is torn or no JSON; it is left out."
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int:
        return None, f"'{path}' is no record of clbench; it is left out."
    if version > SCHEMA:
        return None, f"'{path}' is of schema {version}, newer than this clbench reads ({SCHEMA}); update clbench."
    try:
        return Record.model_validate(content), None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return None, f"'{path}' is damaged at '{where}'; it is left out."


def pack_outcomes(outcomes: Outcomes) -> bytes:
    """Outcomes as the bytes of an npz file."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outcomes)  # type: ignore[arg-type]
    return buffer.getvalue()


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)[:60]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
