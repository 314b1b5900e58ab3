"""Preparing a data set: from an archive, a folder or the internet to decoded images."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clbench import datafolder
from clbench.data import cache, cifar, cub, folders, imagenet_r
from clbench.data.build import build
from clbench.data.cache import Report
from clbench.data.contents import CONTENTS, Archive, DataSet, Family, data_set
from clbench.data.fetch import fetch, verify
from clbench.data.found import Found
from clbench.data.unpack import unpack
from clbench.errors import BadValue, NotAvailable, StoreError
from clbench.files import explain, set_aside
from clbench.lease import Watch, held

READERS: dict[Family, Callable[[Path, DataSet, Mapping[str, Path]], Found]] = {
    "cifar": cifar.read,
    "cub": cub.read,
    "imagenet-r": imagenet_r.read,
    "imagenet-a": folders.read_imagenet_a,
    "tiny-imagenet": folders.read_tiny_imagenet,
    "pacs": folders.read_pacs,
}
UNFINISHED = ".unfinished"
"""The folder that holds everything until it is whole."""


def prepare(
    name: str, source: Path | None, report: Report, *, at: Path | None = None, short_side: int | None = None
) -> Path:
    """Make the data set called `name` ready for `clbench.data.cache.open`; returns the folder it lies in.

    `source` is an archive, or a folder: an unpacked archive, or one that holds the archive under its published name.
    When None, it is taken from the data set's own folder, or downloaded there. `at` and `short_side` are as for
    `open`. Checksums are compared with the published ones, then the numbers of images, classes and domains. A set
    that is prepared already is left as it is; a damaged one is set aside and made anew. What a killed preparation
    left is removed and its work done again, but a download goes on where it stopped.

    Raises UnknownName; BadValue where the source is damaged or another data set, naming archive and file; NotAvailable
    where it cannot be had, saying which files to put where; StoreError where the disk is full or another process is
    at the same.
    """
    data = data_set(name)
    if short_side is not None and short_side < 1:
        raise BadValue(f"--short-side {short_side} is no length; give the pixels of the shorter side, for example 256.")
    home = datafolder.folder(name, at)
    with _locked(home):
        done = _usable(data, home, short_side, at)
        if done is not None and source is not None:
            raise BadValue(f"{data.title} is prepared already; move '{done}' away to prepare it from '{source}'.")
        return done or _prepare(data, home, source, short_side, report)


@dataclass(frozen=True)
class State:
    """How far a data set has come on this machine."""

    state: Literal["prepared", "archive found", "partly downloaded", "missing"]
    bytes: int
    """Of the prepared copies, or of the archive: here, or as published; 0 where that is not known."""


def state(data: DataSet, at: Path | None = None) -> State:
    """How far `data` has come, from the names and sizes of files alone."""
    home = datafolder.folder(data.name, at)
    if copies := [folder for folder in cache.copies(home) if cache.holds(folder, data.name)]:
        return State("prepared", sum(path.stat().st_size for folder in copies for path in folder.iterdir()))
    archive = home / data.archive.file
    if archive.is_file():
        return State("archive found", archive.stat().st_size)
    part = archive.with_name(f"{archive.name}.part")
    return State("partly downloaded" if part.is_file() else "missing", data.archive.bytes or 0)


def _prepare(data: DataSet, home: Path, source: Path | None, short_side: int | None, report: Report) -> Path:
    unfinished = home / UNFINISHED
    try:
        if unfinished.exists():
            report("removing an unfinished preparation", 0, None)
            shutil.rmtree(unfinished)
        unfinished.mkdir()
    except OSError as error:
        raise StoreError(explain(error, unfinished)) from error
    try:
        try:
            given = _given(data, home, source, report)
            lists, list_words = _lists(data, home, given, report)
        except NotAvailable as error:
            raise NotAvailable(f"{error}{_others(data, home, source)}") from error
        if given.is_dir():
            root, words = given, f"the folder {given.name}"
        else:
            root, words = unfinished / "unpacked", f"{given.name} ({verify(given, data.archive, data, report)})"
            unpack(given, root, report)
        with _about(given):
            found = READERS[data.family](root, data, lists)
            check(found, data)
            origin = "; ".join([words, *list_words])
            return build(found, data, home, unfinished / "decoded", origin, short_side, report)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check(found: Found, data: DataSet) -> None:
    """Compare what was found with the published counts; BadValue in words where it differs."""
    train = int(found.is_train.sum())
    images, classes = len(found.targets), len(found.class_names)
    held = f"holds {train:,} training and {images - train:,} test images of {classes} classes"
    full = next((other for other in CONTENTS.values() if other.subset == data.name), None)
    if full is not None and full.counts is not None and images >= full.counts.images:
        raise BadValue(f"it {held}, all of {full.title}; prepare it as '{full.name}'.")
    if data.counts is not None:
        wanted = data.counts
        fits = images == wanted.images and classes == wanted.classes and wanted.train in (None, train)
        if not fits or len(found.domain_names) != wanted.domains:
            parts = f", {wanted.train:,} of them for training" if wanted.train is not None else ""
            raise BadValue(
                f"it {held}; {data.title} has {wanted.images:,} images{parts}, of {wanted.classes} classes.{data.hint}"
            )
    for marks, kind in ((found.is_train, "training"), (~found.is_train, "test")):
        empty = np.flatnonzero(np.bincount(found.targets[marks], minlength=classes) == 0)
        if len(empty):
            raise BadValue(f"it {held}, but no {kind} image of the class '{found.class_names[empty[0]]}'.")


def _usable(data: DataSet, home: Path, short_side: int | None, at: Path | None) -> Path | None:
    """The finished folder, if there is one; a damaged one is set aside."""
    folder = cache.finished(home, short_side)
    if folder is None:
        return None
    try:
        return cache.open(data.name, at, short_side=short_side).folder
    except StoreError:
        set_aside(folder)
        return None


def _given(data: DataSet, home: Path, source: Path | None, report: Report) -> Path:
    """The archive or folder to read."""
    archive = data.archive
    if source is not None:
        source = source.expanduser().absolute()
        if not source.exists():
            raise BadValue(f"there is nothing at '{source}'; --from takes {archive.file}, or a folder that holds it.")
        if not (source.is_file() or source.is_dir()):
            raise BadValue(f"'{source}' is a device or a pipe; --from takes {archive.file}, or a folder that holds it.")
        return source / archive.file if (source / archive.file).is_file() else source
    for here in (home / archive.file, home / data.folder):
        if here.exists():
            return here
    return fetch(archive, home / archive.file, data, report)


def _lists(data: DataSet, home: Path, given: Path, report: Report) -> tuple[dict[str, Path], list[str]]:
    """The small files that define the set, verified, by name; and their checksums in words.

    They are looked for in the source folder, beside the source and in the data set's folder, and else downloaded.
    """
    lists: dict[str, Path] = {}
    words = []
    for archive in data.lists:
        path = _list(archive, home, given)
        lists[archive.file] = path or fetch(archive, home / archive.file, data, report)
        words.append(f"{archive.file} ({verify(lists[archive.file], archive, data, report)})")
    return lists, words


def _list(archive: Archive, home: Path, given: Path) -> Path | None:
    places = (given / archive.file, given.parent / archive.file, home / archive.file)
    return next((place for place in places if place.is_file()), None)


def _others(data: DataSet, home: Path, source: Path | None) -> str:
    """The files that are wanted besides the first that could not be had, so that one journey brings them all."""
    archive = data.archive
    here = source is not None or any((home / name).exists() for name in (archive.file, data.folder))
    missing = [] if here else [archive]
    missing += [each for each in data.lists if _list(each, home, source or home / archive.file) is None]
    if len(missing) < 2:
        return ""
    return f" Bring along, to the same folder: {', '.join(f'{each.file} from {each.url}' for each in missing[1:])}."


@contextlib.contextmanager
def _about(source: Path) -> Iterator[None]:
    """Begin what is wrong inside `source` with its name."""
    try:
        yield
    except BadValue as error:
        raise BadValue(f"'{source}': {error}") from error
    except OSError as error:
        raise BadValue(f"'{source}' cannot be read ({error}).") from error


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keep other processes from preparing into `home`."""
    with held(home, Watch(), insist=True) as mine:
        if mine is None:
            raise StoreError(f"another process is preparing '{home}'; wait for it.")
        yield
