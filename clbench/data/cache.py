"""Prepared data sets: decoded images with their labels, opened from disk without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clbench import datafolder
from clbench.data.contents import DataSet, data_set
from clbench.errors import BadValue, NotAvailable, StoreError

FORMAT = 1
"""Version of the files below; one of another number is made anew."""
MANIFEST = "manifest.json"
PIXELS, SIZES, TARGETS, IS_TRAIN, DOMAINS = "pixels.u8", "sizes.npy", "targets.npy", "is_train.npy", "domains.npy"
"""All images one after another, each [3, h, w]; [n, 2] of heights and widths; and [n] each."""
HEXADECIMALS = 16
"""So much of the content hash stands in the folder's name."""

Report = Callable[[str, int, int | None], None]
"""Told while something takes long: what is being done, how much of it, of how much where that is known."""


class File(BaseModel):
    """One file of a prepared data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a prepared data set says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    name: str
    short_side: int | None
    split: str
    images: int
    train_images: int
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    source: str
    """The archive or folder it was made from, and the archive's checksum."""
    decoder: str
    sha256: str
    files: dict[str, File]


class Pixels:
    """Images as they were stored: uint8, red, green, blue; read from disk when asked for."""

    def __init__(self, stored: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
        """`stored` holds all images one after another, `sizes` [n, 2] their heights and widths."""
        self._stored = np.asarray(stored)  # of a memory map a plain view, which is faster to slice
        self._sizes = sizes
        self._ends = np.cumsum(3 * sizes.prod(axis=1))

    def __len__(self) -> int:
        return len(self._sizes)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One image, [3, h, w]: a read-only view into the file. IndexError where there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        height, width = self._sizes[index]
        end = self._ends[index]
        return self._stored[end - 3 * height * width : end].reshape(3, height, width)

    @property
    def uniform(self) -> NDArray[np.uint8] | None:
        """All images as one read-only array [n, 3, H, W]; None where their sizes differ."""
        if (self._sizes != self._sizes[0]).any():
            return None
        return self._stored.reshape(len(self), 3, *self._sizes[0])


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for use: every image of every split, in a fixed order."""

    name: str
    """As in `clbench.data.contents`; a subset has its own."""
    images: Pixels
    targets: NDArray[np.int64]
    """[n], positions in `class_names`: the natural class order."""
    is_train: NDArray[np.bool_]
    """[n], True for training images, False for test images."""
    domains: NDArray[np.int64] | None
    """[n], positions in `domain_names`; None where the set has no domains."""
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    split: str
    """Where the split into train and test comes from, in words."""
    short_side: int | None
    """To which length the shorter side of larger images was shrunk; None: every image has its own size."""
    sha256: str
    """Of the contents: name, images as published (encoded), labels, split and `short_side`; part of the protocol
    card. The same on every machine."""
    pixels_sha256: str
    """Of the decoded pixels, in whose last bit JPEG decoders may differ. For caches of what is computed from them."""
    folder: Path

    def __len__(self) -> int:
        return len(self.targets)


def open(name: str, at: Path | None = None, *, short_side: int | None = None, verify: bool = False) -> Prepared:
    """The prepared data set called `name`, memory-mapped: nothing but its labels is read.

    `at` is the data set's folder, the one of its name in the data folder when None. `short_side` asks for the
    variant that was prepared with it. The sizes of the files are compared with the manifest, and the sha256 of all
    but the pixels; theirs too where `verify` is set, which reads everything once.

    Raises UnknownName for a name that no table knows, NotAvailable where the set is not prepared, with the command
    that prepares it, BadValue where the folder holds another set, and StoreError where its files are damaged.
    """
    data = data_set(name)
    home = datafolder.folder(name, at)
    folder = finished(home, short_side)
    if folder is None:
        raise NotAvailable(_not_prepared(data, home, at, short_side))
    manifest = read_manifest(folder)
    if manifest.name != name:
        raise BadValue(f"'{home}' holds '{manifest.name}', which is not '{name}': ask for it by its own name.")
    if data.counts is not None and manifest.images != data.counts.images:
        raise StoreError(
            f"'{folder}' holds {manifest.images:,} images and {data.title} has {data.counts.images:,}; move it away "
            "and prepare the data set again."
        )
    _check(folder, manifest, verify)
    return Prepared(
        name=name,
        images=Pixels(np.memmap(folder / PIXELS, np.uint8, mode="r"), _load(folder / SIZES)),
        targets=_load(folder / TARGETS),
        is_train=_load(folder / IS_TRAIN),
        domains=_load(folder / DOMAINS) if DOMAINS in manifest.files else None,
        class_names=manifest.class_names,
        domain_names=manifest.domain_names,
        split=manifest.split,
        short_side=short_side,
        sha256=manifest.sha256,
        pixels_sha256=manifest.files[PIXELS].sha256,
        folder=folder,
    )


def _not_prepared(data: DataSet, home: Path, at: Path | None, short_side: int | None) -> str:
    """What is missing, and how to come by it."""
    command = f"clbench data prepare {data.name}" + ("" if short_side is None else f" --short-side {short_side}")
    others = ", ".join(f"'{folder.name}'" for folder in copies(home))
    found = f" ({others} there is of another size)" if others else ""
    missing = f"{data.title} is not prepared in '{home}'{found}"
    if at is None:
        return f"{missing}; run '{command}' first."
    return f"{missing}; run '{command} --from {at}' first, and then leave the folder out."


def variant(short_side: int | None) -> str:
    """How the folders of a variant begin."""
    return "decoded-full-" if short_side is None else f"decoded-short{short_side}-"


def copies(home: Path, begin: str = "decoded-*-") -> list[Path]:
    """The whole folders inside a data set's folder whose names begin so."""
    digits = "[0-9a-f]" * HEXADECIMALS  # no more, so that a folder that was set aside is not found
    return sorted(path.parent for path in home.glob(f"{begin}{digits}/{MANIFEST}"))


def finished(home: Path, short_side: int | None) -> Path | None:
    """The folder of a whole variant inside the data set's folder, if there is one; StoreError if there are several."""
    found = copies(home, variant(short_side))
    if len(found) > 1:
        names = ", ".join(f"'{folder.name}'" for folder in found)
        raise StoreError(f"'{home}' holds several copies of one data set ({names}); move all but one away.")
    return found[0] if found else None


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; StoreError where it is damaged or of another version."""
    again = f"move '{folder}' away and prepare the data set again."
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise StoreError(f"'{folder / MANIFEST}' is damaged; {again}") from error
    if manifest.format != FORMAT:
        raise StoreError(f"'{folder}' was prepared by another version of clbench; {again}")
    return manifest


def holds(folder: Path, name: str) -> bool:
    """Whether the manifest in `folder` is readable and of the set called `name`."""
    try:
        return read_manifest(folder).name == name
    except StoreError:
        return False


def _check(folder: Path, manifest: Manifest, verify: bool) -> None:
    for name, file in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            has = "is missing" if size is None else f"has {size} bytes"
        elif (verify or name != PIXELS) and sha256(path) != file.sha256:
            has = "has another sha256"
        else:
            continue
        wanted = f"{file.bytes} bytes, sha256 {file.sha256[:HEXADECIMALS]}…"
        raise StoreError(
            f"'{path}' {has}, its manifest says {wanted}; move '{folder}' away and prepare the data set again."
        )


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path) -> NDArray[Any]:
    return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
