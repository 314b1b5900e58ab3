"""Caltech-UCSD Birds: the official split from its text files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clbench.data.contents import DataSet
from clbench.data.found import Found, PictureFiles, locate, require, words
from clbench.errors import BadValue

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The images in the order of `images.txt`, the classes in that of `classes.txt`.

    The split is that of `train_test_split.txt`, not the one of the redistributed folders `cub/train` and `cub/test`,
    whose figures cannot be compared with it. BadValue where a file is not as published.
    """
    folder = locate(root, lambda path: (path / FILES[0]).is_file(), f"the file {FILES[0]}")
    names, labels, train, classes = (_column(folder / file) for file in FILES)
    for file, column in zip(FILES[1:3], (labels, train), strict=True):
        if column.keys() != names.keys():
            raise BadValue(f"'{file}' and '{FILES[0]}' are of different images; fetch the archive again.")
    strange = {label for label in labels.values() if label not in classes}
    if strange:
        raise BadValue(f"'{FILES[1]}' names the class '{min(strange)}', which '{FILES[3]}' does not know.")
    marks = set(train.values()) - {"0", "1"}
    if marks:
        raise BadValue(f"'{FILES[2]}' marks an image with '{min(marks)}' instead of 0 or 1.")
    files = tuple(f"images/{name}" for name in names.values())
    require(folder, files)
    position = {label: index for index, label in enumerate(classes)}
    return Found(
        pictures=PictureFiles(folder, files),
        targets=np.array([position[labels[image]] for image in names], np.int64),
        is_train=np.array([train[image] == "1" for image in names]),
        class_names=tuple(classes.values()),
        split="the official train_test_split.txt",
    )


def _column(path: Path) -> dict[str, str]:
    """The second word of each line by the first, which is a number; in the lines' order."""
    lines = words(path)
    if any(len(line) != 2 for line in lines):
        raise BadValue(f"'{path.name}' has a line that is not two words; fetch the archive again.")
    return dict(map(tuple, lines))  # type: ignore[arg-type]
