"""Data sets that are folders of image files: ImageNet-A, Tiny ImageNet and PACS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clbench.data.contents import DataSet
from clbench.data.found import (
    HOLDOUT,
    HOLDOUT_WORDS,
    Found,
    PictureFiles,
    locate,
    picture_names,
    require,
    subfolders,
    words,
)
from clbench.errors import BadValue

WNID = re.compile(r"n\d{8}")
"""The name of a class of ImageNet."""
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
"""Of PACS, in the order of its name."""
KFOLD = {"train": True, "crossval": False}
"""The published lists of a domain, and whether their images train; the third, `test`, is the union of both."""


def read_imagenet_a(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The images by class and file name, the classes by folder name.

    The set is published as a test set only: of each class the first of every five images tests here, and the others
    train. Other harnesses use random splits, so their figures are of other images.
    """
    folder = locate(root, lambda path: any(map(_is_class, subfolders(path))), "one folder a class")
    classes = [path for path in subfolders(folder) if _is_class(path)]
    images = [picture_names(path, folder) for path in classes]
    return Found(
        pictures=PictureFiles(folder, tuple(name for names in images for name in names)),
        targets=np.array([index for index, names in enumerate(images) for _ in names], np.int64),
        is_train=_held_out(images),
        class_names=tuple(path.name for path in classes),
        split=HOLDOUT_WORDS,
    )


def read_tiny_imagenet(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The training images by class and file name, then the validation images by file name; classes by name.

    The labels of the published test images are not public, so the validation images test, as everywhere.
    """
    notes = Path("val/val_annotations.txt")
    folder = locate(root, lambda path: (path / notes).is_file(), f"'{notes.as_posix()}'")
    classes = [path.name for path in subfolders(folder / "train")]
    images = [picture_names(folder / "train" / name / "images", folder) for name in classes]
    lines = sorted(words(folder / notes))
    position = {name: index for index, name in enumerate(classes)}
    if not all(len(line) > 1 and line[1] in position for line in lines):
        raise BadValue(f"'{notes.as_posix()}' names a class that has no folder in 'train'; fetch the archive again.")
    tests = [f"val/images/{line[0]}" for line in lines]
    require(folder, tests)
    train = [name for names in images for name in names]
    targets = [index for index, names in enumerate(images) for _ in names] + [position[line[1]] for line in lines]
    return Found(
        pictures=PictureFiles(folder, tuple(train + tests)),
        targets=np.array(targets, np.int64),
        is_train=np.arange(len(targets)) < len(train),
        class_names=tuple(classes),
        split="the published folders train and val",
    )


def read_pacs(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The images by domain, class and file name; classes by name.

    Split by the published lists (`photo_train_kfold.txt`, `photo_crossval_kfold.txt` and so on) where they lie at or
    below `root`: `train` trains and `crossval` tests. The lists called `test` hold whole domains, for leaving one out,
    and are not used. Without the lists, of each class and domain the first of every five images tests.
    """
    expected = f"the folders {', '.join(DOMAINS)}"
    folder = locate(root, lambda path: all((path / name).is_dir() for name in DOMAINS), expected)
    classes = [path.name for path in subfolders(folder / DOMAINS[0])]
    groups = [
        (picture_names(path, folder), domain, classes.index(path.name))
        for domain, name in enumerate(DOMAINS)
        for path in subfolders(folder / name)
        if path.name in classes
    ]
    names = tuple(name for images, _, _ in groups for name in images)
    published = _kfold(root, names)
    return Found(
        pictures=PictureFiles(folder, names),
        targets=np.array([target for images, _, target in groups for _ in images], np.int64),
        is_train=_held_out([images for images, _, _ in groups]) if published is None else published,
        class_names=tuple(classes),
        split=HOLDOUT_WORDS if published is None else "the published lists train and crossval of each domain",
        domains=np.array([domain for images, domain, _ in groups for _ in images], np.int64),
        domain_names=DOMAINS,
    )


def _kfold(root: Path, names: tuple[str, ...]) -> NDArray[np.bool_] | None:
    """[n] which images train by the published lists; None where there are none. BadValue where they do not fit."""
    wanted = {f"{domain}_{part}_kfold.txt": trains for domain in DOMAINS for part, trains in KFOLD.items()}
    found = {path.name: path for path in root.rglob("*_kfold.txt") if path.name in wanted}
    if not found:
        return None
    if missing := sorted(wanted.keys() - found.keys()):
        raise BadValue(f"'{missing[0]}' is missing beside other published lists; add it, or remove all of them.")
    trains = {line[0]: wanted[file] for file, path in found.items() for line in words(path)}
    if strangers := sorted(trains.keys() ^ set(names)):
        where = "in the lists only" if strangers[0] in trains else "in no list"
        raise BadValue(f"lists and folders differ in {len(strangers)} images: '{strangers[0]}' is {where}.")
    return np.array([trains[name] for name in names])


def _held_out(groups: list[list[str]]) -> NDArray[np.bool_]:
    """[n] False for the first of every five of each group."""
    return np.array([position % HOLDOUT != 0 for names in groups for position in range(len(names))], bool)


def _is_class(path: Path) -> bool:
    return WNID.fullmatch(path.name) is not None
