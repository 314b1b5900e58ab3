"""What a reader finds in a data set's folder, before a picture is decoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clbench.errors import BadValue

DEPTH = 3
"""So many levels down a data set's folder is looked for."""
SUFFIXES = {".jpg", ".jpeg", ".png"}
HOLDOUT = 5
"""Where no split is published, the first of every so many images tests."""
HOLDOUT_WORDS = f"the first of every {HOLDOUT} images of a class tests, by file name"


class Pictures(Protocol):
    """Encoded images in a fixed order."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For errors: where the image is."""

    def encoded(self, index: int) -> bytes:
        """The image as published."""

    def picture(self, encoded: bytes) -> Image.Image:
        """The image, perhaps not decoded yet."""


@dataclass(frozen=True)
class PictureFiles:
    """Image files below a folder."""

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return self.names[index]

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        return (self.folder / self.names[index]).read_bytes()

    def picture(self, encoded: bytes) -> Image.Image:
        """As Pillow opens it; a rotation noted beside the pixels is not applied, as in torchvision."""
        return Image.open(io.BytesIO(encoded))


@dataclass(frozen=True, eq=False)
class PictureRows:
    """Images that are published as pixels."""

    rows: NDArray[np.uint8]
    """[n, 3, h, w]"""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Its number."""
        return f"row {index}"

    def encoded(self, index: int) -> bytes:
        """The pixels' bytes."""
        return bytes(self.rows[index].tobytes())

    def picture(self, encoded: bytes) -> Image.Image:
        """As a picture."""
        pixels = np.frombuffer(encoded, np.uint8).reshape(self.rows.shape[1:])
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True, eq=False)
class Found:
    """A data set before its images are decoded."""

    pictures: Pictures
    targets: NDArray[np.int64]
    """[n], positions in `class_names`."""
    is_train: NDArray[np.bool_]
    class_names: tuple[str, ...]
    split: str
    """Where the split comes from, in words."""
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()


def decode(pictures: Pictures, index: int, short_side: int | None) -> tuple[NDArray[np.uint8], bytes]:
    """The pixels of an image, [3, h, w] in red, green, blue, and the sha256 of the encoded image.

    Grey, palette and CMYK images become RGB. With `short_side`, images whose shorter side is longer are shrunk to it,
    bicubic, the other side rounded down as in torchvision's Resize: so a test view that resizes to that side and
    crops is unchanged. Raises BadValue with the image's name where it is damaged.
    """
    try:
        encoded = pictures.encoded(index)
        picture = pictures.picture(encoded).convert("RGB")
    except Exception as error:  # what a decoder raises over damaged bytes is not documented
        raise BadValue(
            f"the image '{pictures.name(index)}' cannot be decoded ({error}); fetch the data set again."
        ) from error
    short = min(picture.size)
    if short_side is not None and short > short_side:
        width, height = (int(short_side * side / short) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1), hashlib.sha256(encoded).digest()


def locate(root: Path, holds: Callable[[Path], bool], expected: str) -> Path:
    """The first folder at or below `root` that `holds` what is looked for; BadValue, saying what was `expected`."""
    level = [root]
    for _ in range(DEPTH):
        for folder in level:
            if holds(folder):
                return folder
        level = [child for folder in level for child in subfolders(folder)]
    raise BadValue(f"there is no folder with {expected} in it.")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones and those that archivers add."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def picture_names(folder: Path, below: Path) -> list[str]:
    """The image files of `folder` as paths below `below`, sorted by file name."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    prefix = folder.relative_to(below).as_posix()
    return [f"{prefix}/{name}" for name in names if not name.startswith(".")]


def words(path: Path) -> list[list[str]]:
    """The lines of a published text file, each split at white space; BadValue where it cannot be read."""
    try:
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"'{path.name}' cannot be read ({error}); fetch the data set again.") from error


def require(folder: Path, names: Iterable[str]) -> None:
    """BadValue where one of the files that a list names is not in `folder`."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadValue(f"{len(missing)} listed images are missing, '{missing[0]}' the first; fetch the data set again.")
