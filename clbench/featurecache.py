"""Features of the untouched backbone on disk, so that no image is looked at twice for the same numbers.

A file holds what was seen of one set of examples in order, `[n, width + 1]`: features and, last, the seconds
that they took. Its name is a hash of all they depend on: weights, examples, transform, normalisation, precision,
device, versions. Nothing else is in the cache, and what is lost from it is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clbench import datafolder
from clbench.errors import BadValue, StoreError
from clbench.files import explain, write_atomically

LIMIT_GIB = 4.0
"""How much is kept where $CLBENCH_CACHE_GIB does not say otherwise."""
GIB = 2**30
SEAL = 32
"""Bytes at a file's end: the SHA-256 of what stands before them."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    bytes: int
    used: float
    """When it was last read or written, in seconds since 1970."""


@dataclass(frozen=True)
class FeatureCache:
    """A folder of feature files, the longest unused of which go when there are too many bytes."""

    folder: Path
    limit_bytes: int

    @classmethod
    def wanted(cls) -> FeatureCache | None:
        """The user's; None where $CLBENCH_CACHE is 'off'. Raises BadValue where it is neither that nor 'on'."""
        said = os.environ.get("CLBENCH_CACHE") or "on"
        if said not in ("on", "off"):
            raise BadValue(f"CLBENCH_CACHE is '{said}'; set it to 'off' to keep no frozen features, or to 'on'.")
        return cls.usual() if said == "on" else None

    @classmethod
    def usual(cls) -> FeatureCache:
        """The user's: `clbench/features` in $XDG_CACHE_HOME or ~/.cache, up to $CLBENCH_CACHE_GIB.

        Raises BadValue where that is no number of GiB.
        """
        said = os.environ.get("CLBENCH_CACHE_GIB") or str(LIMIT_GIB)
        try:
            limit = float(said)
        except ValueError:
            limit = -1.0
        if not 0 <= limit < float("inf"):
            raise BadValue(f"CLBENCH_CACHE_GIB is '{said}'; it takes a number of GiB, or 0 to keep nothing.")
        return cls(datafolder.cache() / "features", int(limit * GIB))

    def get(self, key: str) -> Array | None:
        """The features kept under `key`; None where there are none, or no readable ones."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[:-SEAL]).digest() != content[-SEAL:]:
                return None
            found: Array = np.load(io.BytesIO(content[:-SEAL]), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        with contextlib.suppress(OSError):  # a read-only cache still answers
            path.touch()
        return found if found.dtype == np.float32 and found.ndim == 2 else None

    def holds(self, key: str) -> bool:
        """Whether there is a file for `key`, readable or not; not where the folder may not be entered."""
        with contextlib.suppress(OSError):
            return self._path(key).exists()
        return False

    def put(self, key: str, features: Array) -> None:
        """Keep `features`, if they fit at all; what cannot be written is only not kept."""
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(features, dtype=np.float32), allow_pickle=False)
        sealed = content.getvalue() + hashlib.sha256(content.getvalue()).digest()
        if len(sealed) > self.limit_bytes:
            return
        with contextlib.suppress(StoreError):
            write_atomically(self._path(key), sealed)
            self._shrink(keep=key)

    def entries(self) -> list[Entry]:
        """What is kept, the longest unused first; what a killed writer left too.

        Raises StoreError for a folder that cannot be read.
        """
        return sorted(self._files(), key=lambda entry: entry.used)

    def clear(self) -> int:
        """Remove every file; returns how many bytes were freed. Raises StoreError where that cannot be done."""
        freed = 0
        for entry in self._files():
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(explain(error, entry.path)) from error
            freed += entry.bytes
        return freed

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _files(self) -> list[Entry]:
        found = []
        try:
            for path in self.folder.glob("*.npy*"):  # and '.KEY.npy.….tmp', half-written
                with contextlib.suppress(FileNotFoundError):  # another process may have removed it
                    facts = path.stat()
                    found.append(Entry(path, facts.st_size, facts.st_mtime))
        except OSError as error:
            raise StoreError(explain(error, self.folder)) from error
        return found

    def _shrink(self, keep: str) -> None:
        entries = self.entries()
        over = sum(entry.bytes for entry in entries) - self.limit_bytes
        for entry in entries:
            if over <= 0:
                return
            if entry.path != self._path(keep):
                with contextlib.suppress(OSError):
                    entry.path.unlink()
                    over -= entry.bytes
