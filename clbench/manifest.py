"""Manifest: the hashes of a finished cell's files, by which it can be told whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from clbench.errors import StoreError
from clbench.files import read_regular

NAME = "manifest.json"
FILES = ("outcomes.npz",)
"""What a record may have beside it; a manifest that names anything else is not ours."""

Entries = dict[str, dict[str, str]]
"""SHA-256 of a record -> name of a file beside it -> its SHA-256."""


def pack(folder: Path, record: bytes, files: Mapping[str, bytes]) -> bytes:
    """The manifest to write into `folder` before `record` takes its place there.

    It speaks of the new record and of the one that is there still, so that it fits at every moment in between.
    """
    try:
        old = sha256(read_regular(folder / "record.json"))
        kept = {digest: names for digest, names in (entries(folder) or {}).items() if digest == old}
    except (OSError, StoreError):
        kept = {}
    kept[sha256(record)] = {name: sha256(content) for name, content in files.items()}
    return json.dumps({"manifest": 1, "records": kept}, indent=1).encode()


def entries(folder: Path) -> Entries | None:
    """What the manifest in `folder` says; None where there is none, StoreError where it says nothing."""
    path = folder / NAME
    try:
        found = json.loads(read_regular(path))["records"]
        whole = all(set(names) <= set(FILES) for names in found.values())
        hashes = [*found, *(digest for names in found.values() for digest in names.values())]
        if not whole or not all(isinstance(digest, str) for digest in hashes):
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"'{path}' could not be read: {error.strerror}.") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise StoreError(f"'{path}' is torn or no manifest.") from error
    return {digest: dict(names) for digest, names in found.items()}


def faults(folder: Path, record: bytes) -> list[str] | None:
    """A sentence for each file in `folder` that is not as it was written with `record`; None without a manifest."""
    try:
        said = entries(folder)
    except StoreError as error:
        return [str(error)]
    if said is None:
        return None
    if sha256(record) not in said:
        return [f"'{folder / 'record.json'}' is not as it was written."]
    found = []
    for name, digest in said[sha256(record)].items():
        try:
            if sha256(read_regular(folder / name)) != digest:
                found.append(f"'{folder / name}' is not as it was written.")
        except OSError as error:
            found.append(f"'{folder / name}' could not be read: {error.strerror}.")
    return found


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
