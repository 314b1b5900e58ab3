"""Store: records and outcomes on disk, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from clbench.errors import StoreError
from clbench.files import explain, write_atomically
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
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError):
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
        """Write outcomes, then the record (from then on the cell is done), then drop the checkpoint."""
        if outcomes:
            write_atomically(self.path / "outcomes.npz", pack_outcomes(outcomes))
        write_atomically(self.record_path, record.model_dump_json(indent=1).encode())
        self.drop_checkpoint()

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, if any."""
        with contextlib.suppress(FileNotFoundError):
            self.checkpoint_path.unlink()
        with contextlib.suppress(OSError):
            self.checkpoint_path.parent.rmdir()

    def read(self) -> tuple[Record | None, str | None]:
        """The record, or None and what is wrong with the file, if there is one."""
        try:
            text = self.record_path.read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError as error:
            return None, f"'{self.record_path}' could not be read: {error.strerror}."
        return parse_record(text, self.record_path)

    def set_aside(self) -> Path:
        """Rename an unreadable record so that the cell can be done anew; nothing is deleted."""
        for number in range(1, 1000):
            aside = self.path / f"record.json.aside-{number}"
            if not aside.exists():
                self.record_path.rename(aside)
                return aside
        raise StoreError(f"'{self.path}' already holds 999 files set aside; look at them first.")

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

        The lock is the operating system's and ends with the process that holds it.
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
        pattern = f"{suite or '*'}/*.json" if published else f"{suite or '*'}/*/*/record.json"
        for path in sorted(base.glob(pattern)):
            try:
                record, problem = parse_record(path.read_bytes(), path)
            except OSError as error:
                record, problem = None, f"'{path}' could not be read: {error.strerror}."
            if record is None:
                loaded.problems.append(problem or "")
            elif record.key in loaded.folders:
                loaded.problems.append(f"'{path}' repeats the cell of '{loaded.folders[record.key]}' and is left out.")
            else:
                loaded.records.append(record)
                loaded.folders[record.key] = path.with_suffix(".npz") if published else path.parent / "outcomes.npz"
        return loaded

    def publish(self, record: Record, outcomes: Outcomes | None) -> Path:
        """Copy a finished record to the published ones, named by what it is; returns its path."""
        label = "-".join(part for part in (record.method, _slug(record.variant), f"seed{record.seed}") if part)
        path = self.root / "records" / record.suite / f"{label}-{record.key}.json"
        for older in path.parent.glob(f"{label}-*.json"):
            if older != path and older.stem.removeprefix(f"{label}-").isalnum():
                older.with_suffix(".npz").unlink(missing_ok=True)
                older.unlink()
        if outcomes:
            write_atomically(path.with_suffix(".npz"), pack_outcomes(outcomes))
        write_atomically(path, (record.model_dump_json(indent=1) + "\n").encode())
        return path

    @contextlib.contextmanager
    def running(self, key: str, device: str) -> Iterator[None]:
        """Tell other processes of this machine that a cell is on `device`, for the length of the block."""
        path = self.root / "runs" / ".running" / f"{key}.json"
        content = {"host": socket.gethostname(), "pid": os.getpid(), "device": device}
        write_atomically(path, json.dumps(content).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def others_running(self, key: str, device: str) -> bool:
        """Whether a living process of this machine has another cell on `device`."""
        for path in (self.root / "runs" / ".running").glob("*.json"):
            if path.stem == key:
                continue
            try:
                other = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if other["host"] == socket.gethostname() and other["device"] == device and _alive(other["pid"]):
                return True
        return False


def parse_record(text: bytes, path: Path) -> tuple[Record | None, str | None]:
    """The record in `text`, or None and a sentence that names `path`."""
    try:
        content = json.loads(text)
    except ValueError:
        return None, f"'{path}' is torn or no JSON; it is left out."
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
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
    except PermissionError:
        return True
    return True
