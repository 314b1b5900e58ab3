"""Index: a line on every run of a store, kept in one file so that a list of thousands does not read them all.

It is never trusted over the records: a line counts only while the record's file is the one it was made of, by its
times, size and number, and has lain still for a while before; else the record is read and the index written anew.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clbench import __version__
from clbench.errors import StoreError
from clbench.files import read_regular, write_atomically
from clbench.metrics import Undefined, average_accuracy
from clbench.record import SCHEMA, Record
from clbench.store import Store

HEAD = {"index": 1, "clbench": __version__, "schema": SCHEMA}
"""An index with another head is made anew."""
STILL_NS = 2 * 10**9
"""A file may change twice within what a file system calls one moment; younger ones are read again."""

Line = dict[str, Any]
Lines = Mapping[str, tuple[list[int], Line]]
"""Path of a record in the store -> what its file was like, and what it says."""


def lines(store: Store) -> tuple[list[Line], list[str]]:
    """What `line` says of every run, in the order of `Store.load`, and a sentence for each file that is no good."""
    folders, problems = store.folders("runs", depth=3)
    path, known, found, first = _path(store), _known(store), dict[str, tuple[list[int], Line]](), dict[str, Path]()
    written = _marks(path)
    settled = written[0] - STILL_NS if written else 0
    fresh = bool(known)
    for folder in folders:
        marks, name = _marks(folder / "record.json"), folder.relative_to(store.root).as_posix()
        if marks is None:
            continue
        said = known.get(name)
        if said is None or said[0] != marks or max(marks[:2]) >= settled:
            record, problem = store.cell(*folder.parts[-3:]).read()
            problems += [problem] if problem else []
            if record is None:
                continue
            said, fresh = (marks, line(record)), False
        if said[1]["key"] in first:
            problems.append(
                f"'{folder / 'record.json'}' repeats the cell of '{first[said[1]['key']]}'; it is left out."
            )
            continue
        first[said[1]["key"]] = folder
        found[name] = said
    if not fresh or found.keys() != known.keys():
        _write(path, found)
    return [said for _, said in found.values()], problems


def line(record: Record) -> Line:
    """What a list says of a run; `average` in percent, None where there is none."""
    score = average_accuracy(record.scores) if record.status == "done" else None
    return {
        "suite": record.suite,
        "method": record.method,
        "variant": record.variant,
        "seed": record.seed,
        "status": record.status,
        "score_name": record.score_name,
        "average": None if score is None or isinstance(score, Undefined) else round(100 * score, 2),
        "train_seconds": round(sum(cost.train_seconds for cost in record.costs), 2) if record.costs else None,
        "device": record.origin.device,
        "started": record.origin.started,
        "key": record.key,
    }


def _path(store: Store) -> Path:
    return store.place("runs", ".index.json")


def _marks(path: Path) -> list[int] | None:
    """What tells one state of a file from another, its two times first; None where there is no file."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISDIR(facts.st_mode):  # the times of what is in a folder are not its own
        return [2**63, facts.st_ctime_ns, 0, facts.st_ino]
    return [facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino]


def _known(store: Store) -> Lines:
    """What the index says; nothing where it is absent, torn, or of another version."""
    try:
        content = json.loads(read_regular(_path(store)))
        if content["head"] != HEAD:
            return {}
        known = {name: (list(marks), dict(said)) for name, (marks, said) in content["lines"].items()}
        wanted = line(Record.example()).keys()
        return {name: kept for name, kept in known.items() if kept[1].keys() == wanted and isinstance(name, str)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _write(path: Path, found: Lines) -> None:
    """Put the index in its place; of two writers the later one's stays, and is as good. A list needs none."""
    try:
        write_atomically(path, json.dumps({"head": HEAD, "lines": found}).encode())
    except StoreError:  # a store that can only be read
        return
