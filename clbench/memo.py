"""Memo: which cells a request came to, so that a finished comparison is told without loading what runs it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from clbench.files import write_atomically
from clbench.protocol import digest
from clbench.store import Store

_PACKAGES = ("clbench", "clbench.methods", "clbench.suites")
_SUFFIXES = {".py", ".json", ".safetensors"}


def question(request: Mapping[str, Any]) -> str:
    """Hash of a request, of all our sources and shipped weights, and of the versions of what they stand on.

    Equal hashes come to the same cells, so that nothing needs to be built to know their keys.
    """
    return digest({"request": dict(request), "sources": _sources(), "versions": _versions()}, 16)


def recall(store: Store, question: str) -> list[str] | None:
    """The keys of the cells that `question` came to in this store; None where it was never asked."""
    try:
        keys = json.loads(_path(store, question).read_bytes())
    except (OSError, ValueError):
        return None
    return keys if isinstance(keys, list) and keys else None


def keep(store: Store, question: str, keys: Iterable[str]) -> None:
    """Write down what `question` came to."""
    write_atomically(_path(store, question), json.dumps(list(keys)).encode())


def _path(store: Store, question: str) -> Path:
    return store.place("runs", ".plans", f"{question}.json")


def _sources() -> str:
    total = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix in _SUFFIXES:
                    total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def requirements() -> list[str]:
    """The distributions that clbench stands on, by name; those of its extras left out."""
    return sorted({_distribution(item) for item in metadata.requires("clbench") or [] if "extra ==" not in item})


def _versions() -> dict[str, str]:
    return {name: version for name in requirements() if (version := _version(name))}


def _distribution(requirement: str) -> str:
    """The name at the front of a requirement.

    >>> _distribution("torch>=2.15"), _distribution("a-b[c]>1; python_version<'4'")
    ('torch', 'a-b')
    """
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
