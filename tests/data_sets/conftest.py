"""Miniature archives, formatted exactly as the published ones, and how to prepare them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clbench.data import cache, contents
from clbench.data.contents import Counts, DataSet
from clbench.data.prepare import prepare

WNIDS = ("n01443537", "n01484850", "n02051845")
RANDOM = np.random.default_rng(0)


def silent(what: str, done: int, total: int | None) -> None:
    """A report to nobody."""


def picture(width: int = 12, height: int = 8, mode: str = "RGB", format: str = "JPEG") -> bytes:
    """The bytes of an image file of noise."""
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    pixels = RANDOM.integers(0, 256, (height, width, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode=mode).save(file, format)
    return file.getvalue()


@dataclass(frozen=True)
class Miniature:
    """A data set in small: the files of its archive, and what it must give."""

    files: dict[str, bytes]
    counts: Counts | None
    train: int
    lists: dict[str, bytes]

    def unpacked(self, folder: Path) -> Path:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, content in self.lists.items():
            (folder / name).write_bytes(content)
        return folder

    def archive(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as pack:
                for name, content in self.files.items():
                    pack.writestr(name, content)
        else:
            compression = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".tar": "w"}[path.suffix]
            with tarfile.open(path, compression) as pack:  # type: ignore[call-overload]
                for name, content in self.files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    pack.addfile(member, io.BytesIO(content))
        for name, content in self.lists.items():
            (path.parent / name).write_bytes(content)
        return path


def cifar(train: int = 4, test: int = 2) -> Miniature:
    names = ["apple", "bear", "cloud"]

    def part(each: int) -> bytes:
        labels = [label for _ in range(each) for label in (2, 0, 1)]
        rows = RANDOM.integers(0, 256, (len(labels), 3072), np.uint8)
        return pickle.dumps({"data": rows, "fine_labels": labels, "coarse_labels": labels, "filenames": []}, protocol=2)

    parts = {"train": part(train), "test": part(test), "meta": pickle.dumps({"fine_label_names": names}, protocol=2)}
    files = {f"cifar-100-python/{name}": content for name, content in parts.items()}
    return Miniature(files, Counts(images=3 * (train + test), classes=3, train=3 * train), 3 * train, {})


def cub() -> Miniature:
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    images = [f"{name}/{name[4:]}_{number}.jpg" for name in classes for number in range(3)]
    texts = {
        "classes.txt": "".join(f"{number} {name}\n" for number, name in enumerate(classes, 1)),
        "images.txt": "".join(f"{number} {name}\n" for number, name in enumerate(images, 1)),
        "image_class_labels.txt": "".join(f"{number} {(number + 2) // 3}\n" for number in range(1, 7)),
        "train_test_split.txt": "1 0\n2 1\n3 1\n4 1\n5 0\n6 0\n",
    }
    files = {f"CUB_200_2011/{name}": text.encode() for name, text in texts.items()}
    files |= {f"CUB_200_2011/images/{name}": picture(10 + number, 9) for number, name in enumerate(images)}
    files["attributes.txt"] = b"1 has_bill_shape::curved\n"  # lies beside the folder in the published archive
    return Miniature(files, Counts(images=6, classes=2, train=3), 3, {})


def imagenet_r() -> Miniature:
    """The first class of the lists is not the first by name, as in the published ones."""
    ids = {WNIDS[2]: 0, WNIDS[0]: 1}
    train = [f"{wnid}/{style}_{number}.jpg" for number in (1, 2) for style in ("art", "toy") for wnid in WNIDS[::2]]
    test = [f"{wnid}/sketch_{number}.jpg" for wnid in WNIDS[::2] for number in (7,)]

    def listed(names: list[str]) -> bytes:
        targets = [ids[name.split("/")[0]] for name in names]
        lines = ["data:", *(f"- data/imagenet-r/{name}" for name in names), "targets:", *(f"- {i}" for i in targets)]
        return ("\n".join(lines) + "\n").encode()

    files = {f"imagenet-r/{name}": picture() for name in train + test} | {
        "imagenet-r/README.txt": b"n01443537 goldfish"
    }
    lists = {"imagenet-r_train.yaml": listed(train), "imagenet-r_test.yaml": listed(test)}
    return Miniature(files, Counts(images=10, classes=2, train=8), 8, lists)


def imagenet_a() -> Miniature:
    names = [f"{wnid}/0.{number:06d}_fox squirrel _ sea lion_0.9.jpg" for wnid in WNIDS for number in range(6)]
    files = {f"imagenet-a/{name}": picture(9, 11) for name in names} | {"imagenet-a/README.txt": b"..."}
    return Miniature(files, Counts(images=18, classes=3), 12, {})


def tiny_imagenet() -> Miniature:
    train = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in WNIDS for number in range(3)]
    files = {name: picture(16, 16, "L" if "_2." in name else "RGB") for name in train}
    tests = [(f"val_{number}.JPEG", wnid) for number, wnid in enumerate(reversed(WNIDS))]
    files |= {f"val/images/{name}": picture(16, 16) for name, _ in tests}
    files["val/val_annotations.txt"] = "".join(f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in tests).encode()
    files |= {"test/images/test_0.JPEG": picture(16, 16), "wnids.txt": "\n".join(WNIDS[::-1]).encode()}
    files = {f"tiny-imagenet-200/{name}": content for name, content in files.items()}
    return Miniature(files, Counts(images=12, classes=3, train=9), 9, {})


def pacs() -> Miniature:
    domains, classes = ("photo", "art_painting", "cartoon", "sketch"), ("dog", "house")
    names = [f"{domain}/{name}/pic_{number:03d}.png" for domain in domains for name in classes for number in range(6)]
    files = {f"kfold/{name}": picture(8, 8, "L" if "sketch" in name else "RGB", "PNG") for name in names}
    return Miniature(files, Counts(images=48, classes=2, domains=4), 32, {})


MAKERS: dict[str, Callable[[], Miniature]] = {
    "cifar100": cifar,
    "cifar100-subset": cifar,
    "imagenet-r": imagenet_r,
    "imagenet-a": imagenet_a,
    "cub200": cub,
    "tiny-imagenet": tiny_imagenet,
    "pacs": pacs,
}


@dataclass(frozen=True)
class Shelf:
    """A data folder of the test's own, and the table of contents that knows the miniatures."""

    root: Path
    monkeypatch: pytest.MonkeyPatch

    def add(self, name: str, made: Miniature | None = None) -> Miniature:
        """Put the counts and checksums of a miniature into the table."""
        made = made or MAKERS[name]()
        known = contents.CONTENTS[name]
        lists = tuple(
            replace(archive, md5=hashlib.md5(made.lists[archive.file]).hexdigest()) for archive in known.lists
        )
        archive = replace(known.archive, url=None, bytes=None, md5=None, sha256=None)
        counts = None if known.counts is None else made.counts
        self.change(name, archive=archive, lists=lists, counts=counts, members={})
        return made

    def change(self, name: str, **changes: object) -> DataSet:
        changed = replace(contents.CONTENTS[name], **changes)  # type: ignore[arg-type]
        self.monkeypatch.setitem(contents.CONTENTS, name, changed)
        return changed

    def home(self, name: str) -> Path:
        return self.root / name

    def prepare(self, name: str, source: Path | None = None, short_side: int | None = None) -> cache.Prepared:
        prepare(name, source, silent, short_side=short_side)
        return cache.open(name, short_side=short_side, verify=True)

    def left(self, name: str) -> list[str]:
        """What a data set's folder holds, but for the lock."""
        return sorted(path.name for path in self.home(name).iterdir() if not path.name.startswith(".lease"))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "data"))
    return Shelf(tmp_path / "data", monkeypatch)


@pytest.fixture
def make() -> dict[str, Callable[[], Miniature]]:
    """How to make each miniature."""
    return MAKERS
