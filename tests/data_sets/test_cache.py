from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clbench.data import build, cache, contents, found
from clbench.data.contents import Counts
from clbench.data.prepare import prepare, state
from clbench.errors import BadValue, NotAvailable, StoreError, UnknownName
from clbench.lease import Watch, held

Shelf, Make = Any, Any


def silent(what: str, done: int, total: int | None) -> None:
    """A report to nobody."""


@pytest.fixture
def birds(shelf: Shelf, tmp_path: Path) -> Shelf:
    """A shelf with one data set, prepared from the folder `unpacked`."""
    made = shelf.add("cub200")
    shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    return shelf


def test_images_of_different_sizes_are_read_one_by_one(birds: Shelf, tmp_path: Path) -> None:
    ready = cache.open("cub200")
    source = tmp_path / "unpacked" / "CUB_200_2011"
    names = [line.split()[1] for line in (source / "images.txt").read_text().splitlines()]
    assert ready.images.uniform is None
    for index, name in enumerate(names):
        stored = np.asarray(Image.open(source / "images" / name)).transpose(2, 0, 1)
        np.testing.assert_array_equal(ready.images.pixels(index), stored)
    for beyond in (-1, len(names)):
        with pytest.raises(IndexError, match="of 6"):
            ready.images.pixels(beyond)


def test_nobody_can_write_into_the_files(birds: Shelf) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cache.open("cub200").images.pixels(0)[:] = 0


def test_what_is_not_prepared_is_asked_for_with_its_command(shelf: Shelf) -> None:
    with pytest.raises(NotAvailable, match="'clbench data prepare cub200 --short-side 256' first"):
        cache.open("cub200", short_side=256)
    with pytest.raises(UnknownName, match="Did you mean 'cub200'"):
        cache.open("cub20")


def test_where_only_another_size_is_prepared_that_is_said(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    small = shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"), short_side=4)
    with pytest.raises(NotAvailable, match=rf"\('{small.folder.name}' there is of another size\); run 'clbench data"):
        cache.open("cub200")
    with pytest.raises(NotAvailable, match=rf"prepare cub200 --from {tmp_path}' first, and then leave the folder out"):
        cache.open("cub200", tmp_path)


def test_a_set_is_not_taken_for_another(birds: Shelf) -> None:
    """A subset must be asked for by its own name, wherever it lies."""
    home = birds.home("cub200")
    for asked in (lambda: cache.open("cifar100", home), lambda: prepare("cifar100", None, silent, at=home)):
        with pytest.raises(BadValue, match=f"'{home}' holds 'cub200', which is not 'cifar100'"):
            asked()
    assert len(cache.open("cub200")) == 6


def test_a_file_of_another_size_is_noticed_at_once(birds: Shelf) -> None:
    path = cache.open("cub200").folder / cache.PIXELS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"pixels\.u8' has \d+ bytes, its manifest says"):
        cache.open("cub200")
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        cache.open("cub200")


def test_a_changed_byte_is_noticed_when_asked(birds: Shelf) -> None:
    path = cache.open("cub200").folder / cache.PIXELS
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    cache.open("cub200")
    with pytest.raises(StoreError, match="has another sha256"):
        cache.open("cub200", verify=True)


@pytest.mark.parametrize("name", [cache.TARGETS, cache.SIZES, cache.IS_TRAIN])
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_label_is_noticed_at_once_and_mended(name: str, place: int, birds: Shelf, tmp_path: Path) -> None:
    path = cache.open("cub200").folder / name
    whole = path.read_bytes()
    content = bytearray(whole)
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="has another sha256"):
        cache.open("cub200")
    birds.prepare("cub200", tmp_path / "unpacked")
    assert path.read_bytes() == whole


def test_counts_that_were_edited_are_noticed(birds: Shelf) -> None:
    birds.change("cub200", counts=Counts(images=5_994 + 5_794, classes=200))
    with pytest.raises(StoreError, match=r"holds 6 images and .* has 11,788"):
        cache.open("cub200")


def test_a_damaged_manifest_is_a_sentence(birds: Shelf) -> None:
    path = cache.open("cub200").folder / cache.MANIFEST
    whole = path.read_text()
    path.write_text(whole.replace('"format": 1', '"format": 0'))
    with pytest.raises(StoreError, match="another version"):
        cache.open("cub200")
    path.write_text(whole[:-20])
    with pytest.raises(StoreError, match="is damaged"):
        cache.open("cub200")


def test_a_damaged_copy_is_set_aside_and_made_anew(birds: Shelf, tmp_path: Path) -> None:
    before = cache.open("cub200")
    (before.folder / cache.SIZES).write_bytes(b"")
    after = birds.prepare("cub200", tmp_path / "unpacked")
    assert after.folder == before.folder
    assert birds.left("cub200") == [before.folder.name, f"{before.folder.name}.aside-1"]


def test_two_copies_are_not_chosen_between(birds: Shelf) -> None:
    folder = cache.open("cub200").folder
    shutil.copytree(folder, folder.with_name("decoded-full-0123456789abcdef"))
    with pytest.raises(StoreError, match="holds several copies"):
        cache.open("cub200")


def test_what_is_prepared_is_left_alone(birds: Shelf, tmp_path: Path) -> None:
    before = cache.open("cub200").folder.stat().st_mtime_ns
    assert birds.prepare("cub200").folder.stat().st_mtime_ns == before
    with pytest.raises(BadValue, match="prepared already"):
        birds.prepare("cub200", tmp_path / "unpacked")


def test_shrunk_images_are_a_variant_of_their_own(shelf: Shelf, make: Make, tmp_path: Path) -> None:
    """Bicubic, short side 6, long side rounded down; images that are smaller stay."""
    made = make["cub200"]()
    files = [name for name in made.files if name.endswith(".jpg")]
    for name, (width, height) in zip(files[:3], [(21, 11), (5, 9), (6, 30)], strict=True):
        file = io.BytesIO()
        Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 50).convert("RGB").save(file, "PNG")
        made.files[name] = file.getvalue()
    shelf.add("cub200", made)
    folder = made.unpacked(tmp_path / "unpacked")
    full, small = shelf.prepare("cub200", folder), shelf.prepare("cub200", folder, short_side=6)
    assert [small.images.pixels(index).shape for index in range(3)] == [(3, 6, 11), (3, 9, 5), (3, 30, 6)]
    wanted = Image.open(io.BytesIO(made.files[files[0]])).resize((11, 6), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small.images.pixels(0), np.asarray(wanted).transpose(2, 0, 1))
    np.testing.assert_array_equal(small.images.pixels(1), full.images.pixels(1))
    assert full.sha256 != small.sha256
    assert {full.folder, small.folder} == set(cache.copies(shelf.home("cub200")))
    with pytest.raises(BadValue, match="--short-side 0"):
        shelf.prepare("cub200", folder, short_side=0)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_every_kind_of_image_becomes_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.effect_noise((7, 5), 90).convert("RGB").convert(mode)
    name = "one.jpg" if mode in ("L", "CMYK") else "one.png"
    image.save(tmp_path / name)
    pixels, _ = found.decode(found.PictureFiles(tmp_path, (name,)), 0, None)
    wanted = np.asarray(Image.open(tmp_path / name).convert("RGB")).transpose(2, 0, 1)
    assert pixels.shape == (3, 5, 7)
    np.testing.assert_array_equal(pixels, wanted)


@pytest.mark.parametrize("damage", [b"no image", b""])
def test_a_damaged_image_is_named(damage: bytes, shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    made.files["CUB_200_2011/images/002.Laysan_Albatross/Laysan_Albatross_1.jpg"] = damage
    with pytest.raises(BadValue, match=r"unpacked': the image 'images/002\.Laysan_Albatross/Laysan_Albatross_1\.jpg'"):
        shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    assert shelf.left("cub200") == []


def test_a_truncated_image_inside_an_archive_is_named(shelf: Shelf, make: Make, tmp_path: Path) -> None:
    made = make["imagenet-a"]()
    name = next(name for name in made.files if name.endswith("jpg"))
    made.files[name] = made.files[name][:-60]
    shelf.add("imagenet-a", made)
    with pytest.raises(BadValue, match=r"imagenet-a\.tar': the image 'n01443537/0\.000000_fox"):
        shelf.prepare("imagenet-a", made.archive(tmp_path / "imagenet-a.tar"))


def test_the_hash_is_of_labels_and_splits_too(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    folder = made.unpacked(tmp_path / "unpacked")
    before = shelf.prepare("cub200", folder)
    (folder / "CUB_200_2011/train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 1\n5 0\n6 0\n")
    shutil.rmtree(before.folder)
    shelf.change("cub200", counts=contents.Counts(images=6, classes=2))
    after = shelf.prepare("cub200", folder)
    assert after.pixels_sha256 == before.pixels_sha256
    assert after.sha256 != before.sha256


def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shelf.add("cub200")
    folder = made.unpacked(tmp_path / "unpacked")

    def interrupted(pictures: found.Pictures, index: int, short_side: int | None) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return found.decode(pictures, index, short_side)

    with monkeypatch.context() as patch:
        patch.setattr(build, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shelf.prepare("cub200", folder)
    assert shelf.left("cub200") == []
    with pytest.raises(NotAvailable):
        cache.open("cub200")
    assert len(shelf.prepare("cub200", folder)) == 6


def test_what_a_killed_preparation_left_is_removed(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    half = shelf.home("cub200") / ".unfinished" / "decoded"
    half.mkdir(parents=True)
    (half / cache.PIXELS).write_bytes(b"half")
    (half / cache.MANIFEST).write_bytes(b"{}")
    with pytest.raises(NotAvailable):
        cache.open("cub200")
    ready = shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    assert shelf.left("cub200") == [ready.folder.name]


def test_one_process_at_a_time(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    shelf.home("cub200").mkdir(parents=True)
    with held(shelf.home("cub200"), Watch()), pytest.raises(StoreError, match="another process is preparing"):
        shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))


def test_a_full_disk_is_a_sentence(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shelf.add("cub200")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StoreError, match="no space left"):
        shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    assert shelf.left("cub200") == []


def test_the_state_follows_the_files(birds: Shelf) -> None:
    data = contents.data_set("imagenet-a")
    home = birds.home("imagenet-a")
    assert (state(data).state, state(data).bytes) == ("missing", 687_552_512)
    home.mkdir()
    (home / "imagenet-a.tar.part").write_bytes(b"1")
    assert state(data).state == "partly downloaded"
    (home / "imagenet-a.tar").write_bytes(b"123")
    assert (state(data).state, state(data).bytes) == ("archive found", 3)
    ready = cache.open("cub200")
    held = sum(path.stat().st_size for path in ready.folder.iterdir())
    assert (state(contents.data_set("cub200")).state, state(contents.data_set("cub200")).bytes) == ("prepared", held)
