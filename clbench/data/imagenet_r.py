"""ImageNet-R by its published lists, which fix the split and the numbers of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clbench.data.contents import DataSet
from clbench.data.found import Found, PictureFiles, locate, require, subfolders
from clbench.errors import BadValue

PREFIX = "data/imagenet-r/"
"""How the paths in the lists begin."""


def read(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The images of the training list, then of the test list, in the lists' order; the class ids are the lists' own.

    Those are not the positions of the sorted folder names, so sorting would give other tasks. `lists` holds the
    verified files by name. BadValue where a listed image is missing.
    """
    (train, train_targets), (test, test_targets) = (columns(lists[archive.file]) for archive in data.lists)
    names, targets = train + test, train_targets + test_targets
    folders = dict(zip(targets, (name.split("/")[0] for name in names), strict=True))
    if any(folders[target] != name.split("/")[0] for name, target in zip(names, targets, strict=True)):
        raise BadValue("the lists give one class id to two folders.")
    wanted = set(folders.values())
    root = locate(root, lambda path: bool(wanted & {child.name for child in subfolders(path)}), f"{min(wanted)}/")
    require(root, names)
    return Found(
        pictures=PictureFiles(root, tuple(names)),
        targets=np.array(targets, np.int64),
        is_train=np.arange(len(names)) < len(train),
        class_names=tuple(folders[target] for target in sorted(folders)),
        split="the published lists of 24,000 and 6,000 images",
    )


def columns(path: Path) -> tuple[list[str], list[int]]:
    """Paths and class ids of a list: YAML, but so plain that its lines are read, in a hundredth of the time."""
    paths, _, targets = path.read_text(encoding="utf-8").partition("targets:")
    names = [line[2:].removeprefix(PREFIX) for line in paths.splitlines() if line.startswith("- ")]
    return names, [int(line[2:]) for line in targets.splitlines() if line.startswith("- ")]
