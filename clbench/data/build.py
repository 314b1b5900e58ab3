"""Writing a prepared data set: images are decoded once, and nobody ever sees half of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from clbench.data import cache
from clbench.data.cache import File, Manifest, Report
from clbench.data.contents import DataSet
from clbench.data.found import Found, decode
from clbench.errors import StoreError
from clbench.files import explain

IMAGES_A_WORKER = 16
"""So many are decoded before they are written: enough to keep every core busy, little enough for the memory."""


def build(
    found: Found, data: DataSet, home: Path, folder: Path, source: str, short_side: int | None, report: Report
) -> Path:
    """Decode `found` into `folder` and rename it to its place in `home` when whole; returns that place.

    BadValue, with the image's name, where one is damaged; StoreError where the disk is full.
    """
    try:
        folder.mkdir()
        sizes, digests = _write_pixels(found, folder / cache.PIXELS, short_side, report)
        arrays = {cache.SIZES: sizes, cache.TARGETS: found.targets, cache.IS_TRAIN: found.is_train}
        if found.domains is not None:
            arrays[cache.DOMAINS] = found.domains
        for name, array in arrays.items():
            np.save(folder / name, array, allow_pickle=False)
        manifest = Manifest(
            format=cache.FORMAT,
            name=data.name,
            short_side=short_side,
            split=found.split,
            images=len(found.targets),
            train_images=int(found.is_train.sum()),
            class_names=found.class_names,
            domain_names=found.domain_names,
            source=source,
            decoder=f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
            sha256=content_hash(found, digests, data, short_side),
            files={name: _described(folder / name) for name in (cache.PIXELS, *arrays)},
        )
        (folder / cache.MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in folder.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        place = home / f"{cache.variant(short_side)}{manifest.sha256[: cache.HEXADECIMALS]}"
        folder.rename(place)
    except OSError as error:
        raise StoreError(explain(error, folder)) from error
    return place


def content_hash(found: Found, digests: bytes, data: DataSet, short_side: int | None) -> str:
    """The sha256 of what the data set is: its name, every encoded image, label and split mark, in order."""
    card = {
        "name": data.name,
        "short_side": short_side,
        "class_names": found.class_names,
        "domain_names": found.domain_names,
    }
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    domains = np.empty(0) if found.domains is None else found.domains
    for numbers in (found.targets, found.is_train, domains):
        digest.update(numbers.astype("<i8").tobytes())
    digest.update(digests)
    return digest.hexdigest()


def _write_pixels(found: Found, path: Path, short_side: int | None, report: Report) -> tuple[NDArray[np.int64], bytes]:
    """Write all images one after another; returns their heights and widths, [n, 2], and their joined sha256."""
    sizes = np.zeros((len(found.pictures), 2), np.int64)
    digests = []
    with path.open("wb") as file:
        for index, (pixels, digest) in enumerate(_decoded(found, short_side)):
            sizes[index] = pixels.shape[1:]
            digests.append(digest)
            file.write(pixels.tobytes())
            report("decoding images", index + 1, len(sizes))
    return sizes, b"".join(digests)


def _decoded(found: Found, short_side: int | None) -> Iterator[tuple[NDArray[np.uint8], bytes]]:
    """Every image with its sha256, in order; Pillow decodes outside the interpreter's lock, so threads suffice."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        every = range(len(found.pictures))
        step = IMAGES_A_WORKER * workers
        for start in every[::step]:
            yield from pool.map(lambda index: decode(found.pictures, index, short_side), every[start : start + step])


def _described(path: Path) -> File:
    return File(bytes=path.stat().st_size, sha256=cache.sha256(path))
