"""Leases: a folder is held by one process at a time, also on a shared file system, and never for ever by a dead one.

The lease of a folder is the highest of its files `.lease-1`, `.lease-2`, … Who wants the folder makes the next one,
which the file system allows to one process only (O_CREAT with O_EXCL, which holds on NFS; no fcntl). The holder
counts beats inside its file; on release it writes that the lease is free. A lease may be followed by the next one if
it is free, if its holder was a process of this machine and has ended, or if it has missed many beats. Beats are missed
by the observer's own count of its own looks: no two machines' clocks are compared, and no jump of one, nor a file
system that stood still for both, makes a living holder look dead. A holder that was itself stopped for so long finds
that it was followed, see `Lease.lost`, and must write nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clbench.errors import StoreError
from clbench.files import explain, read_regular
from clbench.processes import Process

BEAT_SECONDS = 5.0
MISSED = 12
"""A lease may be taken over after so many beats were missed: one minute."""
_NAME = re.compile(r"\.lease-(\d+)")


class LeaseLost(StoreError):
    """Another process has taken the folder over; nothing may be written there any more."""


@dataclass
class _Sight:
    """What was last read of a lease, when, and for how long it has not changed before one's eyes."""

    content: bytes
    at: float
    seconds: float = 0.0


class Watch:
    """What one process has seen of the leases of others."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, beat: float = BEAT_SECONDS, missed: int = MISSED
    ) -> None:
        self.clock, self.beat, self.missed = clock, beat, missed
        self._sights: dict[Path, _Sight] = {}

    def state(self, path: Path) -> Literal["free", "held", "unsure"]:
        """Whether the lease at `path` may be followed; unsure where its holder was seen neither alive nor long still.

        Between two looks at most one beat counts as missed, whatever the clock says.
        """
        now = self.clock()  # before reading, so that a pause in between cannot count
        try:
            content = read_regular(path)  # opening asks the server of a shared file system anew
        except FileNotFoundError:
            return "unsure"
        except OSError:  # a folder or a link in its place is nobody's lease: it is followed as a dead one's
            content = b""
        free, holder = _told(content)
        if free or (holder is not None and holder.ended):
            return "free"
        sight = self._sights.get(path)
        near = holder is not None and holder.is_near
        if sight is None or sight.content != content:
            self._sights[path] = _Sight(content, self.clock())
            return "held" if near or sight is not None else "unsure"
        sight.seconds += max(0.0, min(self.beat, now - sight.at))
        sight.at = self.clock()
        if sight.seconds >= self.beat * self.missed:
            return "free"
        return "held" if near else "unsure"

    def acquire(self, folder: Path) -> Lease | None:
        """The lease of `folder`, if it can be had now. Raises OSError where nothing can be written there."""
        number = _highest(folder)
        free = not number or self.state(_path(folder, number)) == "free"
        return _made(folder, number + 1, self.beat) if free else None

    def settle(self, folders: Iterable[Path]) -> set[Path]:
        """Wait until of each folder it is sure whether its holder lives; returns those whose does.

        That takes a beat as a rule, a minute where the holder was of another machine and is dead, and no time else.
        """
        unsure, living = set(folders), set[Path]()
        while unsure:
            states = {folder: self._settled(folder) for folder in unsure}
            living |= {folder for folder, state in states.items() if state == "held"}
            unsure = {folder for folder, state in states.items() if state == "unsure"}
            if unsure:
                time.sleep(self.beat / 2)
        return living

    def _settled(self, folder: Path) -> Literal["free", "held", "unsure"]:
        number = _highest(folder)
        return self.state(_path(folder, number)) if number else "free"


class Lease:
    """A folder, held by this process until `release`; a thread of its own beats."""

    def __init__(self, path: Path, handle: int, beat: float) -> None:
        self.path, self._handle, self._beats = path, handle, 0
        self._facts = {**Process.here().facts(), "token": os.urandom(8).hex()}
        self._turn, self._ended = threading.Lock(), threading.Event()
        self.beat()
        self._thread = threading.Thread(target=self._beat_on, args=(beat,), name="lease", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    def beat(self) -> None:
        """Show once that the holder lives."""
        with self._turn:
            self._beats += 1
            self._write("held")

    def lost(self) -> bool:
        """Whether another process has taken the folder over."""
        if _highest(self.path.parent) != _number(self.path):
            return True
        try:
            return os.fstat(self._handle).st_ino != self.path.stat().st_ino
        except OSError:
            return True

    def release(self) -> None:
        """Let others have the folder; does nothing to a lease that was lost."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._facts["pid"] == os.getpid():  # a forked child gives nothing away
            with contextlib.suppress(OSError):
                self._write("free")
        os.close(self._handle)

    def _beat_on(self, beat: float) -> None:
        while not self._ended.wait(beat):
            with contextlib.suppress(OSError):  # the next beat may reach the disk; who reads the lease will tell
                self.beat()

    def _write(self, state: Literal["held", "free"]) -> None:
        """Into the file that was made, wherever it is by now; always as long, so that nothing of before is left."""
        content = json.dumps({"state": state, "beat": f"{self._beats:012}", **self._facts}).encode()
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, content)
        os.fsync(self._handle)


@contextlib.contextmanager
def held(folder: Path, watch: Watch, insist: bool = False) -> Iterator[Lease | None]:
    """Hold `folder`, made where it is missing, for the length of the block; None at once where another process does.

    `insist`: find out first, which may take a minute, whether a holder of another machine still lives. Raises
    StoreError where nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if insist:
            watch.settle([folder])
        lease = watch.acquire(folder)
    except OSError as error:
        raise StoreError(explain(error, folder)) from error
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def _made(folder: Path, number: int, beat: float) -> Lease | None:
    """Lease `number`, started; None where another process was first with it or with a later one."""
    path = _path(folder, number)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return None
    try:
        lease = Lease(path, handle, beat)
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    if lease.lost():  # the one before was followed, and gone, between the look and the making
        os.close(handle)
        path.unlink(missing_ok=True)
        return None
    for older in _numbers(folder):
        if older < number:
            with contextlib.suppress(OSError):
                _path(folder, older).unlink()
    lease.start()
    return lease


def _path(folder: Path, number: int) -> Path:
    return folder / f".lease-{number}"


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]


def _highest(folder: Path) -> int:
    """The number of the folder's lease; 0 where there was never one."""
    return max(_numbers(folder), default=0)


def _told(content: bytes) -> tuple[bool, Process | None]:
    """Whether a lease is free, and who holds it; (False, None) of what is torn."""
    try:
        facts = json.loads(content)
        return facts["state"] == "free", Process.of(facts)
    except (ValueError, TypeError, LookupError):
        return False, None
