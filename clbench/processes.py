"""Processes: which one this is, and whether another has certainly ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    >>> Process.of({**Process.here().facts()}) == Process.here()
    True
    """

    host: str
    """Machine, boot and namespace: containers of one name count as two, since none sees the other's processes."""
    pid: int
    began: str
    """When it was started, in the system's own units, so that a number given again is another process; '' if untold."""

    @classmethod
    def here(cls) -> Process:
        """This one."""
        return cls(_host(), os.getpid(), _began(os.getpid()) or "")

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Process:
        """The one that `facts` of it tell. Raises LookupError, TypeError or ValueError where they tell none."""
        return cls(str(facts["host"]), int(facts["pid"]), str(facts["began"]))

    def facts(self) -> dict[str, str | int]:
        """Plain values from which `of` makes it again."""
        return asdict(self)

    @property
    def is_near(self) -> bool:
        """Whether it is of this machine, so that `ended` can be told."""
        return self.host == _host()

    @property
    def ended(self) -> bool:
        """Whether it certainly is no more; never of one of another machine."""
        if not self.is_near or os.name != "posix":  # elsewhere asking would end it
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):  # another user's
            pass
        began = _began(self.pid)
        return began is not None and self.began not in ("", began)


def _host() -> str:
    parts = [socket.gethostname()]
    for read in (_boot, _namespace):
        try:
            parts.append(read())
        except OSError:  # only Linux tells
            parts.append("")
    return "/".join(parts)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _began(pid: int) -> str | None:
    """When a process was started, in ticks since the boot; 'ended' of one that only waits to be buried."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")  # its name may hold anything
        fields = rest.split()
        return "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None
