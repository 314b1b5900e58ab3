"""Files: writing one so that nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import tempfile
from pathlib import Path

from clbench.errors import StoreError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, sync it and rename it into place.

    Raises StoreError with a sentence; what was at `path` before is then still there. A process that is
    killed half-way leaves its temporary file, see `sweep`.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise StoreError(explain(error, path)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    _sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add `text` to a file, made where it is missing; a link is refused, for it may lead anywhere. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:  # noqa: PTH123 (a descriptor)
        file.write(text)


def read_regular(path: Path, most: int = 2**30) -> bytes:
    """What a file holds, where it is one: no link, device or pipe, and no more than `most` bytes. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    with open(handle, "rb") as file:  # noqa: PTH123 (a descriptor)
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"it has {facts.st_size:,} bytes, more than {most:,}", str(path))
        return file.read()


def inside(path: Path, root: Path) -> bool:
    """Whether `path` lies in `root`, links followed."""
    return path.resolve().is_relative_to(root.resolve())


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers below `folder`, of which the caller is the only writer."""
    for leftover in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def sweep_old(folder: Path, now: Path, seconds: float = 3600.0) -> None:
    """Remove the temporary files right in `folder` that were written so long before the file `now` was.

    For a folder with several writers. A write takes no hour, and both times are of the file system's own clock.
    """
    with contextlib.suppress(OSError):
        latest = now.stat().st_mtime - seconds
        for leftover in folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if leftover.stat().st_mtime < latest:
                    leftover.unlink()


def set_aside(path: Path) -> Path:
    """Rename an unreadable file so that another may take its place; returns its new path. Nothing is deleted."""
    numbered = (path.with_name(f"{path.name}.aside-{number}") for number in itertools.count(1))
    aside = next(candidate for candidate in numbered if not candidate.exists())
    try:
        path.rename(aside)
    except OSError as error:
        raise StoreError(explain(error, path)) from error
    return aside


def explain(error: OSError, path: Path) -> str:
    """A sentence for an operating-system error at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to write '{path}'; free some room or choose another place, then run again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"'{path}' is not writable; change its permissions or choose another place."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"'{path}' needs a folder where a file stands; move the file or choose another place."
    return f"'{path}' could not be written: {error.strerror or error}."


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the file system can; the file is in place either way."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
