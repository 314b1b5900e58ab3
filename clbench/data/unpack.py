"""Unpacking archives that may be damaged, or mean harm."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from clbench.data.cache import Report
from clbench.errors import BadValue, StoreError
from clbench.files import explain

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""What reading a damaged archive raises; RuntimeError also over an encrypted one."""
EVERY = 100
"""So many files go by between two reports."""
MOST_TIMES, SLACK_BYTES = 100, 2**30
"""No published archive unfolds to so many times its size and a gigabyte: images are compressed already."""


def unpack(archive: Path, target: Path, report: Report) -> None:
    """Unpack a tar, compressed or not, or a zip into `target`.

    BadValue, naming the archive and the file inside, where it is damaged, would write outside `target`, holds a link
    or a device, or would unfold to more than the disk has room for or any published archive does; StoreError where the
    disk is full.
    """
    inside = ""
    try:
        target.mkdir()
        room = min(shutil.disk_usage(target).free, MOST_TIMES * archive.stat().st_size + SLACK_BYTES)
        members = (_zip if zipfile.is_zipfile(archive) else _tar)(archive, target, room)
        for number, name in enumerate(members):
            inside = name
            if number % EVERY == 0:
                report(f"unpacking {archive.name}", number, None)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise BadValue(f"'{archive}' is refused: no file can be made of '{inside[:60]}' in it.") from error
        if error.errno is not None:
            raise StoreError(explain(error, target)) from error
        raise _damaged(archive, inside, error) from error  # a bad gzip is an OSError without a number
    except (tarfile.FilterError, _Escape) as error:
        raise BadValue(f"'{archive}' is refused: it wants to write outside its folder ({error}).") from error
    except _Strange as error:
        raise BadValue(f"'{archive}' is refused: {error}; none of the published archives has such.") from error
    except DAMAGED as error:
        raise _damaged(archive, inside, error) from error


class _Escape(Exception):
    """A member whose path leads out of the folder."""


class _Strange(Exception):
    """A member that is neither file nor folder, or too much of them."""


def _tar(archive: Path, target: Path, room: int) -> Iterator[str]:
    with tarfile.open(archive) as file:
        for member in file:
            yield member.name
            if not (member.isfile() or member.isdir()):
                raise _Strange(f"'{member.name}' is a link or a device")
            room = _left(room, member.size)
            file.extract(member, target, filter="data")


def _zip(archive: Path, target: Path, room: int) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():  # what is said to be a link is written as a file that holds its target
            yield member.filename
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if not path.parts:
                raise _Strange("a file in it has no name")
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise _Escape(member.filename)
            room = _left(room, member.file_size)
            file.extract(member, target)


def _left(room: int, size: int) -> int:
    """The room that is left beside a file of `size` bytes."""
    if size > room:
        raise _Strange(f"it would unfold to {size - room:,} bytes more than there may be")
    return room - size


def _damaged(archive: Path, inside: str, error: Exception) -> BadValue:
    where = f" at '{inside}'" if inside else ""
    return BadValue(f"'{archive}' is damaged or no archive{where} ({error}); fetch it again.")
