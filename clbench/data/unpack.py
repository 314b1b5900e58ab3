"""Unpacking archives that may be damaged, or mean harm."""

from __future__ import annotations

import lzma
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


def unpack(archive: Path, target: Path, report: Report) -> None:
    """Unpack a tar, compressed or not, or a zip into `target`.

    BadValue, naming the archive and the file inside, where it is damaged or would write outside `target`; StoreError
    where the disk is full.
    """
    inside = ""
    try:
        target.mkdir()
        members = _zip(archive, target) if zipfile.is_zipfile(archive) else _tar(archive, target)
        for number, name in enumerate(members):
            inside = name
            if number % EVERY == 0:
                report(f"unpacking {archive.name}", number, None)
    except OSError as error:
        if error.errno is not None:
            raise StoreError(explain(error, target)) from error
        raise _damaged(archive, inside, error) from error  # a bad gzip is an OSError without a number
    except (tarfile.FilterError, _Escape) as error:
        raise BadValue(f"'{archive}' is refused: it wants to write outside its folder ({error}).") from error
    except DAMAGED as error:
        raise _damaged(archive, inside, error) from error


class _Escape(Exception):
    """A member whose path leads out of the folder."""


def _tar(archive: Path, target: Path) -> Iterator[str]:
    with tarfile.open(archive) as file:
        for member in file:
            yield member.name
            file.extract(member, target, filter="data")


def _zip(archive: Path, target: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            yield name
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise _Escape(name)
            file.extract(name, target)


def _damaged(archive: Path, inside: str, error: Exception) -> BadValue:
    where = f" at '{inside}'" if inside else ""
    return BadValue(f"'{archive}' is damaged or no archive{where} ({error}); fetch it again.")
