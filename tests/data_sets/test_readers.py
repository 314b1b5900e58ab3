from __future__ import annotations

import io
import lzma
import os
import pickle
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clbench.data import contents, imagenet_r
from clbench.errors import BadValue, NotAvailable

Shelf, Make = Any, Any
EVERY = tuple(contents.CONTENTS)


def opened(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("name", EVERY)
def test_an_archive_and_its_unpacked_folder_give_the_same_set(
    name: str, shelf: Shelf, make: Make, tmp_path: Path
) -> None:
    made = shelf.add(name)
    archive = made.archive(tmp_path / "here" / contents.CONTENTS[name].archive.file)
    first = shelf.prepare(name, archive)
    assert (len(first), int(first.is_train.sum())) == (made.counts.images, made.train)
    assert len(first.class_names) == made.counts.classes
    assert len(first.domain_names) == made.counts.domains
    assert first.targets.dtype == np.int64
    assert shelf.left(name) == [first.folder.name]
    shelf.monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "other"))
    again = shelf.prepare(name, made.unpacked(tmp_path / "unpacked"))
    assert again.folder != first.folder
    assert again.sha256 == first.sha256
    assert again.pixels_sha256 == first.pixels_sha256


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cifar100-subset"])
def test_wrong_counts_are_refused_and_leave_nothing(name: str, shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add(name)
    shelf.change(name, counts=replace(made.counts, images=made.counts.images + 1))
    with pytest.raises(BadValue, match=f"has {made.counts.images + 1} images"):
        shelf.prepare(name, made.unpacked(tmp_path / "unpacked"))
    assert shelf.left(name) == []


def test_the_archive_in_the_data_folder_is_found(shelf: Shelf) -> None:
    made = shelf.add("cub200")
    made.archive(shelf.home("cub200") / "CUB_200_2011.tgz")
    assert len(shelf.prepare("cub200")) == 6


# CIFAR


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_keeps_every_pixel_and_the_order_of_meta(protocol: int, shelf: Shelf, make: Make, tmp_path: Path) -> None:
    made = make["cifar100"]()
    for file, content in made.files.items():
        made.files[file] = pickle.dumps(pickle.loads(content), protocol=protocol)
    shelf.add("cifar100", made)
    ready = shelf.prepare("cifar100", made.unpacked(tmp_path / "unpacked"))
    train, test = (pickle.loads(made.files[f"cifar-100-python/{part}"]) for part in ("train", "test"))
    rows = np.concatenate([train["data"], test["data"]]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(ready.images.uniform, rows)
    np.testing.assert_array_equal(ready.images.pixels(17), rows[17])
    assert ready.targets.tolist() == train["fine_labels"] + test["fine_labels"]
    assert ready.class_names == ("apple", "bear", "cloud")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": np.zeros((6, 3072), np.float32)}, "no array 'data'"),
        ({"data": np.zeros((6, 3000), np.uint8)}, "no array 'data'"),
        ({"fine_labels": [3] * 6}, "from 0 to 2"),
        ({"fine_labels": [0]}, "6 images and 1 labels"),
    ],
)
def test_cifar_files_of_another_form_are_refused(
    change: dict[str, Any], says: str, shelf: Shelf, make: Make, tmp_path: Path
) -> None:
    made = make["cifar100"]()
    content = pickle.loads(made.files["cifar-100-python/test"]) | change
    made.files["cifar-100-python/test"] = pickle.dumps(content, protocol=2)
    shelf.add("cifar100", made)
    with pytest.raises(BadValue, match=says):
        shelf.prepare("cifar100", made.unpacked(tmp_path / "unpacked"))


def test_a_subset_goes_by_its_own_name_only(shelf: Shelf, make: Make, tmp_path: Path) -> None:
    shelf.add("cifar100")
    shelf.add("cifar100-subset")
    part = make["cifar100"](train=2, test=1).unpacked(tmp_path / "part")
    whole = make["cifar100"]().unpacked(tmp_path / "whole")
    with pytest.raises(BadValue, match="is prepared as 'cifar100-subset'"):
        shelf.prepare("cifar100", part)
    with pytest.raises(BadValue, match="all of CIFAR-100; prepare it as 'cifar100'"):
        shelf.prepare("cifar100-subset", whole)
    assert len(shelf.prepare("cifar100-subset", part)) == 9


def test_the_name_is_part_of_the_hash(shelf: Shelf, make: Make, tmp_path: Path) -> None:
    part = make["cifar100"](train=2, test=1)
    shelf.add("cifar100", part)
    shelf.change("cifar100", subset=None)
    shelf.add("cifar100-subset")
    folder = part.unpacked(tmp_path / "part")
    assert shelf.prepare("cifar100", folder).sha256 != shelf.prepare("cifar100-subset", folder).sha256


def test_files_of_an_unpacked_folder_are_verified_where_published(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cifar100")
    sums = {name.split("/")[1]: md5(content).hexdigest() for name, content in made.files.items()}
    shelf.change("cifar100", members=sums | {"test": "0" * 32})
    folder = made.unpacked(tmp_path / "unpacked")
    with pytest.raises(BadValue, match=r"'test' has the md5 .* prepared as 'cifar100-subset'"):
        shelf.prepare("cifar100", folder)
    shelf.change("cifar100", members=sums)
    assert len(shelf.prepare("cifar100", folder)) == 18


# ImageNet-R


def test_imagenet_r_has_the_order_and_the_class_ids_of_the_lists(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("imagenet-r")
    ready = shelf.prepare("imagenet-r", made.unpacked(tmp_path / "unpacked"))
    assert ready.class_names == ("n02051845", "n01443537")
    assert ready.targets.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert ready.is_train.tolist() == [True] * 8 + [False] * 2
    np.testing.assert_array_equal(ready.images.pixels(2), opened(made.files["imagenet-r/n01443537/toy_1.jpg"]))


def test_other_lists_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("imagenet-r")
    folder = made.unpacked(tmp_path / "unpacked")
    (folder / "imagenet-r_test.yaml").write_bytes(made.lists["imagenet-r_test.yaml"] + b"\n")
    with pytest.raises(BadValue, match=r"imagenet-r_test\.yaml' has the md5 .* published"):
        shelf.prepare("imagenet-r", folder)


def test_missing_lists_are_asked_for_by_name_and_place(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("imagenet-r")
    lists = tuple(replace(archive, url=None) for archive in contents.CONTENTS["imagenet-r"].lists)
    shelf.change("imagenet-r", lists=lists)
    folder = made.unpacked(tmp_path / "unpacked")
    (folder / "imagenet-r_train.yaml").unlink()
    with pytest.raises(NotAvailable, match=f"put it at '{shelf.home('imagenet-r')}/imagenet-r_train.yaml'"):
        shelf.prepare("imagenet-r", folder)


def test_a_listed_image_that_is_missing_is_named(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("imagenet-r")
    folder = made.unpacked(tmp_path / "unpacked")
    (folder / "imagenet-r/n01443537/toy_2.jpg").unlink()
    with pytest.raises(BadValue, match=r"1 listed images are missing, 'n01443537/toy_2\.jpg'"):
        shelf.prepare("imagenet-r", folder)


# CUB


def test_cub_follows_its_official_split(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    ready = shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    assert ready.is_train.tolist() == [False, True, True, True, False, False]
    assert ready.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert ready.class_names == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert [ready.images.pixels(index).shape for index in (0, 5)] == [(3, 9, 10), (3, 9, 15)]
    assert ready.images.uniform is None


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("train_test_split.txt", "1 0\n", "of different images"),
        ("image_class_labels.txt", "".join(f"{i} 3\n" for i in range(1, 7)), "the class '3'"),
        ("train_test_split.txt", "".join(f"{i} 2\n" for i in range(1, 7)), "'2' instead of 0 or 1"),
        ("images.txt", "1\n", "not two words"),
        ("images.txt", "".join(f"{i} a/{i}.jpg\n" for i in range(1, 7)), "6 listed images are missing"),
        ("train_test_split.txt", "".join(f"{i} 1\n" for i in range(1, 7)), "has 6 images, 3 of them for training"),
    ],
)
def test_cub_files_that_do_not_fit_are_named(file: str, text: str, says: str, shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    made.files[f"CUB_200_2011/{file}"] = text.encode()
    with pytest.raises(BadValue, match=says):
        shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))


def test_a_class_without_test_images_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    made.files["CUB_200_2011/train_test_split.txt"] = b"1 0\n2 0\n3 0\n4 1\n5 1\n6 1\n"
    with pytest.raises(BadValue, match=r"no training image of the class '001\.Black_footed_Albatross'"):
        shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))


# folders


def test_imagenet_a_tests_on_the_first_of_every_five_by_name(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("imagenet-a")
    ready = shelf.prepare("imagenet-a", made.unpacked(tmp_path / "unpacked"))
    assert ready.is_train.tolist() == 3 * [False, True, True, True, True, False]
    assert ready.targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert ready.class_names == ("n01443537", "n01484850", "n02051845")


def test_tiny_imagenet_tests_on_its_validation_images(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("tiny-imagenet")
    ready = shelf.prepare("tiny-imagenet", made.unpacked(tmp_path / "unpacked"))
    assert ready.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 1, 0]
    assert ready.images.uniform is not None
    assert ready.images.uniform.shape == (12, 3, 16, 16)
    grey = ready.images.pixels(2)
    np.testing.assert_array_equal(grey[0], grey[2])
    np.testing.assert_array_equal(grey, opened(made.files["tiny-imagenet-200/train/n01443537/images/n01443537_2.JPEG"]))


def test_tiny_imagenet_with_a_strange_annotation_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("tiny-imagenet")
    made.files["tiny-imagenet-200/val/val_annotations.txt"] = b"val_0.JPEG\tn99999999\t0\t0\t1\t1\n"
    with pytest.raises(BadValue, match="names a class that has no folder"):
        shelf.prepare("tiny-imagenet", made.unpacked(tmp_path / "unpacked"))


def test_pacs_without_lists_tests_on_the_first_of_every_five(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("pacs")
    ready = shelf.prepare("pacs", made.unpacked(tmp_path / "unpacked"))
    assert ready.domain_names == ("photo", "art_painting", "cartoon", "sketch")
    assert ready.domains.tolist() == [domain for domain in range(4) for _ in range(12)]
    assert ready.targets.tolist() == 4 * ([0] * 6 + [1] * 6)
    assert ready.is_train.tolist() == 8 * [False, True, True, True, True, False]
    assert "first of every 5" in ready.split


def kfold(folder: Path, held_out: str) -> None:
    """The published lists: images of one number test; one more list of each domain holds them all."""
    (folder / "splits").mkdir()
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        names = sorted(
            path.relative_to(folder / "kfold").as_posix() for path in (folder / "kfold" / domain).rglob("*.png")
        )
        parts = {
            "train": [name for name in names if held_out not in name],
            "crossval": [name for name in names if held_out in name],
            "test": names,
        }
        for part, listed in parts.items():
            text = "".join(f"{name} {1 + ('house' in name)}\n" for name in listed)
            (folder / "splits" / f"{domain}_{part}_kfold.txt").write_text(text)


def test_pacs_follows_the_published_lists_where_they_are(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("pacs")
    folder = made.unpacked(tmp_path / "unpacked")
    kfold(folder, held_out="_002")
    ready = shelf.prepare("pacs", folder)
    assert ready.is_train.tolist() == 8 * [True, True, False, True, True, True]
    assert "published lists" in ready.split


def test_pacs_with_lists_that_do_not_fit_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("pacs")
    folder = made.unpacked(tmp_path / "unpacked")
    kfold(folder, held_out="_002")
    one = folder / "splits" / "photo_train_kfold.txt"
    lines = one.read_text().splitlines(keepends=True)
    one.write_text("".join(lines[1:]))
    with pytest.raises(BadValue, match=r"differ in 1 images: 'photo/dog/pic_000\.png' is in no list"):
        shelf.prepare("pacs", folder)
    one.write_text("".join([*lines, "photo/dog/strange.png 1\n"]))
    with pytest.raises(BadValue, match=r"'photo/dog/strange\.png' is in the lists only"):
        shelf.prepare("pacs", folder)
    one.unlink()
    with pytest.raises(BadValue, match=r"'photo_train_kfold\.txt' is missing"):
        shelf.prepare("pacs", folder)


@pytest.mark.parametrize("name", EVERY)
def test_a_folder_of_something_else_is_refused(name: str, shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add(name)
    folder = tmp_path / "else"
    (folder / "one" / "two" / "three").mkdir(parents=True)
    for file, content in made.lists.items():
        (folder / file).write_bytes(content)
    with pytest.raises(BadValue, match="else': there is no folder with"):
        shelf.prepare(name, folder)


# real files


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA names no folder with the real files")
    return Path(folder)


@pytest.mark.real_data
def test_the_real_subset_of_cifar100(real: Path, shelf: Shelf) -> None:
    archive = real / "cifar-100-python-subset.tar.xz"
    with pytest.raises(BadValue, match="'cifar100-subset'"):
        shelf.prepare("cifar100", archive)
    ready = shelf.prepare("cifar100-subset", archive)
    assert (len(ready), int(ready.is_train.sum())) == (13_000, 10_000)
    assert np.bincount(ready.targets[ready.is_train]).tolist() == [100] * 100
    assert np.bincount(ready.targets[~ready.is_train]).tolist() == [30] * 100
    assert (ready.class_names[0], ready.class_names[99]) == ("apple", "worm")
    assert ready.images.uniform is not None
    # The mean of the whole set's pixels is (0.507, 0.487, 0.441).
    np.testing.assert_allclose(ready.images.uniform.mean((0, 2, 3)) / 255, (0.507, 0.487, 0.441), atol=0.01)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("part", "tasks"),
    [
        ("train", [2166, 2655, 2292, 2799, 2463, 2624, 2209, 2539, 2195, 2058]),
        ("test", [543, 716, 553, 686, 620, 631, 557, 636, 587, 471]),
    ],
)
def test_the_real_lists_of_imagenet_r(real: Path, tmp_path: Path, part: str, tasks: list[int]) -> None:
    """Counts of the ten tasks of twenty classes, in the lists' own order of classes."""
    content = lzma.decompress((real / "imagenet_r_splits" / f"imagenet-r_{part}.yaml.xz").read_bytes())
    path = tmp_path / f"imagenet-r_{part}.yaml"
    path.write_bytes(content)
    published = {archive.file: archive.md5 for archive in contents.CONTENTS["imagenet-r"].lists}
    assert md5(content).hexdigest() == published[path.name]
    names, targets = imagenet_r.columns(path)
    assert len(names) == len(set(names)) == sum(tasks)
    assert np.bincount(np.array(targets) // 20).tolist() == tasks
    assert len({(name.split("/")[0], target) for name, target in zip(names, targets, strict=True)}) == 200
